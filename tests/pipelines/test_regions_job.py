from pathlib import Path

import numpy as np
import pytest

from jobs.regions import main
from ovss_core.config import GeneratorConfig
from pipelines.run.capacity import Pool
from pipelines.run.options import SourceOptions
from pipelines.run.runner import ActorStage, Job
from pipelines.sources.region_maps import RegionFolder
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.pipelines.plain_execution import rows_of, run_plain
from tests.regions.test_generators import save_eomt


def test_every_image_gets_the_map_that_labelling_reads(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from pipelines.regions.job import MAPS, TABLE, RegionStage, hash_generator

    images, output = tmp_path / "images", str(tmp_path / "out")
    (images / "below").mkdir(parents=True)
    (images / "first.jpg").write_bytes(encode_image(0))
    (images / "below" / "second.jpg").write_bytes(encode_image(1))
    (images / "none.jpg").write_bytes(b"no image")
    config = GeneratorConfig(str(save_eomt(tmp_path / "model")), min_quality=0.0)
    assert len(hash_generator(config.generator) or "") == 64
    assert hash_generator("facebook/sam2.1-hiera-large") is None
    stage = ActorStage(
        "regions", RegionStage, {"config": config, "output": output, "device": "cpu"}, Pool("r", 1, 1), 2
    )
    job = Job(Folder(output), SourceOptions(images=str(images)).open(), [stage], TABLE)
    run_plain(job)
    rows = {row["image_id"]: row for row in rows_of(job.output, "regions")}
    assert set(rows) == {"first.jpg", "below/second.jpg"}
    folder = RegionFolder(f"{output}/{MAPS}")
    for image_id, row in rows.items():
        ids = folder.read(image_id, 1 << 24).ids
        assert ids.max() == row["regions"] >= 1
        assert row["covered"] == pytest.approx(np.mean(ids > 0))


def test_without_transformers_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.regions.checks.find_spec", lambda _: None)
    status = main(["--images", str(tmp_path), "--generator", "x", "--output", str(tmp_path / "out")])
    assert status == 2
    assert "pip install 'ovss[regions]'" in capsys.readouterr().err
