import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest

from ovss_core.errors import ConfigError, StorageError
from pipelines.demonstration.formats import SceneShard, encode_scene, write_webdataset
from pipelines.faults import Failure
from pipelines.run.manifest import prepare_manifest, read_manifest, read_part, refresh_manifest
from pipelines.run.options import SourceOptions
from pipelines.run.reading import ReadImages
from pipelines.run.shards import ShardReader
from pipelines.run.work_units import ShardTask, pack_units
from pipelines.sources import FolderSource, ImageRecord, ParquetSource, Source, WebDatasetSource
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.listing import expand_braces, matches
from pipelines.sources.promises import Promises
from pipelines.sources.tar_stream import ImageFields, TarEnd, TarImage, stream_tar
from pipelines.storage import Folder


def read_everything(source: Source, output: Path, **options: object) -> dict[str, bytes | str]:
    """Return the bytes of every listed image, or the reason for which there are none."""
    manifest = prepare_manifest(Folder(str(output)), source, 7)
    found: dict[str, bytes | str] = {}
    tasks = [ShardTask(number, manifest.containers[number], b"", {}) for number in manifest.unlisted]
    fields = getattr(source, "fields", None)
    fetcher = ImageFetcher(source.uri, **options)  # type: ignore[arg-type]
    reader = ReadImages(str(output), fetcher, fields=fields)
    for table in reader.read(pa.table({"unit": [row["unit"] for row in pack_units(tasks)]})) if tasks else ():
        for row in table.to_pylist():
            found[row["image_id"]] = row["failure"]["reason"] if row["failure"] else row["image"]
    if tasks:
        assert len(found) == refresh_manifest(Folder(str(output)), manifest).images
        return found
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


def test_a_sample_gives_one_picture_and_a_flag_names_its_field(tmp_path: Path) -> None:
    sample = {"1.jpg": b"picture", "1.mask.png": b"mask", "1.json": b"{}", "1.png": b"other"}
    write_tar(tmp_path / "s.tar", sample)
    by_itself = SourceOptions(webdataset=str(tmp_path)).open()
    assert read_everything(by_itself, tmp_path / "1") == {"s.tar/1": b"picture"}
    assert read_manifest(Folder(str(tmp_path / "1"))).ignored == 3
    named = SourceOptions(webdataset=str(tmp_path), image_field="mask.png").open()
    assert read_everything(named, tmp_path / "2") == {"s.tar/1": b"mask"}
    assert by_itself.describe() != named.describe()
    with pytest.raises(ConfigError, match="--image-field goes with --webdataset"):
        SourceOptions(images=str(tmp_path), image_field="jpg").open()


def test_shards_of_drawn_scenes_hold_as_many_images_as_scenes(tmp_path: Path) -> None:
    write_webdataset(Folder(str(tmp_path / "s")), SceneShard(0, 0, 3, 1, 32, "png"))
    source = WebDatasetSource(str(tmp_path / "s"))
    scenes = {
        f"scenes-000000.tar/{n:09d}": encode_scene(SceneShard(0, 0, 3, 1, 32, "png"), n) for n in range(3)
    }
    assert read_everything(source, tmp_path / "out") == {key: scene.image for key, scene in scenes.items()}


def test_shards_are_taken_by_every_name_that_tars_have(tmp_path: Path) -> None:
    names = ["a.tar", "b.TAR", "c.tar.gz", "d.tgz", "e.tar.bz2", "f.tbz2", "g.tar.xz", "h.txz", "i.tar.zst"]
    for name in [*names, "notes.txt", "tar", "x.gz", "a.tar.part"]:
        (tmp_path / name).write_bytes(b"1")
    assert WebDatasetSource(str(tmp_path)).containers() == sorted(names)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux says were read")
def test_listing_shards_reads_nothing_inside_them(tmp_path: Path) -> None:
    for shard in range(20):
        write_tar(tmp_path / f"{shard:02d}.tar", {f"{n}.jpg": bytes(20_000) for n in range(20)})

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    assert len(WebDatasetSource(f"{tmp_path}/{{00..19}}.tar").containers()) == 20
    assert bytes_read() - before < sum(path.stat().st_size for path in tmp_path.iterdir()) / 1000


