"""`--images` given a list, a COCO file, a web address or something else."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import ConfigError, StorageError
from pipelines.faults import Failure
from pipelines.run.manifest import prepare_manifest, read_part
from pipelines.run.options import SourceOptions
from pipelines.sources import FolderSource, Source
from pipelines.sources.fetch import ImageFetcher
from pipelines.storage import Folder
from tests.pipelines.loopback import BODY, LoopbackServer, serving
from tests.pipelines.stores import running_store


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def read(source: Source, output: Path) -> dict[str, bytes | str]:
    manifest = prepare_manifest(Folder(str(output)), source, 3)
    found: dict[str, bytes | str] = {}
    with ThreadPoolExecutor(2) as threads:
        for part in manifest.parts:
            rows = read_part(Folder(str(output)), part).to_pylist()
            fetcher = source.fetcher(1 << 28, 5.0)
            for row, value in zip(rows, fetcher.fetch(rows, threads), strict=True):
                assert row["image_id"] not in found
                found[row["image_id"]] = value.reason if isinstance(value, Failure) else value
    assert len(found) == manifest.images
    return found


def test_a_text_list_is_read_line_by_line_relative_to_its_folder(
    tmp_path: Path, server: LoopbackServer
) -> None:
    make(tmp_path, "lists/a.jpg", "b/ü b.jpg", "elsewhere.bin")
    lines = [
        "\ufeff# the training images",
        "a.jpg",
        "",
        "  ../b/ü b.jpg\t",
        "./a.jpg",
        "a.jpg",
        "gone.jpg",
        f"{tmp_path}/elsewhere.bin",
        f"file://{tmp_path}/b/%C3%BC%20b.jpg",
        f"http://{server.host}/good",
        f"http://{server.host}/404.jpg",
    ]
    (tmp_path / "lists/train.TXT").write_text("\r\n".join(lines), encoding="utf-8")
    source = SourceOptions(images=str(tmp_path / "lists/train.TXT")).open()
    assert read(source, tmp_path / "out") == {
        "a.jpg": b"lists/a.jpg",
        "../b/ü b.jpg": "b/ü b.jpg".encode(),
        "gone.jpg": f"no such file: {tmp_path}/lists/gone.jpg",
        f"{tmp_path}/elsewhere.bin": b"elsewhere.bin",
        f"file://{tmp_path}/b/%C3%BC%20b.jpg": "b/ü b.jpg".encode(),
        f"http://{server.host}/good": BODY,
        f"http://{server.host}/404.jpg": f"HTTP 404 Not Found from {server.host}",
    }
    assert source.describe() == {"kind": "list", "uri": f"{tmp_path}/lists/train.TXT"}


def test_names_that_no_file_can_have_cost_themselves_alone(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    names = ["half\ud800.jpg", "file:///half\ud800.jpg", "file:///caf\udce9.jpg", "a.jpg"]
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert read(SourceOptions(images=str(tmp_path / "names.json")).open(), tmp_path / "json") == {
        "half\\ud800.jpg": "the name holds half of a character (a surrogate)",
        "file:///half\\ud800.jpg": "the name holds bytes that are no UTF-8; write them as %XX",
        "file:///caf\\xe9.jpg": "the name holds bytes that are no UTF-8; write them as %XX",
        "a.jpg": b"a.jpg",
    }
    (tmp_path / "names.txt").write_bytes(b"file:///caf\xe9.jpg\na.jpg\n")
    assert read(SourceOptions(images=str(tmp_path / "names.txt")).open(), tmp_path / "txt") == {
        "file:///caf\\xe9.jpg": "the name holds bytes that are no UTF-8; write them as %XX",
        "a.jpg": b"a.jpg",
    }


def test_secrets_of_listed_addresses_stay_in_the_list(tmp_path: Path, server: LoopbackServer) -> None:
    address = f"http://jo:S3CR3T@{server.host}/good"
    lines = [
        "# signed",
        f"{address}?sig=S1GN",
        f"{address}?sig=S2GN",
        f" {address}?sig=S1GN",
        f"{address}#T0KEN",
    ]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    source = SourceOptions(images=str(path)).open()
    plain = f"http://{server.host}/good"
    assert read(source, tmp_path / "out") == dict.fromkeys((plain, f"{plain}#2", f"{plain}#3"), BODY)
    assert "/good?sig=S2GN" in server.targets
    for part in (tmp_path / "out/_manifest").glob("*.pq"):
        told = str(pq.read_table(part).to_pylist())
        assert not any(secret in told for secret in ("S3CR3T", "S1GN", "S2GN", "T0KEN"))
    path.write_text(path.read_text().replace("S2GN", "S4GN"))
    rows = read_part(Folder(str(tmp_path / "out")), "part-00000").to_pylist()
    with ThreadPoolExecutor(2) as threads:
        first, second, third = ImageFetcher(source.uri).fetch(rows, threads)
    assert (first, third) == (BODY, BODY)
    assert isinstance(second, Failure)
    assert "the list of images changed after it was listed" in second.reason


def test_images_written_into_a_list_are_decoded_and_never_repeated(tmp_path: Path) -> None:
    encoded = base64.b64encode(BODY).decode()
    path = tmp_path / "list.txt"
    path.write_text(f"data:image/jpeg;base64,{encoded}\nDATA:image/jpeg;base64,{encoded[:-4]}\ndata:,x\n")
    found = read(SourceOptions(images=str(path)).open(), tmp_path / "out")
    assert found == {
        "data:image/jpeg;base64": BODY,
        "DATA:image/jpeg;base64": BODY[: len(base64.b64decode(encoded[:-4]))],
        "data:": "a data: address without base64; ovss takes data:image/...;base64 or bytes",
    }
    for part in (tmp_path / "out/_manifest").glob("*.pq"):
        assert encoded[:12] not in str(pq.read_table(part).to_pylist())


def test_secrets_of_addresses_in_a_table_stay_in_the_table(tmp_path: Path, server: LoopbackServer) -> None:
    plain = f"http://{server.host}/good"
    addresses = [f"http://jo:S3CR3T@{server.host}/good?sig=S1GN", f"{plain}?sig=S2GN", plain]
    pq.write_table(pa.table({"url": addresses}), tmp_path / "t.parquet")
    for name, id_column in (("plain", None), ("named", "url")):
        source = SourceOptions(
            parquet=str(tmp_path / "t.parquet"), image_column="url", id_column=id_column
        ).open()
        assert list(read(source, tmp_path / name).values()) == [BODY] * 3
        told = str([pq.read_table(part).to_pylist() for part in (tmp_path / name / "_manifest").glob("*.pq")])
        assert not any(secret in told for secret in ("S3CR3T", "S1GN", "S2GN"))
        assert told.count(f"'uri': '{plain}'") == 3


def test_lines_that_are_no_text_name_files_too(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff.jpg\n" + b"x" * 200_000 + b".jpg\n\xff.jpg")
    with open(f"{tmp_path}/".encode() + b"\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"1")
    found = read(SourceOptions(images=str(tmp_path / "list.txt")).open(), tmp_path / "out")
    assert found.pop("\\xff.jpg") == b"1"
    assert list(found.values()) == ["the line is too long for an address"]


def test_new_lines_of_a_list_are_added_to_the_run(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    source, output = SourceOptions(images=str(tmp_path / "list.txt")).open(), Folder(str(tmp_path / "out"))
    assert prepare_manifest(output, source, 7).images == 1
    (tmp_path / "list.txt").write_text("b.jpg\na.jpg\n")
    manifest = prepare_manifest(output, source, 7)
    assert (manifest.images, manifest.appended, manifest.gone) == (2, 1, 0)


def test_a_list_in_a_store_names_objects_of_the_store(tmp_path: Path) -> None:
    with running_store() as store:
        store.client.put_object(Bucket="bucket", Key="lists/a.txt", Body=b"../i/\xc3\xbc #1.jpg\nno.jpg\n")
        store.client.put_object(Bucket="bucket", Key="i/ü #1.jpg", Body=b"1")
        found = read(SourceOptions(images=store.uri("/lists/a.txt")).open(), tmp_path / "out")
    assert found["../i/ü #1.jpg"] == b"1"
    assert found["no.jpg"].startswith("no such file")  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["annotations/instances_val2017.json", "val2017/labels.json", "coco.json"])
def test_a_coco_file_gives_its_images(tmp_path: Path, place: str) -> None:
    make(tmp_path, "val2017/1.jpg", "val2017/2.jpg")
    prefix = "val2017/" if place == "coco.json" else ""
    images = [
        {"id": n, "file_name": f"{prefix}{n}.jpg", "coco_url": f"http://no.invalid/{n}.jpg"}
        for n in (1, 2, 2, 3)
    ]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps({"images": images, "annotations": []}))
    found = list(read(SourceOptions(images=str(tmp_path / place)).open(), tmp_path / "out").values())
    assert found[:2] == [b"val2017/1.jpg", b"val2017/2.jpg"]
    assert str(found[2]).startswith("no such file: ")
    assert len(found) == 3


def test_a_coco_file_without_its_images_is_fetched_or_says_where_it_looked(
    tmp_path: Path, server: LoopbackServer
) -> None:
    path = tmp_path / "captions.json"
    path.write_text(
        json.dumps({"images": [{"file_name": "1.jpg", "coco_url": f"http://{server.host}/good"}]})
    )
    assert list(read(SourceOptions(images=str(path)).open(), tmp_path / "out").values()) == [BODY]
    path.write_text(json.dumps({"images": [{"file_name": "1.jpg"}]}))
    with pytest.raises(
        StorageError, match=r"such as 1\.jpg, lies in its folder or in images, captions, \.\./images"
    ):
        list(SourceOptions(images=str(path)).open().records())


def test_a_json_list_of_paths_is_a_list(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "list.json").write_text('["a.jpg", "a.jpg", "gone.jpg"]')
    found = read(SourceOptions(images=str(tmp_path / "list.json")).open(), tmp_path / "out")
    assert found["a.jpg"] == b"a.jpg"
    assert list(found) == ["a.jpg", "gone.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", "", "a.tar is a tar archive: give it as --webdataset"),
        ("a.TAR.GZ", "", "is a tar archive: give it as --webdataset"),
        ("a.parquet", "", "a.parquet is a Parquet table: give it as --parquet"),
        ("a.zip", "", "is an archive: unpack it"),
        ("a.csv", "", "is a table: give a .txt list"),
        ("a.mp4", "", "is a video: take its frames out"),
        ("a.json", "{}", "neither a list of paths nor a COCO file"),
        ("a.json", "[1]", "neither a list of paths nor a COCO file"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
    ],
)
def test_another_container_says_which_flag_takes_it(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        list(SourceOptions(images=str(tmp_path / name)).open().records())


def test_names_of_lists_that_are_folders_or_missing_are_taken_for_what_they_are(tmp_path: Path) -> None:
    make(tmp_path, "a.txt/1.png", "a[1].txt/2.png")
    assert isinstance(SourceOptions(images=str(tmp_path / "a.txt")).open(), FolderSource)
    with pytest.raises(StorageError, match=rf"no such file: {tmp_path}/b\.txt"):
        SourceOptions(images=str(tmp_path / "b.txt")).open()
    (tmp_path / "c.txt").write_text("# nothing\n\n")
    with pytest.raises(StorageError, match="no image in"):
        prepare_manifest(
            Folder(str(tmp_path / "out")), SourceOptions(images=str(tmp_path / "c.txt")).open(), 7
        )


def test_a_web_address_is_one_image_and_its_secrets_are_not_written(
    tmp_path: Path, server: LoopbackServer
) -> None:
    source = SourceOptions(images=f"http://jo:S3CR3T@{server.host}/good?sig=S1GN").open()
    assert read(source, tmp_path / "out") == {f"http://{server.host}/good": BODY}
    assert "S1GN" not in str(read_part(Folder(str(tmp_path / "out")), "part-00000").to_pylist())
    for address in ("http://host/", "http://host", "http://host/*.jpg"):
        with pytest.raises(ConfigError, match=r"give a \.txt list of addresses"):
            SourceOptions(images=address).open()
    with pytest.raises(ConfigError, match="download it"):
        SourceOptions(images="http://host/list.txt").open()


def test_a_limit_of_no_seconds_is_refused() -> None:
    with pytest.raises(ConfigError, match="fetch_timeout_s is 0"):
        SourceOptions(images="x", fetch_timeout_s=0)
