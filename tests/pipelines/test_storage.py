import threading
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from ovss_core.errors import StorageError
from pipelines.storage import Folder, join_uri, open_storage, redact, walk


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
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    yield f"s3://key:secret@bucket{{}}?endpoint_override=127.0.0.1:{port}&scheme=http"
    server.stop()


def test_an_object_store_reads_lists_and_removes_like_a_folder(bucket: str) -> None:
    folder = Folder(bucket.format("/run"))
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