def test_a_shard_that_a_range_promises_and_nobody_finds_is_a_failure_of_its_own(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        write_tar(tmp_path / f"train-{number:03d}.tar", {f"{number}.jpg": b"1"})
    source = WebDatasetSource(f"{tmp_path}/train-{{000..004}}.tar")
    assert source.missing == ("train-002.tar", "train-004.tar")
    assert source.containers() == [f"train-{number:03d}.tar" for number in range(5)]
    found = read_everything(source, tmp_path / "out")
    assert {key for key, value in found.items() if value == b"1"} == {
        f"train-00{n}.tar/{n}" for n in (0, 1, 3)
    }
    assert found["train-002.tar"] == f"the shard is missing: there is no {tmp_path}/train-002.tar"
    with pytest.raises(StorageError, match="no tar shard in"):
        WebDatasetSource(f"{tmp_path}/valid-{{000..004}}.tar")
    with pytest.raises(ConfigError, match=r"spell out 1,000,000,000 names"):
        WebDatasetSource(f"{tmp_path}/{{000000000..999999999}}.tar")


def test_a_shard_whose_name_is_no_text_is_a_failure_that_says_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "s/a.tar", {"1.jpg": b"1"})
    with open(os.fsencode(tmp_path / "s") + b"/\xff.tar", "wb") as file:  # noqa: PTH123
        file.write((tmp_path / "s/a.tar").read_bytes())
    found = read_everything(WebDatasetSource(str(tmp_path / "s")), tmp_path / "out")
    assert found["a.tar/1"] == b"1"
    assert "rename such a file" in str(found["\\xff.tar"])


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("a-{0..2}.tar", ["a-1.tar"]),
        ("{a,b,c}-0.tar", ["c-0.tar"]),
        ("{a,b}-{0..2}.tar", ["a-1.tar", "b-1.tar", "b-2.tar"]),
        ("a-{0..2}.{tar,tgz}", ["a-1.{tar,tgz}"]),
        ("a-{0..2}*.tar", ["a-1*.tar"]),
        ("**/{train,val,test}/*.tar", ["**/test/*.tar"]),
        ("train/{0..1}/[a-z]?.tar", ["train/1/[a-z]?.tar"]),
        ("*.tar", []),
        ("a-{0,2}{,b}.tar", []),
        ("", []),
    ],
)
def test_what_a_pattern_spells_out_is_promised(pattern: str, missing: list[str]) -> None:
    names = ["a-0.tar", "a-2.tar", "a-2b.tar", "b-0.tar", "train/0/aa.tar", "x/train/1.tar", "val/2.tar"]
    assert list(Promises(pattern).missing(names)) == missing


def test_a_file_whose_name_looks_like_a_range_promises_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-{0..3}.tar", {"1.jpg": b"1"})
    assert WebDatasetSource(str(tmp_path / "s-{0..3}.tar")).containers() == ["s-{0..3}.tar"]
    assert WebDatasetSource(str(tmp_path)).missing == ()


def test_shards_are_promised_below_a_relative_path_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "d/1.tar", {"1.jpg": b"1"})
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "d/{1..2}.tar",
        "./d/{1..2}.tar",
        "../*/d/{1..2}.tar",
        f"file://{tmp_path}/d/{{1..2}}.tar",
    ):
        assert [name.rpartition("/")[2] for name in WebDatasetSource(pattern).missing] == ["2.tar"]
    monkeypatch.chdir(tmp_path / "d")
    for pattern in ("{1..2}.tar", "./{1..2}.tar"):
        assert WebDatasetSource(pattern).missing == ("2.tar",)


def test_a_shard_of_a_server_that_states_no_length_is_streamed() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _WithoutLength) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        reader = ShardReader(Folder("out"), f"http://127.0.0.1:{server.server_port}", ImageFields(), 1000, 7)
        with reader.open("s.tar") as stream:
            image, end = stream_tar(stream, ImageFields(), 1000)
        server.shutdown()
    assert isinstance(image, TarImage)
    assert (image.key, image.data) == ("1", b"over the network")
    assert end == TarEnd(1, 0, None)


class _WithoutLength(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("1.jpg")
            entry.size = len(b"over the network")
            archive.addfile(entry, io.BytesIO(b"over the network"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(buffer.getvalue())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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
    assert "cannot be read to its end" in str(found["s.tar"])


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


def test_a_listing_that_was_cut_short_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.id_set._TOGETHER", 1000)

    class Endless:
        uri, ignored = "/", 0

        def describe(self) -> dict[str, str]:
            return {"uri": "/"}

        def containers(self) -> None:
            return None

        def records(self, skip: object = ()) -> object:
            yield from (ImageRecord(f"{n}", "/", "broken", reason="-") for n in range(9000))
            raise KeyboardInterrupt

    output = Folder(str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        prepare_manifest(output, Endless(), 2000)  # type: ignore[arg-type]
    assert output.names("_manifest") == [f"part-0000{number}.pq" for number in range(4)]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"1")
    manifest = prepare_manifest(output, FolderSource(str(tmp_path / "images")), 2)
    assert list(manifest.parts.values()) == [1]
    assert read_part(output, "part-00000")["image_id"].to_pylist() == ["a.jpg"]
