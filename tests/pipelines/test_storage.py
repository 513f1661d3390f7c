import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from ovss_core.errors import StorageError
from pipelines import storage
from pipelines.faults import Failure
from pipelines.sources import FolderSource
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder, join_uri, open_storage, redact, walk
from pipelines.transport import patience, stores
from tests.pipelines.loopback import free_port
from tests.pipelines.stores import Store, running_store


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    folder, sizes, stop = Folder(str(tmp_path / "new")), set(), threading.Event()
    folder.write("deep/file", b"x" * 3_000_000)

    def watch() -> None:
        while not stop.is_set():
            sizes.add(len(folder.read("deep/file")))

    reader = threading.Thread(target=watch)
    reader.start()
    for _ in range(20):
        folder.write("deep/file", b"y" * 4_000_000)
    stop.set()
    reader.join()
    assert sizes <= {3_000_000, 4_000_000}
    assert [path.name for path in (tmp_path / "new/deep").iterdir()] == ["file"]


def test_names_leave_out_hidden_files_and_folders(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name in ("b", "a", ".hidden", "below/c"):
        folder.write(name, b"")
    assert (folder.names(), folder.folders(), folder.names("nowhere")) == (["a", "b"], ["below"], [])


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.remove("no")
    folder.remove_folder("no")
    folder.write("yes/file", b"1")
    folder.remove_folder("yes")
    assert not folder.exists("yes")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=f"cannot write .* under {tmp_path}/file"):
        Folder(str(tmp_path / "file")).check_writable()


def test_memory_is_refused_because_workers_do_not_share_it() -> None:
    with pytest.raises(StorageError, match="memory of one process"):
        open_storage("memory://bucket")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match="cannot open nosuch://somewhere"):
        open_storage("nosuch://somewhere")


def test_an_fsspec_protocol_works_and_replaces_files_whole(tmp_path: Path) -> None:
    folder = Folder(f"local://{tmp_path}/fs")
    assert isinstance(folder.filesystem, pafs.PyFileSystem)
    folder.write("a/b", b"1")
    folder.write("a/b", b"2")
    assert (folder.read("a/b"), folder.names("a")) == (b"2", ["b"])
    assert list(walk(folder.filesystem, folder.path)) == [("a/b", 1)]


def test_credentials_and_queries_are_not_written_down() -> None:
    uri = "s3://key:secret@bucket/folder?endpoint_override=host&scheme=http"
    assert redact(uri) == "s3://bucket/folder"
    assert join_uri(redact(uri), "a b/ü.jpg") == "s3://bucket/folder/a%20b/%C3%BC.jpg"
    assert join_uri("/data", "a b.jpg") == "/data/a b.jpg"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(stores, "_CLIENT_TRIES", 1)


def test_an_object_store_reads_lists_and_removes_like_a_folder(store: Store) -> None:
    folder = Folder(store.uri("/run"))
    assert not folder.exists("labels/a")
    folder.check_writable()
    folder.write("labels/a", b"1")
    folder.write("labels/a", b"22")
    folder.write("labels/below/ü b", b"3")
    assert folder.read("labels/a") == b"22"
    assert (folder.names("labels"), folder.folders("labels")) == (["a"], ["below"])
    assert list(walk(folder.filesystem, folder.path)) == [("labels/a", 2), ("labels/below/ü b", 1)]
    folder.remove_folder("labels")
    assert not folder.exists("labels/below/ü b")


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("/my folder/ü.jpg", "my folder/ü.jpg"),
        ("/my%20folder/%C3%BC.jpg", "my folder/ü.jpg"),
        ("/a#1.jpg", "a#1.jpg"),
        ("/100%.jpg", "100%.jpg"),
        ("/what?.jpg", "what?.jpg"),
        ("/what%3F.jpg", "what?.jpg"),
        ("/a+b&c=d.jpg", "a+b&c=d.jpg"),
    ],
)
def test_object_addresses_are_taken_as_they_are_typed(typed: str, key: str) -> None:
    assert open_storage(f"s3://bucket{typed}?region=eu&anonymous=true")[1] == f"bucket/{key}"
    assert open_storage(f"gs://bucket{typed.replace('?', '%3F')}")[1] == f"bucket/{key}"


def test_keys_and_tokens_may_hold_any_character_and_one_client_serves_a_bucket(store: Store) -> None:
    first, second = open_storage(store.uri("/a")), open_storage(store.uri("/b c"))
    assert first[0] is second[0]
    assert (first[1], second[1]) == ("bucket/a", "bucket/b c")


def test_an_option_that_s3_does_not_know_is_named() -> None:
    with pytest.raises(
        StorageError, match=r"option 'endpoint' that S3 storage does not know; .*endpoint_override"
    ):
        open_storage("s3://bucket/a?endpoint=localhost:9000")
    with pytest.raises(StorageError, match=r"anonymous .* 'maybe'; give true or false"):
        open_storage("s3://bucket/a?anonymous=maybe&region=eu")


