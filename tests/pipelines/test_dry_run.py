from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ovss_core.errors import StorageError
from pipelines.label.dry_run import Forecast, forecast_label
from pipelines.label.options import PartOptions
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from tests.conftest import encode_image
from tests.pipelines.test_label import job
from tests.pipelines.test_shards import images, write_shard

ImageFolder = Callable[..., Path]


def numbers(forecast: Forecast) -> dict[str, str]:
    return {line[:17].strip(): line[17:] for line in forecast.lines()}


def test_a_dry_run_counts_labels_a_sample_and_writes_nothing(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder, output = image_folder(30), tmp_path / "out"
    (folder / "broken.jpg").write_bytes(b"no image")
    asked = job(folder, output, pools=PoolOptions(actors=2, finish_actors=0, batch_size=64, torch_threads=1))
    found = forecast_label(asked)
    assert (found.corpus.images, found.corpus.sampled, found.failed, found.windows) == (31, 31, 1, 2.0)
    mean = sum(len(encode_image(number)) for number in range(30)) + len(b"no image")
    assert found.corpus.image_bytes == pytest.approx(mean / 31)
    [stage] = found.stages
    assert (stage.workers, sum(stage.by_node)) == (2, 2)
    assert found.hours[0] == found.hours[1] == pytest.approx(31 / stage.images_per_second / 3600)
    told = numbers(found)
    assert told["images"] == "31 (1 of 31 sampled failed)"
    assert told["windows"] == "about 62 (2.0 an image)"
    assert told["segment"].startswith("2 workers of 1 CPU and 0 GPU (2 on 1 node); ")
    assert told["object store"].startswith("a node has 300 MB; ")  # small pictures
    assert not found.store.advice
    large = "\n".join(replace(found, store=replace(found.store, has=found.store.need - 1)).lines())
    assert "give nodes more (ray start --object-store-memory" in large
    assert not output.exists()

    part = forecast_label(replace(asked, part=PartOptions(limit=8)))
    assert (part.corpus.images, part.corpus.parts) == (8, 1)


def test_shards_are_estimated_from_those_that_were_read(ray_session: None, tmp_path: Path) -> None:
    for name in "abcdef":
        write_shard(tmp_path / f"s/{name}.tar", images(40))
    asked = replace(job("unused", tmp_path / "out"), source=SourceOptions(webdataset=str(tmp_path / "s")))
    found = forecast_label(asked)
    assert not found.corpus.counted
    assert 100 < found.corpus.images <= 480
    assert numbers(found)["images"].startswith("about ")


def test_a_corpus_without_an_image_that_can_be_labelled_is_told(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/text.jpg").write_text("no image")
    asked = replace(job(tmp_path / "in", tmp_path / "out"), run=RunOptions(str(tmp_path / "out")))
    with pytest.raises(StorageError, match="none of 1 sampled images could be labelled, such as: "):
        forecast_label(asked)
