import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from moto.server import ThreadedMotoServer
from PIL import Image

from ovss_core.api import OpenVocabSegmenter
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.errors import OutputMismatchError, OvssError, StorageError
from ovss_core.vocabulary import Vocabulary
from pipelines.label.job import LabelJob, encode_text, run_label
from pipelines.label.masks import decode_mask
from pipelines.label.stages import SegmentStage
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.images.pictures import encoded, png_header_only

ImageFolder = Callable[..., Path]
VOCABULARY = Vocabulary.from_names(["background", "cat", "dog, puppy", "<b>grass</b>"], "test")
SEGMENTER = SegmenterConfig(
    model=ModelConfig("demo", "random"),
    windows=WindowConfig(size=32, stride=32, short_side=32),
    # pictures of one color under random weights lie close to fixed thresholds, and batches differ in rounding
    purification=PurificationConfig(thresholds="distractors", score_scale=100.0),
    window_batch=8,
)
ONE_POOL = PoolOptions(actors=1, finish_actors=0, batch_size=4, torch_threads=1)


def job(images: str | Path, output: str | Path, **changes: object) -> LabelJob:
    whole = LabelJob(
        SourceOptions(images=str(images)),
        RunOptions(str(output), shard_size=8, no_progress_s=300.0),
        VOCABULARY,
        SEGMENTER,
        pools=ONE_POOL,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def labels(output: Path) -> dict[str, dict[str, object]]:
    files = sorted((output / "labels").glob("*.parquet"))
    return {row["image_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def bad_files(folder: Path) -> set[str]:
    """Write every kind of file that must not stop the job, and return those that can only fail."""
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "one_pixel.png": encoded(Image.new("RGB", (1, 1))),
        "sixteen_bits.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))),
        "cmyk.jpg": encoded(Image.new("CMYK", (40, 30), (10, 20, 30, 0)), "JPEG"),
        "animated.gif": encoded(
            Image.new("RGB", (20, 20), "red"),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (20, 20))],
        ),
        "rotated.jpg": encoded(Image.new("RGB", (40, 30)), "JPEG", exif=turned),
        "mislabelled.jpg": encode_image(1, kind="PNG"),
        "thin.png": encoded(Image.new("RGB", (300, 2))),
    }
    bad = {
        "truncated.jpg": encode_image(2, 200, 200)[:2000],
        "empty.jpg": b"",
        "text.png": b"hello",
        "huge.png": png_header_only(20_000, 10_000),
    }
    for name, data in {**good, **bad}.items():
        (folder / name).write_bytes(data)
    return set(bad)


