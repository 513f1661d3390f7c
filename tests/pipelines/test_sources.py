import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from ovss_core.errors import StorageError
from pipelines.faults import Failure
from pipelines.fetch import ImageFetcher
from pipelines.manifest import prepare_manifest, read_manifest, read_part, refresh_manifest
from pipelines.reading import ReadImages
from pipelines.sources import FolderSource, ImageRecord, ParquetSource, Source, WebDatasetSource
from pipelines.sources.listing import expand_braces, matches
from pipelines.storage import Folder
from pipelines.work_units import ShardTask, pack_units


def read_everything(source: Source, output: Path, **options: object) -> dict[str, bytes | str]:
    """Return the bytes of every listed image, or the reason for which there are none."""
    manifest = prepare_manifest(Folder(str(output)), source, 7)
    found: dict[str, bytes | str] = {}
    tasks = [ShardTask(number, manifest.containers[number], b"", {}) for number in manifest.unlisted]
    fields = getattr(source, "fields", None)
    reader = ReadImages(str(output), source.uri, fields=fields, **options)  # type: ignore[arg-type]
    for table in reader.read(pa.table({"unit": [row["unit"] for row in pack_units(tasks)]})) if tasks else ():
        for row in table.to_pylist():
            found[row["image_id"]] = row["failure"]["reason"] if row["failure"] else row["image"]
    if tasks:
        assert len(found) == refresh_manifest(Folder(str(output)), manifest).images
        return found
    fetcher = ImageFetcher(source.uri, **options)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as threads:
        for part in manifest.parts:
            rows = read_part(Folder(str(output)), part).to_pylist()
            for row, value in zip(rows, fetcher.fetch(rows, threads), strict=True):
                assert row["image_id"] not in found
                found[row["image_id"]] = value.reason if isinstance(value, Failure) else value
    assert len(found) == manifest.images
    return found


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_a_folder_gives_its_images_by_relative_path_and_passes_over_the_rest(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "a b" / "ü").mkdir(parents=True)
    contents = {"z.JPG": b"1", "a b/x.png": b"2", "a b/ü/y.webp": b"3"}
    for name, data in {**contents, "notes.txt": b"", ".hidden.jpg": b"", "a b/._x.png": b""}.items():
        (images / name).write_bytes(data)
    source = FolderSource(str(images))

    assert read_everything(source, tmp_path / "out") == contents
    assert source.ignored == 1
    records = list(source.records())
    assert [record.image_id for record in records] == ["a b/x.png", "a b/ü/y.webp", "z.JPG"]
    assert Path(records[0].uri).read_bytes() == b"2"


def test_a_name_that_is_no_text_is_read_and_shown_with_its_bytes_written_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in ((b"\xff.jpg", b"1"), (b"\\xff.jpg", b"2"), ("ü \\.jpg".encode(), b"3")):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(data)
    records = list(FolderSource(str(folder)).records())
    assert {record.uri for record in records if record.container == "uri"} == {f"file://{folder}/%FF.jpg"}
    found = read_everything(FolderSource(str(folder)), tmp_path / "out")
    assert found == {"\\xff.jpg": b"2", "\\xff.jpg#2": b"1", "ü \\.jpg": b"3"}


def test_a_link_that_points_back_up_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"1")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    assert [record.image_id for record in FolderSource(str(tmp_path / "images")).records()] == ["a.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "one/a.png", "one/two/b.png"]),
        ("one/**", ["one/a.png", "one/data.bin", "one/two/b.png"]),
        ("one/*.{png,bin}", ["one/a.png", "one/data.bin"]),
        ("one/[ax].png", ["one/a.png"]),
        ("one/two/b.png", ["b.png"]),
    ],
)
def test_globs_choose_files(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    for name in ("a.png", "one/a.png", "one/two/b.png", "one/data.bin"):
        (tmp_path / name).write_bytes(b"1")
    found = [record.path for record in FolderSource(f"{tmp_path}/{pattern}").records()]
    shift = "one/two/" if pattern == "one/two/b.png" else ""
    assert found == [f"{tmp_path}/{shift}{name}" for name in expected]


def test_braces_and_pieces_of_globs() -> None:
    assert expand_braces("s-{008..010}.{tar,tgz}") == [
        f"s-{n}.{ending}" for n in ("008", "009", "010") for ending in ("tar", "tgz")
    ]
    assert matches(["a", "b", "c"], ["**", "c"])
    assert not matches(["a", "b"], ["*"])


def test_a_folder_name_with_glob_characters_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]/a.png").write_bytes(b"1")
    assert [record.image_id for record in FolderSource(str(tmp_path / "set [1]")).records()] == ["a.png"]


