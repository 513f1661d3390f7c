"""Folders as people have them: loops of links, FIFOs, trees a thousand deep, files that vanish."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ovss_core.errors import StorageError
from pipelines.faults import Failure
from pipelines.run.manifest import prepare_manifest, read_part
from pipelines.sources import FolderSource, WebDatasetSource
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder


def listed(pattern: object) -> dict[str, str | None]:
    """Return ids and, where there is nothing to read, the reason."""
    records = list(FolderSource(str(pattern)).records())
    assert len({record.image_id for record in records}) == len(records)
    return {record.image_id: record.reason for record in records}


def fetched(source: FolderSource) -> dict[str, bytes | str]:
    fields = ("image_id", "uri", "container", "path", "offset", "length", "row_group", "row", "reason")
    rows = [{name: getattr(record, name) for name in fields} for record in source.records()]
    with ThreadPoolExecutor(4) as threads:
        values = ImageFetcher(source.uri).fetch(rows, threads)
    return {
        row["image_id"]: value.reason if isinstance(value, Failure) else value
        for row, value in zip(rows, values, strict=True)
    }


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_links_are_followed_and_loops_of_them_end(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a")
    (tmp_path / "c/up").symlink_to(tmp_path)
    (tmp_path / "c/self").symlink_to(tmp_path / "c/self")
    assert listed(tmp_path) == {
        "a/1.png": None,
        "a/to_b/2.png": None,
        "b/2.png": None,
        "b/to_a/1.png": None,
        "c/3.png": None,
        "c/self": "a link that cannot be followed: Too many levels of symbolic links",
    }


def test_folders_that_all_link_to_each_other_are_listed_in_bounded_time_and_that_is_said(
    tmp_path: Path,
) -> None:
    names = [f"d{number}" for number in range(9)]
    make(tmp_path, *(f"{name}/{name}.png" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    start = time.monotonic()
    found = listed(tmp_path)
    assert time.monotonic() - start < 30
    assert {f"{name}/{name}.png" for name in names} <= found.keys()
    told = [reason for reason in found.values() if reason]
    assert 0 < len(told) <= len(names)
    assert all("ways of links lead to this folder" in reason for reason in told)


def test_a_chain_of_links_that_the_system_does_not_follow_is_told(tmp_path: Path) -> None:
    make(tmp_path, "real/1.png")
    for number in range(60):
        target = "real" if number == 0 else f"link{number - 1:02d}"
        (tmp_path / f"link{number:02d}").symlink_to(target)
    found = listed(tmp_path)
    assert found["real/1.png"] is None
    assert found["link30/1.png"] is None
    assert "Too many levels" in str(found["link59"])
    assert listed(tmp_path / "r*/*.png") == {"real/1.png": None}  # no match can lie behind the chain
    assert "link59" in listed(tmp_path / "*/*.png")
    assert len([name for name in found if name.startswith("link")]) == 60


def test_links_to_nothing_are_told_where_images_may_have_been(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    for name in ("gone.png", "gone", "gone.txt"):
        (tmp_path / name).symlink_to("/no/such/place")
    source = FolderSource(str(tmp_path))
    found = {record.image_id: record.reason for record in source.records()}
    assert found == {
        "1.png": None,
        "gone": "a link to something that is not there",
        "gone.png": "a link to something that is not there",
    }
    assert source.ignored == 1


def test_fifos_are_counted_and_never_opened(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    os.mkfifo(tmp_path / "2.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "3.png").symlink_to("/dev/zero")
    source = FolderSource(str(tmp_path))
    start = time.monotonic()
    assert fetched(source) == {
        "1.png": b"1.png",
        "2.png": "this is a FIFO (named pipe), not a file",
        "3.png": "this is a device, not a file",
    }
    assert source.ignored == 1
    with pytest.raises(StorageError, match="is a FIFO, a socket or a device"):
        FolderSource(str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "4.tar")
    with pytest.raises(StorageError, match=r"4\.tar: this is a FIFO"):
        WebDatasetSource(str(tmp_path))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("depth", "name"), [(1100, "d"), (400, "a_folder_name")])
def test_a_tree_deeper_than_python_s_stack_and_longer_than_the_longest_path_is_read(
    tmp_path: Path, depth: int, name: str
) -> None:
    before = os.open(tmp_path, os.O_RDONLY)
    folder = os.dup(before)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    with os.fdopen(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=folder), "wb") as file:
        file.write(b"deep")
    os.mkfifo("y.png", dir_fd=folder)
    try:
        found = fetched(FolderSource(str(tmp_path)))
        assert found == {
            f"{name}/" * depth + "x.png": b"deep",
            f"{name}/" * depth + "y.png": "this is a FIFO (named pipe), not a file",
        }
    finally:
        remove_deep(folder, depth, name)
        os.close(before)


def remove_deep(folder: int, depth: int, name: str) -> None:
    """Remove the tree from its end: pytest's own removal would meet the limits that are tested."""
    for entry in ("x.png", "y.png"):
        os.unlink(entry, dir_fd=folder)
    for _ in range(depth):
        above = os.open("..", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = above
        os.rmdir(name, dir_fd=folder)
    os.close(folder)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")]
)
def test_a_folder_that_cannot_be_entered_or_vanishes_is_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    make(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    real = os.scandir

    def scandir(place: Any) -> Any:
        if str(place).endswith("/b"):
            raise error
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    found = listed(tmp_path)
    assert [name for name, reason in found.items() if reason is None] == ["a/1.png", "c/3.png"]
    assert str(found["b"]).startswith("the folder cannot be listed: ")
    assert f"{tmp_path}/b" in str(found["b"])
    assert listed(f"{tmp_path}/a/*.png") == {"1.png": None}  # what no match can lie in is not entered
    monkeypatch.setattr(os, "scandir", lambda place: scandir("/b"))
    with pytest.raises(StorageError, match="cannot list"):
        listed(tmp_path)


def test_a_file_that_vanishes_after_it_was_seen_is_a_failure_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png")
    source = FolderSource(str(tmp_path))
    records = source.records()
    next(records)
    (tmp_path / "2.png").unlink()
    assert [record.image_id for record in records] == ["2.png"]


def test_endings_are_known_in_any_case_and_new_formats_are_images(tmp_path: Path) -> None:
    endings = ["JPG", "Png", "heic", "HEIF", "hif", "avif", "jxl", "mpo", "jpf", "jpx", "apng", "jp2"]
    make(tmp_path, *(f"{number}.{ending}" for number, ending in enumerate(endings)), "x.txt", "y.svg")
    source = FolderSource(str(tmp_path))
    assert len(list(source.records())) == len(endings)
    assert source.ignored == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("imges", r"no such file or folder: {0}/imges \({0} is there, and holds images\)"),
        ("none/of/these", r"no such file or folder: {0}/none/of/these \({0} is there\)"),
        (
            "imges/*.png",
            r"no such folder: {0}/imges \(from the pattern .*\) \({0} is there, and holds images\)",
        ),
        ("images/*.tiff", r"nothing matches {0}/images/\*\.tiff; {0}/images is there"),
        ("shards", r"no image in {0}/shards \(2 other files passed over: 2 \.tar\); .* --webdataset"),
        ("tables", r"no image in {0}/tables \(1 other files passed over: 1 \.parquet\); .* --parquet"),
        ("empty", r"no image in {0}/empty \(the folder is empty\)"),
    ],
)
def test_where_nothing_is_found_the_message_says_what_is_there(
    tmp_path: Path, pattern: str, message: str
) -> None:
    make(tmp_path, "images/1.png", "shards/1.tar", "shards/2.tar", "tables/1.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=message.format(tmp_path)):
        listed(tmp_path / pattern)


def test_a_root_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(root).mkdir()
    (Path(root) / "1.png").write_bytes(b"1")
    source = FolderSource(root)
    manifest = prepare_manifest(Folder(str(tmp_path / "out")), source, 7)
    [row] = read_part(Folder(str(tmp_path / "out")), "part-00000").to_pylist()
    with ThreadPoolExecutor(1) as threads:
        assert ImageFetcher(source.uri).fetch([row], threads) == [b"1"]
    assert (manifest.images, row["image_id"], row["uri"]) == (1, "1.png", f"file://{tmp_path}/%FF/1.png")
    assert source.describe()["uri"] == f"{tmp_path}/\\xff"


@pytest.fixture
def odd_names(tmp_path: Path) -> Path:
    make(tmp_path, "a #?%20.png", "b\n.png", "c'\".png", "日本.png", "e;f&g=h.png")
    return tmp_path


def test_odd_names_are_read_by_path_and_by_uri(odd_names: Path) -> None:
    expected = {name.name: name.name.encode() for name in odd_names.iterdir()}
    for root in (str(odd_names), f"file://{odd_names}"):
        assert fetched(FolderSource(root)) == expected
    assert fetched(FolderSource(f"{odd_names}/a #?%20.png")) == {"a #?%20.png": b"a #?%20.png"}
