import base64
import datetime
import decimal
import errno
import io
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovss_core.errors import ConfigError, StorageError
from ovss_core.vocabulary import Vocabulary
from pipelines.faults import Failure
from pipelines.label.table import label_table
from pipelines.run.manifest import prepare_manifest
from pipelines.run.plan import plan_work
from pipelines.run.reading import ReadImages
from pipelines.run.work_units import pack_units
from pipelines.sources import ParquetSource
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.parquet import is_hidden
from pipelines.sources.parquet_file import TableFile
from pipelines.storage import Folder, redact, scrub

PICTURES = [b"\xff\xd8\xff" + bytes([n]) * (50 + n) for n in range(6)]


def read_all(source: ParquetSource, step: int = 16, **options: Any) -> dict[str, bytes | str]:
    """Return the bytes of every listed image, or the reason for which there are none."""
    rows = [asdict(record) for record in source.records()]
    fetcher = ImageFetcher(source.uri, source.image_column, **options)
    found: dict[str, bytes | str] = {}
    with ThreadPoolExecutor(2) as threads:
        for first in range(0, len(rows), step):
            chosen = rows[first : first + step]
            for row, value in zip(chosen, fetcher.fetch(chosen, threads), strict=True):
                assert row["image_id"] not in found
                found[row["image_id"]] = value.reason if isinstance(value, Failure) else value
    assert len(found) == len(rows)
    return found


def write(folder: Path, name: str, columns: dict[str, Any], **options: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name, **options)


class CountedFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Local files behind a protocol of their own, as a store is; counts the bytes that are read."""

    protocol = "counted"
    cachable = False
    bytes_read = 0
    faults = 0

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, block_size, **options)
        file = open(path, "rb")  # noqa: PTH123, SIM115 (closed by its reader)
        unbound = file.read

        class Counted(io.BufferedIOBase):
            def read(self, size: int | None = -1, /) -> bytes:
                if CountedFileSystem.faults:
                    CountedFileSystem.faults -= 1
                    raise OSError(errno.ECONNRESET, "503 Slow Down")
                data = unbound(-1 if size is None else size)
                CountedFileSystem.bytes_read += len(data)
                return data

            def seek(self, offset: int, whence: int = 0, /) -> int:
                return file.seek(offset, whence)

            def tell(self) -> int:
                return file.tell()

            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def close(self) -> None:
                file.close()
                super().close()

        return Counted()


@pytest.fixture
def counted() -> type[CountedFileSystem]:
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    CountedFileSystem.bytes_read = CountedFileSystem.faults = 0
    return CountedFileSystem


# --- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.list_(pa.uint8()),
        pa.large_list(pa.uint8()),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.dictionary(pa.int8(), pa.large_binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
        pa.struct([("bytes", pa.list_(pa.uint8()))]),
        pa.struct(
            [
                ("bytes", pa.dictionary(pa.int32(), pa.binary())),
                ("path", pa.dictionary(pa.int32(), pa.string())),
            ]
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_type_that_holds_bytes_gives_its_images(
    tmp_path: Path, kind: pa.DataType, dictionary: bool
) -> None:
    values: list[Any] = [*PICTURES, None, *PICTURES]
    if pa.types.is_struct(kind):
        values = [value and {"bytes": value, "path": f"{value[3]}.jpg"} for value in values]
    image = kind.field("bytes").type if pa.types.is_struct(kind) else kind
    if pa.types.is_list(image) or pa.types.is_large_list(image):
        values = [
            value and (list(value) if isinstance(value, bytes) else {"bytes": list(value["bytes"])})
            for value in values
        ]
    write(tmp_path, "t.parquet", {"image": _array(values, kind)}, use_dictionary=dictionary, row_group_size=5)
    found = list(read_all(ParquetSource(str(tmp_path)), step=4).values())
    assert found == [*PICTURES, "the image column is empty in this row", *PICTURES]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_struct(kind) and any(
        pa.types.is_dictionary(kind.field(place).type) for place in range(kind.num_fields)
    ):
        fields = [
            _array([value and value[entry.name] for value in values], entry.type)
            for entry in (kind.field(place) for place in range(kind.num_fields))
        ]
        mask = pa.array([value is None for value in values])
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=mask)
    return pa.array(values, kind)


@pytest.mark.parametrize("kind", [pa.binary(20), pa.list_(pa.uint8(), 20)], ids=str)
def test_values_of_one_length_are_images_too(tmp_path: Path, kind: pa.DataType) -> None:
    values = [bytes([n]) * 20 for n in range(4)]
    write(
        tmp_path,
        "t.parquet",
        {"image": pa.array([list(v) for v in values] if pa.types.is_nested(kind) else values, kind)},
    )
    assert list(read_all(ParquetSource(str(tmp_path))).values()) == values


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_type_of_text_gives_addresses(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    write(tmp_path, "t.parquet", {"path": _array(["a.jpg", None, f"{tmp_path}/a.jpg"], kind)})
    found = read_all(ParquetSource(str(tmp_path)))
    assert list(found.values()) == [b"1", "column 'path' is empty in this row", b"1"]


def test_a_column_with_a_dot_in_its_name_and_gaps_in_lists(tmp_path: Path) -> None:
    column = pa.array([[1, 2], [1, None], None], pa.list_(pa.uint8()))
    write(tmp_path, "t.parquet", {"my.image": column, "my": [1, 2, 3]})
    found = list(read_all(ParquetSource(str(tmp_path), "my.image")).values())
    assert found == [b"\1\2", "the list of bytes has gaps (nulls)", "the image column is empty in this row"]


def test_tensors_of_pixels_are_not_taken_for_files(tmp_path: Path) -> None:
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 4, 4, 3), np.uint8))
    write(tmp_path, "t.parquet", {"image": pixels})
    with pytest.raises(ConfigError, match=r"fixed_shape_tensor.*; images are bytes"):
        ParquetSource(str(tmp_path))


def test_the_hugging_face_struct_opens_the_path_where_bytes_are_missing(tmp_path: Path) -> None:
    (tmp_path / "data/files").mkdir(parents=True)
    (tmp_path / "data/files/x.jpg").write_bytes(b"linked")
    images = [
        {"bytes": b"1", "path": "gone.jpg"},
        {"bytes": None, "path": "files/x.jpg"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "http://[bad"},
    ]
    write(tmp_path, "data/t.parquet", {"image": images, "label": [1, 2, 3, 4]})
    source = ParquetSource(str(tmp_path / "data"))
    assert source.image_column == "image"
    assert read_all(source) == {
        "t.parquet#0": b"1",
        "t.parquet#1": b"linked",
        "t.parquet#2": "the image column is empty in this row",
        "t.parquet#3": "the address is malformed: its host or port cannot be read",
    }


def test_a_missing_or_unfit_column_is_named(tmp_path: Path) -> None:
    columns = {"number": [1], "bytes": [b"1"], "numbers": [[300]], "many": [["a"]]}
    write(tmp_path, "t.parquet", columns)
    with pytest.raises(
        ConfigError,
        match=r"no column 'byte' in .* \(did you mean 'bytes'\?\); give as --image-column one of number, bytes, numbers",
    ):
        ParquetSource(str(tmp_path), "byte")
    write(tmp_path, "named/t.parquet", {"number": [1], "scan": [b"1"], "note": ["a"]})
    with pytest.raises(ConfigError, match=r"holds the images\? give as --image-column one of scan, note$"):
        ParquetSource(str(tmp_path / "named"))
    write(tmp_path, "none/t.parquet", {"number": [1], "many": [["a"]]})
    with pytest.raises(ConfigError, match=r"no column of .* can hold images; its columns are number, many$"):
        ParquetSource(str(tmp_path / "none"))
    for name, kind in (("number", "int64"), ("numbers", "list<element: int64>")):
        with pytest.raises(ConfigError, match=rf"'{name}' .* is {kind}; images are bytes"):
            ParquetSource(str(tmp_path), name)
    with pytest.raises(ConfigError, match=r"no column 'key'"):
        ParquetSource(str(tmp_path), "bytes", "key")
    with pytest.raises(ConfigError, match=r"'many' .* is list.*; ids are text, numbers or bytes"):
        ParquetSource(str(tmp_path), "bytes", "many")


# --- addresses ---------------------------------------------------------------------------------------------


def test_absolute_relative_and_remote_addresses_are_opened(tmp_path: Path) -> None:
    (tmp_path / "data/tables/files").mkdir(parents=True)
    names = ["data/tables/files/x.jpg", "data/y.jpg", "other.jpg", "third.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    addresses = [
        *("files/x.jpg", "../y.jpg", f"{tmp_path}/other.jpg", f"file://{tmp_path}/third.jpg"),
        *(None, "", "  ", "files/no.jpg", "nul\0.jpg"),
    ]
    write(tmp_path, "data/tables/t.parquet", {"url": addresses})
    source = ParquetSource(str(tmp_path / "data"))
    found = list(read_all(source).values())
    assert found[:4] == [name.encode() for name in names]
    assert found[4:7] == ["column 'url' is empty in this row"] * 3
    assert "no.jpg" in str(found[7])
    assert isinstance(found[8], str)
    uris = [record.uri for record in source.records()]
    assert uris[1] == f"{tmp_path}/data/y.jpg"


def test_an_address_that_no_parser_takes_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    bad = ["http://[bad", "http://h:port/x.jpg", "nosuch://host/x.jpg", "s3://"]
    write(tmp_path, "t.parquet", {"url": ["a.jpg", *bad, "a.jpg"]})
    found = list(read_all(ParquetSource(str(tmp_path))).values())
    assert found[0] == found[-1] == b"1"
    assert len(found) == 6
    assert all(isinstance(reason, str) and reason for reason in found[1:-1])


def test_relative_addresses_in_a_store_keep_to_its_root(tmp_path: Path, counted: Any) -> None:
    (tmp_path / "set/tables").mkdir(parents=True)
    (tmp_path / "set/a.jpg").write_bytes(b"1")
    write(tmp_path, "set/tables/t.parquet", {"path": ["../a.jpg", "x/../../a.jpg"]})
    source = ParquetSource(f"counted://{tmp_path}/set")
    assert [record.path for record in source.records()] == [f"{tmp_path}/set/a.jpg"] * 2
    assert [record.uri for record in source.records()] == [redact(f"counted://{tmp_path}/set/a.jpg")] * 2
    assert list(read_all(source).values()) == [b"1", b"1"]


def test_text_that_is_not_utf8_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    column = pa.array([b"a.jpg", b"\xff\xfe.jpg", b"a.jpg"]).view(pa.string())
    write(tmp_path, "t.parquet", {"path": column})
    found = list(read_all(ParquetSource(str(tmp_path))).values())
    assert found == [b"1", "the address is not valid UTF-8", b"1"]


def test_data_addresses_are_decoded_and_bare_base64_is_named(tmp_path: Path) -> None:
    picture = PICTURES[5] * 30
    text = base64.b64encode(picture).decode()
    values = [
        f"data:image/jpeg;base64,{text}",
        text,
        f"DATA:image/png;charset=x;base64,{text[:80]}\n{text[80:]}",
        f"data:image/jpeg;base64,{text[:-3]}!",
        "data:image/svg+xml,%3Csvg/%3E",
        f"data:image/jpeg;base64,{text * 100}",
        "words " * 3000,
    ]
    write(tmp_path, "t.parquet", {"image": values})
    source = ParquetSource(str(tmp_path))
    found = list(read_all(source, max_bytes=100_000).values())
    assert found[0] == found[2] == picture
    reasons = [str(found[place]) for place in (1, 3, 4, 5, 6)]
    for reason, wanted in zip(
        reasons,
        [
            "looks like base64; ovss takes bytes or addresses",
            "no valid base64",
            "without base64",
            "max_bytes",
            "no address",
        ],
        strict=True,
    ):
        assert wanted in reason
        assert scrub(reason) == reason
    told = "".join(reasons) + "".join(
        f"{record.uri}{record.path}{record.reason}" for record in source.records()
    )
    assert text[:12] not in told


def test_long_texts_are_not_read_while_they_are_listed(tmp_path: Path, counted: Any) -> None:
    rng = np.random.default_rng(0)
    values = [f"data:image/png;base64,{base64.b64encode(rng.bytes(30_000)).decode()}" for _ in range(200)]
    write(tmp_path, "t.parquet", {"image": values})
    source = ParquetSource(f"counted://{tmp_path}")
    counted.bytes_read = 0
    assert len(list(source.records())) == 200
    assert counted.bytes_read < 0.015 * (tmp_path / "t.parquet").stat().st_size
    assert list(read_all(source).values()) == [base64.b64decode(value.partition(",")[2]) for value in values]


# --- files -------------------------------------------------------------------------------------------------


def test_names_with_underscores_and_dots_are_passed_over_and_partitions_taken(tmp_path: Path) -> None:
    taken = ["a.parquet", "b.pq", "c.PARQ", "d.snappy.parquet", "year=2024/_month=3/e.parquet"]
    passed = [
        *(
            "_temporary/0/f.parquet",
            "_delta_index/g.parquet",
            "sub/_SUCCESS",
            "sub/._x.parquet",
            "_metadata.parquet",
        ),
        *("sub/.hidden/h.parquet", "sub/_i.parquet"),
    ]
    for name in [*taken, *passed]:
        write(tmp_path, name, {"image": [name.encode()]})
    (tmp_path / "notes.txt").write_text("")
    source = ParquetSource(str(tmp_path))
    assert sorted(read_all(source).values()) == sorted(name.encode() for name in taken)
    assert source.ignored == 1
    found = ParquetSource(f"{tmp_path}/**/*.parquet").containers()
    assert sorted(found) == ["a.parquet", "d.snappy.parquet", "year=2024/_month=3/e.parquet"]
    assert ParquetSource(f"{tmp_path}/_temporary/0/*.parquet").containers() == ["f.parquet"]
    assert ParquetSource(f"{tmp_path}/_metadata.parquet").containers() == ["_metadata.parquet"]


def test_only_names_of_the_own_kind_are_asked_for_by_a_pattern() -> None:
    assert is_hidden("_a/.b", ["_*", "x"])
    assert not is_hidden("_a/b", ["_*", "x"])


def test_files_that_differ_keep_their_rows_or_say_why_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"linked")
    write(tmp_path, "a.parquet", {"image": [b"a0", b"a1"], "key": ["k0", "k1"]})
    write(tmp_path, "b.parquet", {"image": ["x.jpg"], "key": [7]})
    write(tmp_path, "c.parquet", {"image": [{"bytes": b"c0", "path": None}]})
    write(tmp_path, "d.parquet", {"image": [1.5, float("nan"), None], "key": ["n", "m", "o"]})
    write(tmp_path, "e.parquet", {"picture": [b"e0", b"e1"], "key": ["p", "q"]})
    write(tmp_path, "f.parquet", {"image": pa.array([], pa.binary()), "key": pa.array([], pa.string())})
    write(tmp_path, "g.parquet", {"image": pa.nulls(2), "key": ["g0", "g1"]})
    (tmp_path / "h.parquet").write_bytes(b"not parquet at all")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "i.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "j.parquet").write_bytes(b"")
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"])
    pq.write_table(twice, tmp_path / "k.parquet")
    write(tmp_path, "l.parquet", {"image": [b"l0"], "key": ["last"], "more": [1]})
    with caplog.at_level(logging.WARNING):
        found = read_all(ParquetSource(str(tmp_path), "image", "key"))
    reasons = {name: str(found.pop(f"{name}.parquet")) for name in "dehijk"}
    empty = "the image column is empty in this row"
    assert found == {
        **{"k0": b"a0", "k1": b"a1", "7": b"linked", "c.parquet#0": b"c0"},
        **{"g0": empty, "g1": empty, "last": b"l0"},
    }
    assert "is double in this file; none of its 3 rows" in reasons["d"]
    assert "no column 'image' (it has picture, key); none of its 2 rows" in reasons["e"]
    assert all("cannot be read" in reasons[name] for name in "hij")
    assert "2 columns named 'image'" in reasons["k"]
    assert "c.parquet: no column 'key'" in caplog.text


def test_a_first_file_without_the_column_does_not_decide(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", {"summary": [1]})
    write(tmp_path, "b.parquet", {"image": [b"1"]})
    source = ParquetSource(str(tmp_path))
    assert source.image_column == "image"
    assert read_all(source)["b.parquet#0"] == b"1"


def test_no_readable_file_is_an_error_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(StorageError, match="no readable Parquet file"):
        ParquetSource(str(tmp_path))
    (tmp_path / "a.parquet").rename(tmp_path / "a.csv")
    with pytest.raises(StorageError, match=r"no \.parquet file"):
        ParquetSource(str(tmp_path))


def test_rows_are_found_across_row_groups_and_files(tmp_path: Path) -> None:
    data = [b"%d" % n for n in range(100)]
    write(tmp_path, "a.parquet", {"bytes": data[:70]}, row_group_size=33)
    write(tmp_path, "b.parquet", {"bytes": data[70:]}, row_group_size=8)
    assert list(read_all(ParquetSource(str(tmp_path)), step=7).values()) == data


def test_many_files_are_listed_in_order(tmp_path: Path) -> None:
    for number in range(60):
        write(tmp_path, f"{number:02d}.parquet", {"image": [b"%d" % number] * 3})
    listed = [record.image_id for record in ParquetSource(str(tmp_path)).records()]
    assert listed == [f"{number:02d}.parquet#{row}" for number in range(60) for row in range(3)]


def test_a_store_that_fails_for_a_moment_is_asked_again(
    tmp_path: Path, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.transport.patience._FIRST_WAIT_S", 0.001)
    write(tmp_path, "a.parquet", {"image": PICTURES})
    source = ParquetSource(f"counted://{tmp_path}")
    counted.faults = 2
    assert list(read_all(source).values()) == PICTURES
    rows = [asdict(record) for record in source.records()]
    counted.faults = 100
    with pytest.raises(StorageError, match=r"connection reset"):
        list(source.records())  # a file that cannot be listed now must not become a failure for good
    with ThreadPoolExecutor(1) as threads:
        fetcher = ImageFetcher(source.uri, "image")
        failed = fetcher.fetch(rows, threads)
        counted.faults = 0
        assert fetcher.fetch(rows, threads) == PICTURES
    assert all(isinstance(value, Failure) and "connection reset" in value.reason for value in failed)


def test_a_file_that_may_not_be_read_costs_itself_alone(tmp_path: Path, counted: Any) -> None:
    write(tmp_path, "a.parquet", {"image": PICTURES})
    write(tmp_path, "b.parquet", {"image": PICTURES})
    source = ParquetSource(f"counted://{tmp_path}")
    (tmp_path / "a.parquet").unlink()
    found = read_all(source)
    assert list(found.values())[1:] == PICTURES
    assert "the Parquet file cannot be read" in str(found["a.parquet"])


# --- ids ---------------------------------------------------------------------------------------------------


def test_ids_of_any_type_become_stable_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    long = "x" * 5000
    columns: dict[str, list[Any]] = {
        "int": [1, None],
        "float": [1.5, float("nan")],
        "bytes": [b"a/b", b"\xff"],
        "text": ["a\nb/c", ""],
        "long": [long, long + "y"],
        "time": [moment, None],
        "decimal": [decimal.Decimal("1.50"), None],
        "bool": [True, None],
    }
    write(tmp_path, "t.parquet", {"image": [b"1", b"2"], **columns})
    ids = {
        name: [record.image_id for record in ParquetSource(str(tmp_path), None, name).records()]
        for name in columns
    }
    fallback = "t.parquet#1"
    assert ids["int"] == ["1", fallback]
    assert ids["float"] == ["1.5", fallback]
    assert ids["bytes"] == ["a/b", "0xff"]
    assert ids["text"] == ["a\nb/c", fallback]
    assert ids["time"] == ["2024-01-02 03:04:05.000000", fallback]
    assert ids["decimal"] == ["1.50", fallback]
    assert ids["bool"] == ["True", fallback] or ids["bool"] == ["true", fallback]
    assert len(set(ids["long"])) == 2
    assert all(image_id.startswith("xxx") and len(image_id) < 1100 for image_id in ids["long"])


@pytest.mark.parametrize("column", ["jpg", "url"])
def test_repeated_ids_are_told_apart_by_the_place_of_their_row(tmp_path: Path, column: str) -> None:
    names = ["a", "b", "a", None, "a", "t.parquet#3"]
    columns = {"name": names, "jpg": PICTURES, "url": [f"{n}.jpg" for n in range(6)]}
    write(tmp_path, "t.parquet", columns, row_group_size=4)
    listed = [record.image_id for record in ParquetSource(str(tmp_path), column, "name").records()]
    place = "t.parquet#1.1"
    assert listed == ["a", "b", "a#t.parquet#0.2", "t.parquet#3", "a#t.parquet#1.0", f"t.parquet#3#{place}"]


def test_an_id_of_an_earlier_start_is_not_given_again(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", {"name": ["x", "y"], "image": [b"1", b"2"]})
    first = [record.image_id for record in ParquetSource(str(tmp_path), None, "name").records()]
    write(tmp_path, "b.parquet", {"name": ["y", "z", "y"], "image": [b"3", b"4", b"5"]})
    source = ParquetSource(str(tmp_path), None, "name")
    second = [record.image_id for record in source.records(["a.parquet"], set(first).__contains__)]
    assert second == ["y#b.parquet#0.0", "z", "y#b.parquet#0.2"]
    assert [*first, *second] == [record.image_id for record in source.records()]


# --- bounds ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_group(tmp_path: Path) -> Path:
    """600 images of 4 MB together in one row group, which pyarrow writes as one page."""
    images = np.random.default_rng(1).bytes(600 * 7000)
    columns = {"image": [images[n * 7000 : (n + 1) * 7000] for n in range(600)], "key": range(600)}
    write(tmp_path, "big/t.parquet", columns)
    return tmp_path / "big"


def test_listing_reads_footers_and_ids_alone(one_group: Path, counted: Any) -> None:
    size = (one_group / "t.parquet").stat().st_size
    for key, share in ((None, 0.02), ("key", 0.03)):
        source = ParquetSource(f"counted://{one_group}", "image", key)
        counted.bytes_read = 0
        assert len(list(source.records())) == 600
        # the footer is looked for in the last 64 kB, whatever its size
        assert counted.bytes_read < share * size


def test_a_row_group_is_read_once_by_the_slices_of_a_task(one_group: Path, counted: Any) -> None:
    source = ParquetSource(f"counted://{one_group}")
    rows = [asdict(record) for record in source.records()]
    size = (one_group / "t.parquet").stat().st_size
    expected = pq.read_table(one_group / "t.parquet")["image"].to_pylist()
    fetcher = ImageFetcher(source.uri, "image")
    counted.bytes_read = 0
    with ThreadPoolExecutor(1) as threads:
        found = [
            value for first in range(0, 600, 16) for value in fetcher.fetch(rows[first : first + 16], threads)
        ]
    assert found == expected
    assert size < counted.bytes_read < 1.05 * size
    counted.bytes_read = 0
    with ThreadPoolExecutor(1) as threads:  # a start that comes back, and previews that jump
        late = ImageFetcher(source.uri, "image").fetch(rows[590:], threads)
        picked = ImageFetcher(source.uri, "image").fetch([rows[500], rows[3], rows[3]], threads)
    assert late == expected[590:]
    assert picked == [expected[500], expected[3], expected[3]]
    assert counted.bytes_read < 2.1 * size


def test_a_run_over_parts_reads_each_row_group_once(one_group: Path, tmp_path: Path, counted: Any) -> None:
    write(one_group, "u.parquet", {"image": [b"%d" % n * 100 for n in range(700)]}, row_group_size=90)
    source = ParquetSource(f"counted://{one_group}")
    output = Folder(str(tmp_path / "out"))
    manifest = prepare_manifest(output, source, 256)
    assert len(manifest.parts) == 6
    units = plan_work(output, source, manifest, label_table(Vocabulary.from_names(["cat"])), 2, 16).units
    assert len(units) > 2
    expected = {
        f"{name}.parquet": pq.read_table(one_group / f"{name}.parquet")["image"].to_pylist() for name in "tu"
    }
    counted.bytes_read = 0
    found: dict[str, bytes] = {}
    for unit in pack_units(units):  # each as a task of its own
        reader = ReadImages(output.uri, source.fetcher(1 << 28, 60.0), threads=1)
        for table in reader.read(pa.Table.from_pylist([unit])):
            found.update(zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True))
    assert found == {
        f"{name}#{row}": value for name, values in expected.items() for row, value in enumerate(values)
    }
    size = (one_group / "t.parquet").stat().st_size
    overhead = len(units) * (1 << 16)  # the end of a file, for each task
    assert counted.bytes_read < 1.1 * size + overhead


def test_a_reader_travels_to_another_process_without_its_open_file(one_group: Path) -> None:
    import pickle

    source = ParquetSource(str(one_group))
    rows = [asdict(record) for record in source.records()][:4]
    fetcher = ImageFetcher(source.uri, "image")
    with ThreadPoolExecutor(1) as threads:
        before = fetcher.fetch(rows, threads)
        assert pickle.loads(pickle.dumps(fetcher)).fetch(rows, threads) == before


_MEASURE = """
import re, sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources import ParquetSource
def peak():  # of this process alone; getrusage counts the one that started it as well
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
source = ParquetSource(sys.argv[1])
before = peak()
rows = [asdict(record) for record in source.records()]
fetcher = ImageFetcher(source.uri, source.image_column, int(sys.argv[2]))
reasons = set()
with ThreadPoolExecutor(1) as threads:
    for first in range(0, len(rows), 16):
        for value in fetcher.fetch(rows[first:first + 16], threads):
            reasons.add("" if isinstance(value, bytes) else value.reason)