def test_a_folder_with_every_kind_of_bad_file_is_labelled_and_the_rest_of_the_life_of_an_output(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(5, "<img src=x>"), tmp_path / "out"
    bad = bad_files(images)
    work = job(
        images,
        output,
        run=RunOptions(str(output), shard_size=8, previews=3),
        pools=replace(ONE_POOL, finish_actors=1),
    )

    summary = run_label(work)

    assert (summary["images"], summary["labelled"], summary["failed"]) == (16, 12, 4)
    assert summary == json.loads((output / "summary.json").read_text())
    rows = labels(output)
    failures = [row for file in (output / "_failures").iterdir() for row in pq.read_table(file).to_pylist()]
    assert {row["image_id"] for row in failures} == bad
    assert {row["stage"] for row in failures} == {"decode"}
    assert rows.keys() | bad == {str(path.relative_to(images)) for path in images.rglob("*.*")}
    assert (rows["rotated.jpg"]["height"], rows["rotated.jpg"]["width"]) == (40, 30)
    segmenter = OpenVocabSegmenter.from_pretrained("demo", "random", vocabulary=VOCABULARY, config=SEGMENTER)
    for name in ("0001.jpg", "below/0002.jpg", "sixteen_bits.png", "mislabelled.jpg"):
        expected = segmenter.segment(images / name).label_map
        np.testing.assert_array_equal(decode_mask(rows[name]["mask"]), expected)  # type: ignore[arg-type]
    page = (output / "_previews/index.html").read_text()
    assert "<b>grass</b>" not in page
    assert sorted(path.name for path in (output / "_previews").iterdir())[:2] == [
        "00000-image.png",
        "00000-mask.png",
    ]
    record = json.loads((output / "run.json").read_text())
    assert record["identity"]["vocabulary_hash"] == VOCABULARY.content_hash
    assert len(record["identity"]["weights_hash"]) == 64

    inodes = {path: path.stat().st_ino for path in output.rglob("part-*")}
    again = run_label(work)
    assert again["this_start"]["images"] == 0
    assert {path: path.stat().st_ino for path in output.rglob("part-*")} == inodes

    other = replace(SEGMENTER, windows=WindowConfig(size=64, stride=32, short_side=64))
    with pytest.raises(OutputMismatchError, match=r"config\.windows\.short_side was 32, is now 64"):
        run_label(replace(work, segmenter=other))
    with pytest.raises(OutputMismatchError, match=r"vocabulary was .*, is now"):
        run_label(replace(work, vocabulary=Vocabulary.from_names(["cat", "dog"])))

    (images / "empty.jpg").write_bytes(encode_image(7))
    retried = run_label(replace(work, run=replace(work.run, retry_failed=True)))
    assert (retried["labelled"], retried["failed"], retried["this_start"]["images"]) == (13, 3, 4)
    assert labels(output).keys() == rows.keys() | {"empty.jpg"}

    (output / "mine.txt").write_text("not written by ovss")
    fewer = image_folder(3, "fewer")
    replaced = run_label(job(fewer, output, run=RunOptions(str(output), overwrite=True)))
    assert replaced["labelled"] == 3
    assert len(labels(output)) == 3
    assert (output / "mine.txt").exists()
    assert not (output / "_failures").exists()
    assert not (output / "_previews").exists()


def test_parquet_and_webdataset_and_a_vocabulary_above_255_classes(ray_session: None, tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_names([f"thing {n}" for n in range(300)])
    pq.write_table(pa.table({"image": [encode_image(n) for n in range(10)]}), tmp_path / "t.parquet")
    plain = replace(SEGMENTER, purification=replace(SEGMENTER.purification, method="none"))
    source = SourceOptions(parquet=str(tmp_path / "t.parquet"))
    run_label(job("replaced", tmp_path / "out", source=source, vocabulary=vocabulary, segmenter=plain))
    rows = labels(tmp_path / "out")
    assert set(rows) == {f"t.parquet#{n}" for n in range(10)}
    masks = [decode_mask(row["mask"]) for row in rows.values()]  # type: ignore[arg-type]
    assert {mask.dtype for mask in masks} == {np.dtype(np.uint16)}
    assert all(row["kept"] == row["groups"] == [] for row in rows.values())


def test_the_stages_fit_into_somebody_elses_ray_data_pipeline(ray_session: None, tmp_path: Path) -> None:
    text, _ = encode_text(SEGMENTER, VOCABULARY, None, "cpu")
    (tmp_path / "a.jpg").write_bytes(encode_image(3))
    (tmp_path / "b.jpg").write_bytes(b"broken")
    dataset = ray.data.read_binary_files(str(tmp_path), include_paths=True).map_batches(
        SegmentStage,
        fn_constructor_kwargs={"config": SEGMENTER, "text": text, "image_column": "bytes"},
        batch_format="pyarrow",
        batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    rows = {Path(row["path"]).name: row for row in dataset.take_all()}
    assert rows["b.jpg"]["failure"]["error_type"] == "ImageError"
    segmenter = OpenVocabSegmenter.from_pretrained("demo", "random", vocabulary=VOCABULARY, config=SEGMENTER)
    expected = segmenter.segment(tmp_path / "a.jpg").label_map
    np.testing.assert_array_equal(decode_mask(rows["a.jpg"]["result"]["mask"]), expected)


@pytest.fixture
def bucket() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(port=0)
    server.start()
    port = server.get_host_and_port()[1]
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    client.create_bucket(Bucket="corpus")
    for number in range(6):
        client.put_object(Bucket="corpus", Key=f"in/a b/{number}.jpg", Body=encode_image(number))
    client.put_object(Bucket="corpus", Key="in/broken.jpg", Body=b"broken")
    yield "s3://key:secret@corpus/{}?endpoint_override=127.0.0.1:" + f"{port}&scheme=http", port
    server.stop()


def test_input_and_output_may_lie_in_an_object_store(ray_session: None, bucket: tuple[str, int]) -> None:
    uri, _ = bucket
    output = Folder(uri.format("out"))
    work = job(uri.format("in"), output.uri, run=RunOptions(output.uri, shard_size=4, previews=2))
    summary = run_label(work)
    assert (summary["labelled"], summary["failed"]) == (6, 1)
    table = pq.read_table(pa.BufferReader(output.read("labels/labels-00000.parquet")))
    assert table["uri"].to_pylist()[0] == "s3://corpus/in/a%20b/0.jpg"
    assert "secret" not in output.read("run.json").decode()
    assert output.exists("_previews/index.html")
    output.remove("_done/part-00001.json")
    assert run_label(work)["this_start"]["images"] == 3


def test_nothing_is_started_or_written_where_the_checks_fail(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("-")
    with pytest.raises(StorageError, match="no image in"):
        run_label(job(tmp_path / "empty", tmp_path / "out"))
    (tmp_path / "empty/a.jpg").write_bytes(b"")
    (tmp_path / "file").write_text("-")
    with pytest.raises(StorageError, match="cannot write"):
        run_label(job(tmp_path / "empty", tmp_path / "file"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/photo.raw").write_text("-")
    with pytest.raises(OutputMismatchError, match=r"not of a run \(photo\.raw\)"):
        run_label(job(tmp_path / "empty", tmp_path / "full"))
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["photo.raw"]


def test_a_run_that_stops_before_its_first_image_leaves_nothing_that_blocks_another(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, output = image_folder(3), tmp_path / "out"

    def full_disk(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "/out/manifest")

    with monkeypatch.context() as broken:
        broken.setattr("pipelines.run.lifecycle.run_job", full_disk)
        with pytest.raises(
            OvssError, match=r"the run stopped: .*No space left on device.*goes on"
        ) as stopped:
            run_label(job(images, output))
    assert type(stopped.value) is OvssError
    assert (output / "run.json").exists()

    plain = replace(SEGMENTER, purification=replace(SEGMENTER.purification, method="none"))
    summary = run_label(job(images, output, segmenter=plain))
    assert summary["labelled"] == 3
    with pytest.raises(OutputMismatchError, match=r"purification\.method was \"none\""):
        run_label(job(images, output))
