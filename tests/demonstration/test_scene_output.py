import io
import json
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipelines.demonstration.formats as formats
from jobs.scenes import main
from ovss_core.errors import ConfigError, OutputMismatchError, StorageError
from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.drawing import draw_scenes
from pipelines.demonstration.formats import WRITERS
from pipelines.demonstration.options import SEED_SPACING, SceneFormat, ScenesConfig
from pipelines.demonstration.scenes import render_scene

COUNT, SEED, SIZE = 5, 3, 64
Drawn = dict[str, tuple[np.ndarray, np.ndarray]]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def read_folder(folder: Path) -> Drawn:
    return {
        path.stem: (pixels(path.read_bytes()), pixels((folder / "masks" / path.name).read_bytes()))
        for path in (folder / "images").iterdir()
    }


def read_parquet(folder: Path) -> Drawn:
    return {
        row["id"]: (pixels(row["image"]["bytes"]), pixels(row["mask"]))
        for path in folder.glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }


def read_webdataset(folder: Path) -> Drawn:
    members: dict[str, bytes] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                members[member.name] = stream.read()
    names = {name.split(".")[0] for name in members}
    return {name: (pixels(members[f"{name}.png"]), pixels(members[f"{name}.mask.png"])) for name in names}


READERS = {"folder": read_folder, "parquet": read_parquet, "webdataset": read_webdataset}


def config(folder: Path, **changes: object) -> ScenesConfig:
    settings: dict[str, object] = {"count": COUNT, "seed": SEED, "size": SIZE, "workers": 1, "shard": 2}
    return ScenesConfig(output=str(folder), **{**settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", READERS)
def test_every_format_holds_the_scenes_of_the_seed_pixel_for_pixel(tmp_path: Path, layout: str) -> None:
    assert draw_scenes(config(tmp_path, format=layout)) == COUNT
    drawn = READERS[layout](tmp_path)
    assert sorted(drawn) == [f"{index:09d}" for index in range(COUNT)]
    for name, (image, mask) in drawn.items():
        scene = render_scene(SEED * SEED_SPACING + int(name), SIZE)
        assert np.array_equal(image, scene.image)
        assert np.array_equal(mask, scene.labels)
    assert Vocabulary.from_file(tmp_path / "vocabulary.txt").names == Vocabulary.load("demo").names


def test_the_formats_to_choose_from_are_those_that_can_be_written() -> None:
    assert set(get_args(SceneFormat)) == set(WRITERS)


def test_a_scene_does_not_depend_on_how_many_are_drawn_or_how_they_are_sharded(tmp_path: Path) -> None:
    draw_scenes(config(tmp_path / "few", count=3, shard=1))
    draw_scenes(config(tmp_path / "many", count=5, shard=4))
    few, many = read_folder(tmp_path / "few"), read_folder(tmp_path / "many")
    assert all(np.array_equal(few[name][0], many[name][0]) for name in few)


def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    draw_scenes(config(tmp_path / "one"))
    draw_scenes(config(tmp_path / "two", workers=2))
    one, two = read_folder(tmp_path / "one"), read_folder(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name][0], two[name][0]) for name in one)


def test_the_same_command_draws_only_what_is_missing(tmp_path: Path) -> None:
    draw_scenes(config(tmp_path, format="parquet"))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    (tmp_path / "scenes-000001.parquet").unlink()
    next((tmp_path / "_done").glob("000000002-*")).unlink()
    assert draw_scenes(config(tmp_path, format="parquet")) == 2
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["scenes-000001.parquet"]


def test_a_run_that_dies_leaves_no_half_file_under_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = render_scene

    def dies_at_the_fourth(seed: int, size: int) -> object:
        if seed % SEED_SPACING == 3:
            raise KeyboardInterrupt
        return original(seed, size)

    monkeypatch.setattr(formats, "render_scene", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        draw_scenes(config(tmp_path, format="webdataset"))
    monkeypatch.undo()
    assert sorted(read_webdataset(tmp_path)) == ["000000000", "000000001"]
    assert draw_scenes(config(tmp_path, format="webdataset")) == 3
    assert len(read_webdataset(tmp_path)) == COUNT


def test_settings_that_are_damaged_are_named(tmp_path: Path) -> None:
    draw_scenes(config(tmp_path))
    (tmp_path / "scenes.json").write_bytes(b'{"count": ')
    with pytest.raises(StorageError, match=r"scenes\.json of .* is damaged: no JSON"):
        draw_scenes(config(tmp_path))


def test_an_output_of_other_settings_is_not_mixed_with_these(tmp_path: Path) -> None:
    draw_scenes(config(tmp_path))
    with pytest.raises(OutputMismatchError, match="another --output"):
        draw_scenes(config(tmp_path, seed=4))


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("count", -3), ("size", 8), ("seed", -1), ("format", "zip"), ("workers", 0)],
)
def test_settings_that_cannot_work_are_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is"):
        config(tmp_path, **{name: value})


def test_the_command_says_what_is_wrong_and_exits_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["--count", "0", "--output", str(tmp_path / "scenes")]) == 2
    assert "--count is 0" in capsys.readouterr().err
    assert main(["--count", "2", "--size", "64", "--output", str(tmp_path / "file" / "scenes")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_command_draws_jpegs_and_their_captions(tmp_path: Path) -> None:
    arguments = [
        "--count",
        "2",
        "--size",
        "64",
        "--workers",
        "1",
        "--image_format",
        "jpeg",
        "--format",
        "webdataset",
    ]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    with tarfile.open(tmp_path / "scenes-000000.tar") as archive:
        names = archive.getnames()
        stream = archive.extractfile("000000001.json")
        assert stream is not None
        assert json.loads(stream.read())["caption"] == render_scene(1, 64).caption
    assert names[:3] == ["000000000.jpg", "000000000.mask.png", "000000000.json"]