growth = peak() - before
print(len(rows), growth // 1024, *sorted(reasons), sep="|")
"""


def measure(folder: Path, max_bytes: int) -> tuple[int, int, list[str]]:
    """List and read a folder in a process of its own; return rows, growth in MiB and the reasons."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), str(max_bytes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rows, growth, *reasons = done.stdout.strip().split("|")
    return int(rows), int(growth), reasons


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_memory_is_bounded_whatever_the_pages_claim(tmp_path: Path) -> None:
    blank = pa.array([bytes(1 << 20) + bytes([n]) for n in range(100)], pa.large_binary())
    for name, dictionary in (("dictionary", True), ("plain", False)):
        write(tmp_path, f"{name}.parquet", {"image": blank}, compression="zstd", use_dictionary=dictionary)
    picture = np.random.default_rng(2).bytes(4 << 20)
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), pa.array([picture]))
    write(tmp_path, "repeated.parquet", {"image": many}, compression="none")
    write(tmp_path, "unpacked.parquet", {"image": many.cast(pa.binary())}, compression="none")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10 << 20
    rows, growth, reasons = measure(tmp_path, 1 << 21)
    assert rows == 320
    assert growth < 150  # unguarded, each of the first two takes 230 MiB
    assert sum("taken for a bomb" in reason for reason in reasons) >= 1
    assert sum("more than max_bytes" in reason for reason in reasons) == 1