@pytest.mark.parametrize("source", [FolderSource, ParquetSource, WebDatasetSource])
def test_a_wrong_path_is_named(tmp_path: Path, source: type) -> None:
    with pytest.raises(StorageError, match=r"no such file or folder: .*missing"):
        source(str(tmp_path / "missing"))


def test_the_images_of_shards_are_found_by_key_and_repeated_keys_get_a_number(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s/a.tar",
        {
            "one.jpg": b"1",
            "one.json": b"{}",
            "dir.v1/two.png": b"2",
            "dir.v1/two.mask.png": b"-",
            "one.png": b"3",
            "../up.jpg": b"4",
        },
    )
    write_tar(tmp_path / "s/b.tar", {f"{n}.jpg": b"%d" % n for n in range(9)})
    source = WebDatasetSource(str(tmp_path / "s"))
    found = read_everything(source, tmp_path / "out")
    assert found == {
        "a.tar/one": b"1",
        "a.tar/dir.v1/two": b"2",
        "a.tar/one#2": b"3",
        "a.tar/../up": b"4",
        **{f"b.tar/{n}": b"%d" % n for n in range(9)},
    }
    assert read_manifest(Folder(str(tmp_path / "out"))).ignored == 2


@pytest.mark.parametrize("cut", [100, 512 + 3, 1024 + 512 + 5])
def test_a_truncated_tar_gives_what_can_be_read_and_one_failure(tmp_path: Path, cut: int) -> None:
    write_tar(tmp_path / "s.tar", {f"{n}.jpg": b"%d" % n * 10 for n in range(3)})
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:cut])
    found = read_everything(WebDatasetSource(str(tmp_path / "s.tar")), tmp_path / "out")
    readable = cut // 1024
    assert {key: value for key, value in found.items() if key != "s.tar"} == {
        f"s.tar/{n}": b"%d" % n * 10 for n in range(readable)
    }
    assert ("it is no tar" if cut < 512 else "cannot be read to its end") in str(found["s.tar"])


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_one_failure(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    assert "cannot be read" in str(
        read_everything(WebDatasetSource(str(tmp_path)), tmp_path / "out")["s.tar"]
    )


def test_files_above_the_limit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"12345")
    write_tar(tmp_path / "s.tar", {"a.jpg": b"12345", "b.jpg": b"1"})
    folder = read_everything(FolderSource(str(tmp_path / "images")), tmp_path / "out", max_bytes=4)
    assert "5 bytes, more than max_bytes (4)" in str(folder["a.jpg"])
    tar = read_everything(WebDatasetSource(str(tmp_path / "s.tar")), tmp_path / "out2", max_bytes=4)
    assert "max_bytes" in str(tar["s.tar/a"])
    assert tar["s.tar/b"] == b"1"


def test_a_file_that_went_away_after_listing_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / f"images/{name}.jpg").write_bytes(b"1")
    source = FolderSource(str(tmp_path / "images"))
    prepare_manifest(Folder(str(tmp_path / "out")), source, 7)
    (tmp_path / "images/a.jpg").unlink()
    rows = read_part(Folder(str(tmp_path / "out")), "part-00000").to_pylist()
    with ThreadPoolExecutor(1) as threads:
        gone, there = ImageFetcher(source.uri).fetch(rows, threads)
    assert isinstance(gone, Failure)
    assert (gone.stage, gone.error_type, there) == ("read", "FileNotFoundError", b"1")


def test_a_listing_that_was_cut_short_is_started_anew(tmp_path: Path) -> None:
    class Endless:
        uri, ignored = "/", 0

        def describe(self) -> dict[str, str]:
            return {"uri": "/"}

        def containers(self) -> None:
            return None

        def records(self, skip: object = ()) -> object:
            yield from (ImageRecord(f"{n}", "/", "broken", reason="-") for n in range(5000))
            raise KeyboardInterrupt

    output = Folder(str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(output, Endless(), 2000)  # type: ignore[arg-type]
    assert output.names("manifest") == ["part-00000.parquet", "part-00001.parquet"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"1")
    manifest = prepare_manifest(output, FolderSource(str(tmp_path / "images")), 2)
    assert manifest.counts == (1,)
    assert read_part(output, "part-00000")["image_id"].to_pylist() == ["a.jpg"]
