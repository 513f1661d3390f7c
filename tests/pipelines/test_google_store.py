"""``gs://`` against a small store of our own, and against `gcp-storage-emulator` as well where that is installed."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from jobs import cli
from ovss_core.clip.demo import demo_weights_path
from ovss_core.config import ModelConfig
from ovss_core.errors import ImageError, StorageError
from pipelines.derive.corrections import compare, read_corrections
from pipelines.derive.export import Export
from pipelines.derive.formats.base import Classes
from pipelines.derive.options import ExportOptions
from pipelines.evaluate.pairs import FolderPairsSource
from pipelines.label.reader import open_labels
from pipelines.run.fragments import FRAGMENTS
from pipelines.run.handed_weights import fetch
from pipelines.run.lifecycle import open_source
from pipelines.run.options import RunOptions
from pipelines.run.verify import verify_output
from pipelines.run.weight_hashes import hash_weights
from pipelines.run.work_units import ShardTask
from pipelines.sources import FolderSource, ParquetSource, WebDatasetSource
from pipelines.storage import Folder, walk
from pipelines.transport import patience
from pipelines.transport.causes import TransferError, blamed_on
from pipelines.transport.whole import read_inside
from tests.conftest import encode_image
from tests.derive.plain import run_here, write_labels
from tests.pipelines.google_store import GoogleStore, Place, running_google_store
from tests.pipelines.hub import running_hub
from tests.pipelines.mean_color import mean_job
from tests.pipelines.plain_execution import PlainExecution, rows_of, run_plain
from tests.pipelines.test_dataset_card import segmentation
from tests.pipelines.test_shards import images, write_shard

KEYS = ("_done/x.json", "a/1.jpg", "a/b/2.jpg", "a b/ü.jpg", "a-.jpg", "a0.jpg", "x/y/z/q.png", "z.jpg")
"""In the order of a walk: folder by folder, so that a/ comes before "a b"."""
Action = Callable[[], object]
_QUICK = "&retry_limit_seconds=0.001"
_EMULATOR = "gcp_storage_emulator"


@pytest.fixture(scope="module")
def running() -> Iterator[GoogleStore]:
    with running_google_store() as store:
        yield store


@pytest.fixture(scope="module")
def emulator() -> Iterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", _EMULATOR, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield Place(port)
        process.kill()


@pytest.fixture
def store(running: GoogleStore, monkeypatch: pytest.MonkeyPatch) -> GoogleStore:
    """A store of our own with an empty bucket, whose listings come in pages of three."""
    monkeypatch.setattr(patience, "_FIRST_WAIT_S", 0.01)
    running.change(page_size=3)
    running.make_bucket()
    return running


@pytest.fixture(params=["store", *([_EMULATOR] if find_spec(_EMULATOR) else [])])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "store":
        ours: Place = request.getfixturevalue("store")
        return ours
    emulator: Place = request.getfixturevalue("emulator")
    urlopen(f"http://{emulator.host}/wipe").close()
    emulator.make_bucket()
    return emulator


def upload(folder: Path, address: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            Folder(address).write(str(path.relative_to(folder)), path.read_bytes())


def test_folders_are_found_by_what_lies_below_them(place: Place) -> None:
    folder = Folder(place.uri("w"))
    for key in KEYS:
        folder.write(key, b"12")
    assert folder.names() == ["a-.jpg", "a0.jpg", "z.jpg"]
    assert folder.folders() == ["_done", "a", "a b", "x"]
    assert (folder.folders("a"), folder.folders("nowhere"), folder.names("nowhere")) == (["b"], [], [])
    assert folder.exists("x/y")
    assert list(walk(folder.filesystem, folder.path)) == [(key, 2) for key in KEYS]
    folder.remove_folder("x")
    folder.remove_folder("x")
    assert "x" not in folder.folders()
    folder.check_writable()
    assert folder.modified("z.jpg") is not None


def test_markers_of_folders_are_neither_files_nor_lost(place: Place) -> None:
    folder = Folder(place.uri("w"))
    folder.write("a.jpg", b"12")
    folder.filesystem.create_dir(f"{folder.path}/arrow/empty.jpg")
    for marker in ("w/", "w/console/", "w/console/full/"):
        place.put(marker, b"-")
    folder.write("console/full/b.jpg", b"12")
    assert folder.names() == ["a.jpg"]
    assert folder.sizes() == {"a.jpg": 2}
    assert folder.folders() == ["arrow", "console"]
    assert folder.folders("console") == ["full"]
    assert sorted(walk(folder.filesystem, folder.path)) == [("a.jpg", 2), ("console/full/b.jpg", 2)]


def test_a_key_with_an_empty_name_in_it_is_told_and_the_others_are_read(place: Place) -> None:
    for key in ("p/a.jpg", "p//b.jpg", "p/c/d.jpg"):
        place.put(key, b"x")
    records = list(FolderSource(place.uri("p")).records())
    assert [record.image_id for record in records if record.container == "file"] == ["a.jpg", "c/d.jpg"]
    [broken] = [record for record in records if record.container == "broken"]
    assert "a folder without a name" in str(broken.reason)


def test_globs_tables_shards_and_masks_are_found_in_folders(place: Place, tmp_path: Path) -> None:
    for name in ("t/p=1/a.parquet", "t/p=2/b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"image": [encode_image(1), encode_image(2)]}), tmp_path / name)
    write_shard(tmp_path / "s/x/0.tar", images(3))
    write_shard(tmp_path / "s/y/1.tar", images(2, 3))
    for name in ("i/a/1.jpg", "i/b/2.jpg", "m/a/1.png", "m/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(encode_image(1))
    upload(tmp_path, place.uri("all"))
    assert [record.image_id for record in FolderSource(place.uri("all/i/*/[12].jpg")).records()] == [
        "a/1.jpg",
        "b/2.jpg",
    ]
    assert ParquetSource(place.uri("all/t")).containers() == ["p=1/a.parquet", "p=2/b.parquet"]
    assert WebDatasetSource(place.uri("all/s")).containers() == ["x/0.tar", "y/1.tar"]
    assert WebDatasetSource(place.uri("all/s/{x,y}/*.tar")).containers() == ["x/0.tar", "y/1.tar"]
    pairs = FolderPairsSource(place.uri("all/i"), place.uri("all/m"), 3).records()
    assert [pair.annotation for pair in pairs] == ["a/1.png", "b/2.png"]


def test_a_delta_table_is_known_by_its_log(place: Place, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    rows = pa.table({"image": pa.array([b"1", b"2"], pa.binary())})
    deltalake.write_deltalake(str(tmp_path / "d"), rows)
    deltalake.write_deltalake(str(tmp_path / "d"), rows.slice(1), mode="overwrite")
    upload(tmp_path / "d", place.uri("d"))
    files = ParquetSource(str(tmp_path / "d")).containers()
    assert ParquetSource(place.uri("d")).containers() == files
    assert len(files) == 1


def test_an_export_and_corrections_in_a_bucket_are_those_on_a_disk(place: Place, tmp_path: Path) -> None:
    results = {name: segmentation(number) for number, name in enumerate(images(6))}
    for name, data in images(6).items():
        (tmp_path / name).write_bytes(data)
    write_labels(tmp_path / "labels", results, addresses={name: str(tmp_path / name) for name in results})
    upload(tmp_path / "labels", place.uri("labels"))
    task = Export(ExportOptions("mmseg", val_share=0.4))
    run_here(tmp_path / "labels", task, tmp_path / "out")
    assert run_here(place.uri("labels"), task, place.uri("out"))["written"] == 6
    there = Folder(place.uri("out"))
    for name, _ in walk(pafs.LocalFileSystem(), str(tmp_path / "out")):
        if name != "run.json":
            assert there.read(name) == (tmp_path / "out" / name).read_bytes(), name
    labels = open_labels(place.uri("labels"))
    classes = Classes(labels.class_names, labels.ignore_index)
    report = compare(labels, read_corrections(Folder(place.uri("out/ann_dir")), classes))
    assert (report["images"], report["changed"]) == (6, 0)


def test_a_run_from_bucket_to_bucket_goes_on_after_a_stop(place: Place) -> None:
    photos = Folder(place.uri("photos"))
    names = sorted(f"{'ab'[number % 2]} c/{number % 3}/{number:02d}.jpg" for number in range(30))
    for number, name in enumerate(names):
        photos.write(name, encode_image(number))
    photos.write("broken.jpg", b"broken")
    job = replace(mean_job(place.uri("out"), FolderSource(photos.uri)), shard_size=8)

    class Stopped(PlainExecution):
        def merge(self, part: str) -> None:
            raise StorageError("stopped")

    with pytest.raises(StorageError, match="stopped"):
        run_plain(job, execution=Stopped)
    parts = job.output.folders(FRAGMENTS)
    assert sum(len(job.output.names(f"{FRAGMENTS}/{part}")) for part in parts) > 0
    again: list[PlainExecution] = []

    class Kept(PlainExecution):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            again.append(self)

    _, _, summary = run_plain(job, execution=Kept)
    slices = [piece for unit in again[0].read if not isinstance(unit, ShardTask) for piece in unit]
    assert 0 < sum(piece.stop - piece.start for piece in slices) < 31
    assert (summary["images"], summary["labelled"], summary["failed"]) == (31, 30, 1)
    assert sorted(row["image_id"] for row in rows_of(job.output, "means")) == names
    assert not job.output.exists(FRAGMENTS)
    sizes = job.output.sizes("means").items()
    assert summary["files"] == {f"means/{name}": size for name, size in sizes}
    assert verify_output(job.output).problems == []
    photos.write("later/new.jpg", encode_image(31))
    assert run_plain(job)[2]["images"] == 32


def test_weights_are_downloaded_once_and_again_when_they_change(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = Folder(place.uri("models"))
    models.write("clip.pt", b"a" * 3_000_000)
    kept, _ = fetch(place.uri("models/clip.pt"))
    kept.write_bytes(b"kept")  # what would be replaced if it were fetched
    assert fetch(place.uri("models/clip.pt"))[0].read_bytes() == b"kept"
    models.write("clip.pt", b"b" * 3_000_000)
    assert fetch(place.uri("models/clip.pt"))[0].read_bytes() == b"b" * 3_000_000


def test_a_missing_bucket_is_named(place: Place) -> None:
    folder = Folder(place.uri("x", "nowhere"))
    with pytest.raises(StorageError, match=r"cannot write a under gs://nowhere/x: no such bucket"):
        folder.write("a", b"1")
    with pytest.raises(FileNotFoundError):
        folder.read("a")


# --- what only a store of our own does -------------------------------------------------------------------------


def test_a_folder_is_listed_page_by_page_and_once_for_all_folders_in_it(store: GoogleStore) -> None:
    keys = [f"{number % 10}/{number:04d}.jpg" for number in range(250)]
    for key in keys:
        store.put(f"p/{key}", b"x")
    store.change(page_size=100)
    source = open_source(store.uri("p"), lambda: FolderSource(store.uri("p")), RunOptions("out"))
    assert len([line for line in store.asked() if "/o?" in line]) == 1  # which says that this is a folder
    assert [record.image_id for record in source.records()] == sorted(keys)
    assert len([line for line in store.asked() if "/o?" in line]) == 1 + 3


def test_images_are_read_side_by_side(store: GoogleStore) -> None:
    store.put("p/a.jpg", b"image")
    store.change(slow_s=0.2)
    with ThreadPoolExecutor(6) as threads:
        read = threads.map(lambda _: read_inside(store.uri("p"), "corpus/p/a.jpg", 10, 60.0), range(6))
        assert set(read) == {b"image"}
    assert store.most_reading() > 1
    with pytest.raises(ImageError, match=r"longer than max_bytes \(3\)"):
        read_inside(store.uri("p"), "corpus/p/a.jpg", 3, 60.0)


def test_an_empty_folder_is_told_with_what_lies_in_it(store: GoogleStore) -> None:
    Folder(store.uri("p")).write("notes.txt", b"-")
    with pytest.raises(
        StorageError, match=r"no image in gs://corpus/p \(1 other files passed over: 1 .txt\)"
    ):
        list(FolderSource(store.uri("p")).records())


def test_the_command_labels_from_bucket_to_bucket_with_weights_of_a_hub(
    ray_session: None, store: GoogleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number, name in enumerate(("a.jpg", "b/c.jpg")):
        store.put(f"photos/{name}", encode_image(number))
    flags = (
        "--vocabulary cat,dog --model demo --host clearclip --actors 1 --finish-actors 0 --previews 1 --plain"
    )
    windows = "--windows.short_side 32 --windows.size 32 --windows.stride 32"
    places = ["--images", store.uri("photos"), "--output", store.uri("out")]
    with running_hub(monkeypatch) as hub:
        hub.files = {"demo.safetensors": demo_weights_path().read_bytes()}
        weights = hub.uri("demo.safetensors")
        command = ["label", *places, "--pretrained", weights, *flags.split(), *windows.split()]
        assert cli.main(command) == 0
    output = Folder(store.uri("out"))
    run = json.loads(output.read("run.json"))
    assert run["starts"][0]["weights"] == weights
    assert run["identity"] | hash_weights(ModelConfig("demo"), None) == run["identity"]
    assert sorted(open_labels(output.uri).arrow.to_table()["image_id"].to_pylist()) == ["a.jpg", "b/c.jpg"]
    assert output.exists("_previews/index.html")
    assert cli.main(["verify", output.uri, "--content"]) == 0


def test_a_store_that_fails_for_a_moment_is_asked_again(store: GoogleStore) -> None:
    folder = Folder(store.uri("p") + _QUICK)
    folder.write("a/b.jpg", b"x")
    actions: dict[int, Action] = {
        503: lambda: read_inside(folder.uri, f"{folder.path}/a/b.jpg", 10, 60.0),
        504: lambda: list(walk(folder.filesystem, folder.path)),
    }
    for status, action in actions.items():
        store.change(3, [status])
        assert action()
        assert store.faults_left() == []


def test_a_table_whose_first_byte_does_not_come_is_opened_again(store: GoogleStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encode_image(1)]}), tmp_path / "t.parquet")
    upload(tmp_path, store.uri("t"))
    opened = Folder(store.uri("t") + _QUICK).open("t.parquet")
    store.change(3, [503])
    with pytest.raises(TransferError, match="no answer from gs://corpus") as caught, blamed_on(store.uri()):
        opened.size()
    assert caught.value.transient
    assert store.faults_left() == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, r"unauthenticated \({}\) from gs://corpus: Unauthorized"),
        (403, r"permission denied \({}\) from gs://corpus: Forbidden"),
        (412, r"failed precondition \({}\) from gs://corpus: Precondition Failed"),
    ],
)
def test_what_a_store_refuses_is_one_line(store: GoogleStore, status: int, told: str) -> None:
    folder = Folder(store.uri("p"))
    actions: dict[str, Action] = {
        "CreateResumableUpload": lambda: folder.write("a", b"x"),
        "ReadObject": lambda: folder.read("a"),
        "ListObjects": folder.folders,
    }
    for operation, action in actions.items():
        store.change(3, [status] * 9)
        with pytest.raises(StorageError, match=f"gs://corpus/p: {told.format(operation)}$"):
            action()
        assert len(store.faults_left()) == 8