def test_values_above_the_limit_fail_alone(tmp_path: Path) -> None:
    images = [b"1", b"22222", b"333"]
    write(tmp_path, "a.parquet", {"image": images})
    write(tmp_path, "b.parquet", {"image": pa.array([list(value) for value in images], pa.list_(pa.uint8()))})
    write(tmp_path, "c.parquet", {"image": pa.array(images).dictionary_encode()})
    found = list(read_all(ParquetSource(str(tmp_path)), max_bytes=4).values())
    for first in (0, 3, 6):
        assert found[first] == b"1"
        assert "more than max_bytes (4)" in str(found[first + 1])
        assert found[first + 2] == b"333"


def test_damage_in_a_row_group_costs_the_rows_behind_it_and_no_others(tmp_path: Path) -> None:
    images = [np.random.default_rng(n).bytes(3000) for n in range(40)]
    write(
        tmp_path,
        "t.parquet",
        {"image": images},
        row_group_size=20,
        use_dictionary=False,
        data_page_size=1,
        write_batch_size=1,
    )
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    place = (
        data.find(images[10]) - 20
    )  # the header of the page that holds this image, which repeats it as statistics
    data[place : place + 12] = b"\xff" * 12
    (tmp_path / "t.parquet").write_bytes(data)
    found = list(read_all(ParquetSource(str(tmp_path))).values())
    assert found[:10] == images[:10]
    assert found[20:] == images[20:]
    assert all("the file is damaged" in str(reason) for reason in found[10:20])