def test_the_variables_of_aws_tools_name_the_endpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_address[1]}")
    store.client.put_object(Bucket="bucket", Key="by variable", Body=b"1")
    assert Folder("s3://k:s@bucket?region=us-east-2").read("by variable") == b"1"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_store_that_is_overloaded_for_a_moment_is_asked_again(
    store: Store, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder(store.uri("/patient"))
    for call in (
        lambda: folder.write("a", b"1"),
        lambda: folder.read("a"),
        lambda: folder.exists("a"),
        folder.names,
    ):
        with store.failing(status, times=4):
            call()
        assert store.asked >= 5
    assert folder.read("a") == b"1"
    assert "trying again" in caplog.text
    assert "S3CR3T" not in caplog.text


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, r"HTTP 403 access denied \(\w+\) from s3://bucket"),
        (400, "HTTP 400 Bad Request from s3://bucket"),
    ],
)
def test_a_store_that_refuses_is_one_line_at_once(store: Store, status: int, reason: str) -> None:
    folder = Folder(store.uri("/refused"))
    with (
        store.failing(status),
        pytest.raises(StorageError, match=f"^cannot read a under s3://bucket/refused: {reason}$"),
    ):
        folder.read("a")
    assert store.asked == 1


def test_a_store_that_stays_away_is_given_up_in_bounded_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(storage, "_CALL_S", 0.5)
    folder = Folder(store.uri("/away"))
    start = time.monotonic()
    with store.failing(0), pytest.raises(StorageError, match=r"cannot read a under .* did not finish within"):
        folder.read("a")
    nobody = Folder(f"s3://k:s@bucket/x?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=eu")
    monkeypatch.setattr(storage, "_CALL_S", 10.0)
    with pytest.raises(StorageError, match="cannot write a under s3://bucket/x: connection refused by"):
        nobody.write("a", b"1")
    assert time.monotonic() - start < 80


def test_a_bucket_that_is_not_there_is_one_line(store: Store) -> None:
    folder = Folder(store.uri("/x", bucket="nowhere"))
    with pytest.raises(StorageError, match="cannot write a under s3://nowhere/x: no such bucket") as caught:
        folder.write("a", b"1")
    assert "\n" not in str(caught.value)
    assert "S3CR3T" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="cannot read a under s3://nowhere/x: no such file"):
        folder.read("a")


def test_images_of_a_store_are_read_within_the_limit(store: Store) -> None:
    store.client.put_object(Bucket="bucket", Key="photos/ü #1?.jpg", Body=b"12345")
    source = FolderSource(store.uri("/photos"))
    [record] = source.records()
    assert (record.image_id, record.uri) == ("ü #1?.jpg", "s3://bucket/photos/%C3%BC%20%231%3F.jpg")
    row = {**{name: getattr(record, name) for name in record.__slots__}}
    addressed = {**row, "container": "uri", "path": store.uri("/photos/ü #1%3F.jpg")}
    missing = {**row, "path": "bucket/photos/no.jpg"}
    with ThreadPoolExecutor(4) as threads:
        fetcher = ImageFetcher(source.uri, timeout_s=5.0)
        with store.failing(503, times=4):
            assert fetcher.fetch([row], threads) == [b"12345"]
        there, linked, gone = fetcher.fetch([row, addressed, missing], threads)
        assert (there, linked) == (b"12345", b"12345")
        assert isinstance(gone, Failure)
        assert gone.error_type == "FileNotFoundError"
        with store.failing(403):
            [denied] = fetcher.fetch([row], threads)
        assert isinstance(denied, Failure)
        assert (denied.error_type, denied.reason) == (
            "PermissionError",
            "HTTP 403 access denied (HeadObject) from s3://bucket",
        )
        [large] = ImageFetcher(source.uri, max_bytes=4).fetch([row], threads)
        assert isinstance(large, Failure)
        assert "5 bytes, more than max_bytes (4)" in large.reason
        start = time.monotonic()
        with store.failing(0):
            [silent] = ImageFetcher(source.uri, timeout_s=0.5).fetch([row], threads)
        assert isinstance(silent, Failure)
        assert silent.error_type == "TimeoutError"
        assert time.monotonic() - start < 60


def test_keys_without_a_folder_name_are_told_and_markers_of_folders_passed_over(store: Store) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    for key, data in (
        ("k/a//b.jpg", b"1"),
        ("k/a/c.jpg", b"2"),
        ("k/m/", b""),
        ("k/m/d.jpg", b"3"),
        ("k/e.jpg/", b"4"),
        ("k/./f.jpg", b"5"),
    ):
        backend.put_object("bucket", key, data)
    found = {record.image_id: record.reason for record in FolderSource(store.uri("/k")).records()}
    assert [name for name, reason in found.items() if reason is None] == ["a/c.jpg", "m/d.jpg"]
    assert "without a name" in str(found.pop("a//"))
    assert "without a name" in str(found.pop("//"))
    assert "marker of a folder" in str(found.pop("e.jpg"))
    assert len(found) == 2


def test_a_local_file_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def noted(*given: object) -> None:
            order.append(name)
            real(*given)

        return noted

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, note(name, getattr(os, name)))
    Folder(str(tmp_path)).write("below/a", b"1")
    assert order == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_told_in_one_line_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"^cannot write a under {tmp_path}: no space left on device$"):
        Folder(str(tmp_path)).write("a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_was_killed_is_in_nobodys_way_and_goes_with_the_next(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write(".ovss_probe", b"")
    assert (folder.names(), folder.folders()) == ([], [])
    folder.check_writable()
    assert list(tmp_path.iterdir()) == []


def test_halves_that_a_kill_left_are_removed_when_they_are_old(tmp_path: Path) -> None:
    for name in (".1.part", ".2.part", "a.part", ".b"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / ".1.part", (0, 0))
    Folder(str(tmp_path)).remove_leftovers(older_than_s=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".2.part", ".b", "a.part"]
    Folder(str(tmp_path)).remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b", "a.part"]