def test_rows_that_no_bytes_stand_for_are_one_failure(tmp_path: Path) -> None:
    write(tmp_path, "t.parquet", {"image": pa.nulls(3_000_000, pa.binary())}, row_group_size=3_000_000)
    found = read_all(ParquetSource(str(tmp_path)))
    assert list(found) == ["t.parquet#row group 0"]
    assert "claims 3,000,000 rows in" in str(found["t.parquet#row group 0"])


def test_a_damaged_id_column_is_counted_and_the_next_row_group_listed(tmp_path: Path) -> None:
    keys = [f"key-{n}-{'x' * 40}" for n in range(20)]
    write(
        tmp_path,
        "t.parquet",
        {"key": keys, "image": PICTURES[:4] * 5},
        row_group_size=10,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    place = data.find(keys[0].encode()) - 4
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "t.parquet").write_bytes(data)
    found = read_all(ParquetSource(str(tmp_path), "image", "key"))
    assert list(found) == ["t.parquet#0-9", *keys[10:]]
    assert "rows 0 to 9 of the file cannot be listed" in str(found["t.parquet#0-9"])


def varint(value: int) -> bytes:
    encoded = b""
    while value >= 128:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return encoded + bytes([value])


@pytest.mark.parametrize(
    ("encoding", "run"), [("DELTA_LENGTH_BYTE_ARRAY", 0), ("DELTA_BYTE_ARRAY", 0), ("DELTA_BYTE_ARRAY", 1)]
)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_lengths_that_claim_too_many_values_are_refused(
    tmp_path: Path, encoding: str, run: int, version: str
) -> None:
    options: dict[str, Any] = {
        "use_dictionary": False,
        "column_encoding": encoding,
        "write_statistics": False,
    }
    values = [b"x" * 400, *(b"%d" % n for n in range(599))]
    write(tmp_path, "t.parquet", {"image": values}, compression="none", data_page_version=version, **options)
    assert list(read_all(ParquetSource(str(tmp_path))).values()) == values
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    begin = varint(128) + varint(4) + varint(600)  # block size, parts of a block, count
    place = data.find(begin, data.find(begin) + run)
    bomb = varint(1 << 20) + varint(4) + varint(1 << 31) + bytes(1 + 5 * 4)  # what comes to 8 GB of zeros
    data[place : place + len(bomb)] = bomb
    (tmp_path / "t.parquet").write_bytes(data)
    before = pa.default_memory_pool().max_memory()
    found = read_all(ParquetSource(str(tmp_path)))
    assert pa.default_memory_pool().max_memory() - before < 1 << 20
    assert len(found) == 600
    assert all("the file is damaged" in str(reason) for reason in found.values())


def test_a_dictionary_that_claims_more_values_than_it_has_bytes_is_refused(tmp_path: Path) -> None:
    values = [b"%03d" % n for n in range(100)]
    write(tmp_path, "t.parquet", {"image": values}, compression="none", write_statistics=False)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    place = data.find(varint(200), 4, 40)  # 100 entries, zigzag
    data[place : place + 2] = varint(16383)
    (tmp_path / "t.parquet").write_bytes(data)
    assert all(
        "the file is damaged" in str(reason) for reason in read_all(ParquetSource(str(tmp_path))).values()
    )


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
def test_long_delta_encoded_pages_are_read(tmp_path: Path, encoding: str, version: str, codec: str) -> None:
    rng = np.random.default_rng(3)
    values = [None if n % 7 == 0 else rng.bytes(1 + n % 300) for n in range(3000)]
    options: dict[str, Any] = {
        "use_dictionary": False,
        "column_encoding": encoding,
        "data_page_version": version,
    }
    write(
        tmp_path,
        "t.parquet",
        {"image": [{"bytes": value, "path": None} for value in values]},
        compression=codec,
        **(options | {"column_encoding": {"image.bytes": encoding}}),
    )
    found = [
        value if isinstance(value, bytes) else None
        for value in read_all(ParquetSource(str(tmp_path))).values()
    ]
    assert found == values


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.none() | st.binary(max_size=40), min_size=1, max_size=60),
    codec=st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
    version=st.sampled_from(["1.0", "2.0"]),
    encoding=st.sampled_from([None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]),
    group=st.integers(1, 60),
    page=st.integers(1, 200),
    step=st.integers(1, 20),
)
def test_whatever_the_layout_the_values_are_those_that_were_written(
    tmp_path: Path,
    values: list[bytes | None],
    codec: str,
    version: str,
    encoding: str | None,
    group: int,
    page: int,
    step: int,
) -> None:
    pq.write_table(
        pa.table({"image": pa.array(values, pa.binary())}),
        tmp_path / "t.parquet",
        **{
            "compression": codec,
            "data_page_version": version,
            "row_group_size": group,
            "data_page_size": page,
        },
        **{
            "write_batch_size": 3,
            "use_dictionary": encoding is None,
            "column_encoding": encoding and {"image": encoding},
        },
    )
    found = read_all(ParquetSource(str(tmp_path)), step=step)
    assert [value if isinstance(value, bytes) else None for value in found.values()] == [
        value or None for value in values
    ]


def test_the_footer_says_what_pyarrow_reads_in_it(tmp_path: Path) -> None:
    columns = {
        "a.b": pa.array([[1], [2, 3]], pa.list_(pa.uint8())),
        "image": [{"bytes": b"1", "path": "x"}, {"bytes": b"2", "path": None}],
        **{f"number {n}": [n, n] for n in range(20)},
    }
    write(
        tmp_path, "t.parquet", columns, row_group_size=1, compression={"image.bytes": "zstd", "a.b": "gzip"}
    )
    file = TableFile(str(tmp_path), f"{tmp_path}/t.parquet", 1 << 20)
    for group in range(2):
        row_group = file.metadata.row_group(group)
        expected = [row_group.column(index) for index in range(row_group.num_columns)]
        names = {leaf.path_in_schema.partition(".list")[0] for leaf in expected}
        found = list(file.footer.leaves(group, sorted(names)))
        assert [leaf.name for leaf in found] == [leaf.path_in_schema for leaf in expected]
        for leaf, other in zip(found, expected, strict=True):
            start = other.dictionary_page_offset or other.data_page_offset
            assert (leaf.start, leaf.packed, leaf.unpacked, leaf.values) == (
                *(start, other.total_compressed_size, other.total_uncompressed_size, other.num_values),
            )
            assert (leaf.codec or "uncompressed").upper() == other.compression
        assert [leaf.index for leaf in file.footer.leaves(group, ["image"])] == [1, 2]
    file.close()


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_end_in_rows_or_failures(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.bytes(200) for _ in range(12)]
    columns: dict[str, Any] = {
        "image": [
            images,
            [{"bytes": value, "path": "x"} for value in images],
            pa.array([list(value) for value in images], pa.list_(pa.uint8())),
            pa.array(images).dictionary_encode(),
        ][seed],
        "key": [f"k{n}" for n in range(12)],
    }
    write(
        tmp_path,
        "whole.parquet",
        columns,
        row_group_size=5,
        compression=["none", "snappy", "zstd", "gzip"][seed],
    )
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "whole.parquet").unlink()
    write(tmp_path, "a.parquet", columns)
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(4, len(data) - 8, rng.integers(1, 6)):
            data[place] = rng.integers(256)
        (tmp_path / "b.parquet").write_bytes(data)
        for key in (None, "key"):
            found = read_all(ParquetSource(str(tmp_path), "image", key))
            assert len(found) >= 13
            assert [value for value in found.values() if isinstance(value, bytes)][:12] == images


# --- tables of other formats -------------------------------------------------------------------------------


def test_iceberg_and_hudi_tables_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "ice/data/a.parquet", {"image": [b"1"]})
    (tmp_path / "ice/metadata").mkdir()
    (tmp_path / "ice/metadata/v1.metadata.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"ice is an Iceberg table.*deleted rows.*pyiceberg"):
        ParquetSource(str(tmp_path / "ice"))
    assert len(read_all(ParquetSource(f"{tmp_path}/ice/data/*.parquet"))) == 1
    write(tmp_path, "hudi/a.parquet", {"image": [b"1"], "_hoodie_record_key": ["a"]})
    with pytest.raises(ConfigError, match=r"hudi is a Hudi table.*older versions"):
        ParquetSource(str(tmp_path / "hudi"))
    (tmp_path / "hudi2/.hoodie").mkdir(parents=True)
    write(tmp_path, "hudi2/a.parquet", {"image": [b"1"]})
    with pytest.raises(ConfigError, match=r"is a Hudi table"):
        ParquetSource(str(tmp_path / "hudi2"))


def write_delta(
    folder: Path, actions: list[dict[str, Any]], features: list[str] | None = None, **configuration: str
) -> None:
    """Write the log of a Delta table, one version an action, as the protocol describes it."""
    names = (
        {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"} if configuration else {}
    )
    fields = [{"name": "image", "type": "binary", "nullable": True, "metadata": names}]
    protocol: dict[str, Any] = {"minReaderVersion": 1, "minWriterVersion": 2}
    if features:
        protocol = {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": features,
            "writerFeatures": features,
        }
    metadata = {
        **{"id": "00000000-0000-0000-0000-000000000000", "format": {"provider": "parquet", "options": {}}},
        **{"schemaString": json.dumps({"type": "struct", "fields": fields}), "partitionColumns": []},
        **{"configuration": configuration, "createdTime": 0},
    }
    (folder / "_delta_log").mkdir()
    versions = [[{"protocol": protocol}, {"metaData": metadata}], *([action] for action in actions)]
    for number, version in enumerate(versions):
        lines = "\n".join(json.dumps(action) for action in version)
        (folder / f"_delta_log/{number:020d}.json").write_text(lines)


def delta_add(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    size = (folder / name).stat().st_size
    add = {
        "path": name.replace(" ", "%20"),
        "partitionValues": {},
        "size": size,
        "modificationTime": 0,
        "dataChange": True,
    }
    return {"add": {**add, **more}}


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table of two files whose first has been rewritten; the old one still lies in the folder."""
    folder = tmp_path / "delta"
    write(folder, "old.parquet", {"image": [b"kept", b"deleted"]})
    write(folder, "p=x y/new file.parquet", {"image": [b"kept"]})
    write(folder, "other.parquet", {"image": [b"o0", b"o1", b"o2"]})
    return folder


@pytest.mark.parametrize("scheme", ["", "counted://"])
def test_a_delta_table_gives_the_rows_of_its_current_version(delta: Path, counted: Any, scheme: str) -> None:
    pytest.importorskip("deltalake")
    actions = [delta_add(delta, name) for name in ("old.parquet", "p=x y/new file.parquet", "other.parquet")]
    gone = {"remove": {"path": "old.parquet", "dataChange": True, "deletionTimestamp": 0}}
    write_delta(delta, [*actions, gone])
    source = ParquetSource(f"{scheme}{delta}")
    assert source.containers() == ["other.parquet", "p=x y/new file.parquet"]
    assert list(read_all(source).values()) == [b"o0", b"o1", b"o2", b"kept"]


def inline_vector(deleted: list[int]) -> dict[str, Any]:
    """Describe deleted rows as Delta's protocol does: a Roaring bitmap in Z85, inside the log."""
    words = (
        np.array([1681511377], "<u4").tobytes()
        + np.array([1], "<u8").tobytes()
        + np.array([0], "<u4").tobytes()
    )
    words += np.array([12346, 1], "<u4").tobytes() + np.array([0, len(deleted) - 1], "<u2").tobytes()
    words += np.array([16], "<u4").tobytes() + np.array(deleted, "<u2").tobytes()
    size = len(words)
    words += bytes(-size % 4)
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = ""
    for first in range(0, len(words), 4):
        value = int.from_bytes(words[first : first + 4], "big")
        text += "".join(alphabet[value // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": size, "cardinality": len(deleted)}


@pytest.mark.parametrize("scheme", ["", "counted://"])
def test_rows_that_a_deletion_vector_names_are_left_out(delta: Path, counted: Any, scheme: str) -> None:
    pytest.importorskip("deltalake")
    vector = inline_vector([0, 2])
    adds = [
        delta_add(delta, "other.parquet", deletionVector=vector, stats=json.dumps({"numRecords": 3})),
        delta_add(delta, "old.parquet"),
    ]
    write_delta(delta, adds, ["deletionVectors"])
    found = read_all(ParquetSource(f"{scheme}{delta}"))
    assert found == {"old.parquet#0": b"kept", "old.parquet#1": b"deleted", "other.parquet#1": b"o1"}


def test_delta_tables_that_cannot_be_read_are_refused_with_advice(
    delta: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_delta(
        delta, [delta_add(delta, "other.parquet")], ["columnMapping"], **{"delta.columnMapping.mode": "name"}
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "deltalake", None)
        with pytest.raises(ConfigError, match=r"Delta table.*deleted rows.*ovss\[delta\]"):
            ParquetSource(str(delta))
    with pytest.raises(ConfigError, match=r"holds Delta tables, such as 'delta'.*one table at a time"):
        ParquetSource(str(delta.parent))
    with caplog.at_level(logging.WARNING):
        assert len(read_all(ParquetSource(f"{delta}/o*.parquet"))) == 5
    assert "a glob takes its files whether they still count or not" in caplog.text
    pytest.importorskip("deltalake")
    with pytest.raises(ConfigError, match=r"maps column names"):
        ParquetSource(str(delta))
    (delta / "_delta_log/00000000000000000001.json").write_text("no log")
    with pytest.raises(StorageError, match=r"cannot read the log of the Delta table"):
        ParquetSource(str(delta))
