import bz2
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pytest

from ovss_core.errors import ConfigError
from pipelines.sources.tar_stream import ImageFields, TarEnd, TarImage, stream_tar

END = bytes(1024)
TAR_FORMATS: tuple[Literal[0], Literal[1], Literal[2]] = (0, 1, 2)  # ustar, GNU, pax
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
    "lz4": lambda data: pa.compress(data, "lz4", asbytes=True),
}


class _Pipe(io.RawIOBase):
    """A stream that cannot seek and returns less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._data.read(min(len(buffer), 700))
        buffer[: len(piece)] = piece
        return len(piece)


def pipe(data: bytes) -> BinaryIO:
    return cast(BinaryIO, _Pipe(data))


def member(
    name: str,
    data: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    form: Literal[0, 1, 2] = 1,
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


def header(
    name: bytes, size: bytes = b"%011o\0" % 0, kind: bytes = b"0", rest: dict[int, bytes] | None = None
) -> bytes:
    """A header block made by hand, with the checksum that fits."""
    block = bytearray(512)
    fields = {
        0: name,
        100: b"0000644\0",
        124: size,
        148: b" " * 8,
        156: kind,
        257: b"ustar  \0",
        **(rest or {}),
    }
    for start, value in fields.items():
        block[start : start + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: Iterable[tuple[str, str]], kind: bytes = b"x") -> bytes:
    text = b""
    for key, value in records:
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(f"{length}") + len(line) != length:
            length += 1
        text += f"{length}".encode() + line
    return header(b"pax", b"%011o\0" % len(text), kind) + text + bytes(-len(text) % 512)


def stream(
    data: bytes | BinaryIO, fields: ImageFields | None = None, max_bytes: int = 1 << 20, **options: object
) -> tuple[list[TarImage], TarEnd]:
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    *images, end = stream_tar(source, fields or ImageFields(), max_bytes, **options)  # type: ignore[arg-type]
    assert isinstance(end, TarEnd)
    found = [image for image in images if isinstance(image, TarImage)]
    assert len(found) == len(images) == end.images
    assert len({image.key for image in found}) == len(found)
    return found, end


def contents(data: bytes | BinaryIO, **options: object) -> dict[str, bytes | str | None]:
    """Return the bytes or the problem of each image of a shard that must be sound."""
    images, end = stream(data, **options)  # type: ignore[arg-type]
    assert end.problem is None
    return {image.key: image.problem or image.data for image in images}


def problem(data: bytes) -> str:
    _, end = stream(data)
    assert end.problem is not None
    return end.problem


SHARD = member("a/1.jpg", b"one" * 300) + member("a/1.json", b"{}") + member("./2.PNG", b"two") + END


def test_images_come_with_key_name_place_and_bytes() -> None:
    images, end = stream(SHARD)
    assert images == [
        TarImage("a/1", "a/1.jpg", 512, 900, b"one" * 300),
        TarImage("2", "./2.PNG", 512 + 1024 + 1024 + 512, 3, b"two"),
    ]
    assert all(
        image.offset and SHARD[image.offset : image.offset + image.length] == image.data for image in images
    )
    assert end == TarEnd(2, 1, None)


def test_bytes_that_are_not_wanted_are_left_out_and_nothing_else_changes() -> None:
    whole, end = stream(SHARD)
    some, end_of_some = stream(SHARD, wanted=lambda key: key == "2")
    assert [(image.key, image.offset, image.length) for image in some] == [
        (image.key, image.offset, image.length) for image in whole
    ]
    assert ([image.data for image in some], end_of_some) == ([None, b"two"], end)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("opened", [io.BytesIO, pipe])
def test_a_compressed_shard_is_known_by_its_bytes(packer: str, opened: Callable[[bytes], BinaryIO]) -> None:
    images, end = stream(opened(PACKERS[packer](SHARD)))
    assert [(image.key, image.offset, image.data) for image in images] == [
        ("a/1", None, b"one" * 300),
        ("2", None, b"two"),
    ]
    assert end == TarEnd(2, 1, None)


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_pieces_put_behind_one_another_are_one_tar(packer: str) -> None:
    data = b"".join(PACKERS[packer](SHARD[start : start + 700]) for start in range(0, len(SHARD), 700))
    assert contents(data) == {"a/1": b"one" * 300, "2": b"two"}


@pytest.mark.parametrize("packer", PACKERS)
def test_compression_that_is_cut_gives_what_can_be_unpacked_and_a_problem(packer: str) -> None:
    noise = random.Random(1).randbytes(200_000)
    data = PACKERS[packer](member("1.jpg", b"one") + member("2.jpg", noise) + member("3.jpg", b"three") + END)
    images, end = stream(data[: len(data) // 2])
    assert [image.key for image in images] in (["1"], [])
    assert end.problem is not None
    assert f"its {packer} compression ends early" in end.problem


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])  # the others come without checksums
def test_compression_that_is_damaged_is_a_problem(packer: str) -> None:
    data = bytearray(PACKERS[packer](member("1.jpg", random.Random(1).randbytes(200_000)) + END))
    data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    assert f"its {packer} compression is damaged" in problem(bytes(data))


def test_compression_that_asks_for_gigabytes_is_refused() -> None:
    data = bytearray(lzma.compress(SHARD))
    data[16] = 36  # the dictionary of the first block: 1 GiB
    end = 12 + 4 * data[12]
    data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
    assert "its xz compression needs too much memory to be unpacked" in problem(bytes(data))


def test_a_stream_that_cannot_seek_gives_the_same() -> None:
    assert stream(pipe(SHARD)) == stream(SHARD)


def test_an_error_of_the_storage_is_raised_as_it_comes() -> None:
    class Failing(_Pipe):
        reads = 0

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            self.reads += 1
            if self.reads > 3:
                raise ConnectionResetError("the store hung up")
            return super().readinto(buffer)

    noise = random.Random(1).randbytes(9000)
    for data in (
        member("1.jpg", noise) + END,
        *(pack(member("1.jpg", noise) + END) for pack in PACKERS.values()),
    ):
        with pytest.raises(ConnectionResetError, match="hung up"):
            stream(Failing(data))  # type: ignore[arg-type]


def test_one_picture_a_key_by_the_extension_right_behind_it() -> None:
    names = ["1.mask.png", "1.jpg", "1.depth.tiff", "1.json", "1.png", "2.jpg", "2.png", "3.JPEG"]
    images, end = stream(b"".join(member(name, name.encode()) for name in names) + END)
    assert {image.key: image.name for image in images} == {"1": "1.jpg", "2": "2.jpg", "3": "3.JPEG"}
    assert end == TarEnd(3, 5, None)


def test_a_field_can_be_named_and_alternatives_too() -> None:
    data = (
        b"".join(member(name, name.encode()) for name in ("1.jpg", "1.Left.png", "2.jpg", "2.left.png")) + END
    )
    assert contents(data, fields=ImageFields.parse("left.png")) == {"1": b"1.Left.png", "2": b"2.left.png"}
    odd = member("1.image", b"1") + member("1.jpg", b"-") + member("2.bin", b"2") + END
    assert contents(odd, fields=ImageFields.parse(".image; bin")) == {"1": b"1", "2": b"2"}
    for text in ("", "jpg;", "a/b"):
        with pytest.raises(ConfigError, match="--image-field is"):
            ImageFields.parse(text)


def test_samples_whose_picture_stands_under_another_field_are_named() -> None:
    data = member("1.jpg") + member("photo.2021.jpg") + member("photo.2022.jpg") + member("3.json") + END
    images, end = stream(data)
    assert [image.key for image in images] == ["1"]
    assert end.problem is not None
    assert "2 picture files belong to samples without a picture" in end.problem
    assert "such as photo.2021.jpg; --image-field names" in end.problem
    masks_first = [member(f"{n}.mask.png") for n in range(3)] + [member(f"{n}.jpg") for n in range(3)]
    assert list(contents(b"".join(masks_first) + END)) == ["0", "1", "2"]


def test_a_shard_without_any_picture_says_what_is_there() -> None:
    data = member("1.image", b"1") + member("1.cls", b"2") + END
    assert "none of 2 files is a picture" in problem(data)
    assert "fields there: image, cls" in problem(data)
    *_, end = stream_tar(io.BytesIO(SHARD), ImageFields.parse("webp"), 9)
    assert isinstance(end, TarEnd)
    assert "in the field webp" in str(end.problem)


def test_keys_that_come_again_get_a_number_and_never_meet_a_real_one() -> None:
    names = ["1.jpg", "2.jpg", "1.jpg", "1#2.jpg", "1.png", "1.png", "1#2.png"]
    data = b"".join(member(name, b"%d" % place) for place, name in enumerate(names)) + END
    assert contents(data) == {
        "1": b"0",
        "2": b"1",
        "1#2": b"2",
        "1#2#2": b"3",
        "1#3": b"4",
        "1#4": b"5",
        "1#2#3": b"6",
    }


def test_what_no_folder_would_give_is_passed_over() -> None:
    odd = [
        "._1.jpg",
        "__MACOSX/1.jpg",
        "a/__MACOSX/._1.jpg",
        ".DS_Store",
        ".cache/x.jpg",
        "__meta__/x.jpg",
        "noext",
    ]
    data = member("dir.jpg/", kind=tarfile.DIRTYPE) + member("pipe.jpg", kind=tarfile.FIFOTYPE)
    data += member("device.jpg", kind=tarfile.CHRTYPE) + b"".join(member(name, b"1") for name in odd)
    images, end = stream(data + member("../up/./x.jpg", b"2") + END)
    assert [(image.key, image.data) for image in images] == [("../up/x", b"2")]
    assert end == TarEnd(1, len(odd), None)


@pytest.mark.parametrize("opened", [io.BytesIO, pipe])
def test_joined_tars_are_read_on(opened: Callable[[bytes], BinaryIO]) -> None:
    padded = member("1.jpg", b"1") + bytes(10240 - 1024)
    data = padded + member("1.jpg", b"2") + END + END + padded + padded
    assert list(contents(opened(data)).items()) == [("1", b"1"), ("1#2", b"2"), ("1#3", b"1"), ("1#4", b"1")]
    images, end = stream(opened(padded + b"no tar" * 100))
    assert len(images) == 1
    assert end.problem == f"600 bytes behind the end of the tar at byte {len(padded):,} are no tar"
    images, end = stream(opened(padded + b"no tar" * 256 + member("2.jpg", b"2") + END))
    assert [image.key for image in images] == ["1", "2"]
    assert "1,536 bytes behind the end" in str(end.problem)


@pytest.mark.parametrize("opened", [io.BytesIO, pipe])
def test_a_shard_cut_anywhere_gives_its_whole_images_and_a_problem(
    opened: Callable[[bytes], BinaryIO],
) -> None:
    members = [member(f"{number}.jpg", b"%d" % number * 300) for number in range(3)]
    members[1] = pax([("path", "1.jpg")]) + members[1]
    whole = b"".join(members)
    ends = [sum(map(len, members[:count])) - 212 for count in (1, 2, 3)]  # 300 bytes of data, 212 of padding
    for cut in range(0, len(whole) + 1, 4):
        images, end = stream(opened(whole[:cut]))
        assert [image.key for image in images] == [f"{n}" for n in range(3) if ends[n] <= cut]
        assert end.problem is not None
    for cut in range(len(whole) + 4, len(whole) + len(END), 4):
        assert list(contents(opened((whole + END)[:cut]))) == ["0", "1", "2"]


def test_what_is_missing_is_said() -> None:
    first, second = member("1.jpg", b"1"), member("2.jpg", b"2" * 100)
    assert "no end mark behind byte 1,024: it was cut between two members" in problem(first)
    assert "cut inside the header at byte 1,024, of which 200 bytes are there" in problem(
        first + second[:200]
    )
    assert "the last 60 bytes of 2.jpg are missing" in problem(first + second[: 512 + 40])
    assert "the extended header at byte 1,024" in problem(first + pax([("path", "2.jpg")])[:520])
    assert "that an extended header before byte 2,048 announces is missing" in problem(
        first + pax([("path", "2.jpg")]) + END
    )
    assert problem(b"") == "the shard cannot be read: the file is empty"
    assert "its 5 bytes are less than a header of a tar (it begins with b'short')" in problem(b"short")
    assert "its first header is damaged" in problem(b"0" + first[1:] + END)
    assert "20,000,256 zero bytes" in problem(first + bytes(20_000_256))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><p>403", "an HTML page"),
        (b"\n <?xml version='1.0'?><Error/>", "an XML text"),
        (b'{"error": 1}', "a JSON text"),
        (b"PK\x03\x04" + bytes(600), "a ZIP archive"),
        (b"PAR1" + bytes(600), "a Parquet file; --parquet reads those"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "a JPEG image; --images reads those"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (gzip.compress(gzip.compress(SHARD, mtime=0), mtime=0), "gzip data"),
        (gzip.compress(b"<html>", mtime=0), "an HTML page"),
        (b"something else" * 100, "begins with b'something elseso'"),
    ],
)
def test_what_is_no_tar_is_called_by_its_name(data: bytes, words: str) -> None:
    assert problem(data).startswith("the shard cannot be read: it is no tar")
    assert words in problem(data)


@pytest.mark.parametrize("opened", [io.BytesIO, pipe])
def test_a_damaged_header_costs_its_member_and_no_other(opened: Callable[[bytes], BinaryIO]) -> None:
    members = [member(f"{n}.jpg", b"%d" % n * 2000) for n in range(4)]
    for damaged in range(4):
        data = bytearray(b"".join(members) + END)
        data[2560 * damaged + 130] ^= 1
        images, end = stream(opened(bytes(data)))
        assert [image.key for image in images] == [f"{n}" for n in range(4) if n != damaged]
        assert f"the header at byte {2560 * damaged:,} is damaged" in str(end.problem)
        assert (f"is at byte {2560 * (damaged + 1):,}" if damaged < 3 else "no sound one") in str(end.problem)


def test_many_damaged_headers_are_counted_and_cost_no_time() -> None:
    block = bytearray(member("1.jpg", b"1"))
    block[130] ^= 1
    images, end = stream((bytes(block) + member("2.jpg", b"2")) * 5000 + END)
    assert len(images) == 5000
    assert "and 4,997 more faults" in str(end.problem)


def test_sizes_in_every_spelling() -> None:
    for size in (b"%011o\0" % 5, b"%11o " % 5, b"5\0" + b"\xff" * 10, b"\x80" + bytes(10) + b"\5"):
        assert contents(header(b"1.jpg", size) + b"12345" + bytes(507) + END) == {"1": b"12345"}
    signed = bytearray(header(b"\xc3\xa9.jpg", b"%011o\0" % 1))
    signed[148:156] = b"%06o\0 " % (int(signed[148:154], 8) - 512)
    assert contents(bytes(signed) + b"1" + bytes(511) + END) == {"é": b"1"}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (b"\x80" + b"\xff" * 11, "of 2.jpg are missing"),
        (b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, "of 2.jpg are missing"),
        (b"77777777777\0", "of 2.jpg are missing"),
        (b"\xff" * 12, "the header at byte 1,024 is damaged"),
        (b"\xff" * 11 + b"\0", "the header at byte 1,024 is damaged"),
        (b"-0000000001\0", "the header at byte 1,024 is damaged"),
        (b"not a number", "the header at byte 1,024 is damaged"),
    ],
)
@pytest.mark.parametrize("opened", [io.BytesIO, pipe])
def test_sizes_that_cannot_be_take_no_memory(
    size: bytes, words: str, opened: Callable[[bytes], BinaryIO]
) -> None:
    data = member("1.jpg", b"1") + header(b"2.jpg", size) + member("3.jpg", b"3") + END
    tracemalloc.start()
    images, end = stream(opened(data), max_bytes=1 << 62)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert images[0].key == "1"
    assert words in str(end.problem)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_image_above_the_limit_is_a_problem_of_its_own_and_never_read(
    pack: Callable[[bytes], bytes],
) -> None:
    data = pack(member("1.jpg", bytes(30 << 20)) + member("2.jpg", b"2") + END)
    tracemalloc.start()
    found = contents(data, max_bytes=1000)
    assert tracemalloc.get_traced_memory()[1] < (8 << 20 if pack is bytes else 70 << 20)
    tracemalloc.stop()
    assert found == {"1": "the file has 31,457,280 bytes, more than max_bytes (1,000)", "2": b"2"}


@pytest.mark.parametrize("opened", [io.BytesIO, pipe, lambda data: io.BytesIO(gzip.compress(data))])
def test_links_have_the_bytes_of_their_targets_whichever_comes_first(
    opened: Callable[[bytes], BinaryIO],
) -> None:
    data = (
        member("z/early.jpg", kind=tarfile.SYMTYPE, target="../blobs/77")
        + member("z/chain.jpg", kind=tarfile.SYMTYPE, target="early.jpg")
        + member("blobs/77", b"shared")
        + member("1.jpg", b"one")
        + member("./2.jpg", kind=tarfile.LNKTYPE, target="1.jpg")
        + member("3.jpg", kind=tarfile.LNKTYPE, target="./2.jpg")
        + member("z/4.jpg", kind=tarfile.SYMTYPE, target="../3.jpg")
        + member("5.txt", kind=tarfile.LNKTYPE, target="1.jpg")
        + member("6.jpg", kind=tarfile.LNKTYPE, target="5.txt")
        + member("7.jpg", b"seven")
        + END
    )
    found = contents(opened(data))
    assert list(found.items()) == [
        ("z/early", b"shared"),
        ("z/chain", b"shared"),
        ("1", b"one"),
        ("2", b"one"),
        ("3", b"one"),
        ("z/4", b"one"),
        ("6", b"one"),
        ("7", b"seven"),
    ]
    for wanted in found:
        images, _ = stream(opened(data), wanted=wanted.__eq__)
        assert [image.key for image in images] == list(found)
        assert [image.data for image in images if image.data is not None] == [found[wanted]]


def test_links_to_nothing_are_problems_of_their_own() -> None:
    data = (
        member("1.jpg", kind=tarfile.SYMTYPE, target="/mnt/store/1.jpg")
        + member("2.jpg", kind=tarfile.LNKTYPE, target="gone.jpg")
        + member("3.jpg", kind=tarfile.SYMTYPE, target="4.jpg")
        + member("4.jpg", kind=tarfile.SYMTYPE, target="3.jpg")
        + member("5.jpg", kind=tarfile.SYMTYPE, target="5.jpg")
        + member("6.jpg", b"6")
        + END
    )
    found = contents(data)
    assert found.pop("6") == b"6"
    assert found["1"] == "a symbolic link to /mnt/store/1.jpg, which is no file of this shard"
    assert found["2"] == "a hard link to gone.jpg, which is no file of this shard"
    assert sorted(found) == ["1", "2", "3", "4", "5"]
    _, end = stream(data[:-1024])
    assert end.images == 6


def test_a_link_far_behind_its_target_in_a_compressed_shard_is_a_problem_and_in_a_plain_one_none() -> None:
    data = (
        member("1.jpg", b"1")
        + b"".join(member(f"{n}.bin", bytes(9 << 20)) for n in range(4))
        + member("2.jpg", kind=tarfile.LNKTYPE, target="1.jpg")
        + END
    )
    assert contents(data) == {"1": b"1", "2": b"1"}
    found = contents(gzip.compress(data, 1))
    assert found["1"] == b"1"
    assert "a link to 1.jpg, which lies too far back in a shard that is compressed" in str(found["2"])


def test_a_hard_link_may_have_data_of_its_own_or_a_size_without_data() -> None:
    head = bytearray(header(b"2.jpg", b"%011o\0" % 3, b"1", {157: b"1.jpg"}))
    assert contents(member("1.jpg", b"one") + bytes(head) + b"two" + bytes(509) + END) == {
        "1": b"one",
        "2": b"two",
    }
    assert contents(member("1.jpg", b"one") + bytes(head) + member("3.jpg", b"3") + END) == {
        "1": b"one",
        "2": b"one",
        "3": b"3",
    }


def test_long_names_in_every_dialect() -> None:
    long = "/".join(["folder" * 8] * 6) + "/picture"
    for form in TAR_FORMATS[1:]:
        assert contents(member(f"{long}.jpg", b"1", form=form) + END) == {long: b"1"}
        linked = member(f"{long}.jpg", b"1") + member(
            "2.jpg", kind=tarfile.LNKTYPE, target=f"{long}.jpg", form=form
        )
        assert contents(linked + END) == {long: b"1", "2": b"1"}
    middle = "/".join(["folder" * 8] * 3) + "/picture"
    assert contents(member(f"{middle}.jpg", b"1", form=TAR_FORMATS[0]) + END) == {middle: b"1"}


def test_names_that_are_no_utf8_become_escapes() -> None:
    data = header(b"\xff\xfe.jpg") + header(b"new\nline.jpg") + member("ü.jpg") + END
    assert list(contents(data)) == ["\\xff\\xfe", "new\nline", "ü"]
    assert "of 'new\\nline.jpg' are missing" in problem(header(b"new\nline.jpg", b"%011o\0" % 9))


def test_extended_headers_in_any_number_take_no_memory_and_the_last_word_counts() -> None:
    chain = pax([("path", "x" * 1000)]) * 5000 + pax([("path", "1.jpg"), ("size", "3")])
    shard = pipe(chain + header(b"old.jpg") + b"one" + bytes(509) + END)
    del chain
    tracemalloc.start()
    found = contents(shard)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert found == {"1": b"one"}
    everywhere = (
        pax([("comment", "-"), ("path", "1.jpg")], b"g")
        + header(b"a")
        + pax([("path", "2.jpg")])
        + header(b"b")
    )
    assert list(contents(everywhere + END + member("3.jpg") + END)) == ["1", "2", "3"]


def test_an_extended_header_that_is_damaged_or_far_too_large_is_said() -> None:
    for text in (
        b"99 path=1.jpg\n",
        b"x path=1.jpg\n",
        b"0 path=1.jpg\n",
        b"12 size=-1x\n",
        b"10 path\n..\n",
    ):
        data = header(b"p", b"%011o\0" % len(text), b"x") + text + bytes(512 - len(text))
        images, end = stream(data + member("2.jpg", b"2") + END)
        assert [(image.key, image.data) for image in images] == [("2", b"2")]
        assert end.problem == "the extended header at byte 0 is damaged"
    for kind, size in ((b"x", 5 << 20), (b"L", 1 << 17)):
        images, end = stream(
            header(b"p", b"%011o\0" % size, kind) + bytes(size) + member("2.jpg", b"2") + END
        )
        assert [image.key for image in images] == ["2"]
        assert "is not read" in str(end.problem)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar command")
@pytest.mark.parametrize(
    "form", [["--format=gnu"], *(["--format=posix", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_files_with_holes_are_put_together_again(tmp_path: Path, form: list[str]) -> None:
    wanted = {}
    for number, pieces in enumerate((0, 1, 3, 40)):
        with (tmp_path / f"{number}.jpg").open("wb") as file:
            for piece in range(pieces):
                file.seek(piece << 17)
                file.write(b"%d" % piece * 5000)
            file.truncate((pieces << 17) + 1000 * number + 200_000)
        wanted[f"{number}"] = (tmp_path / f"{number}.jpg").read_bytes()
    (tmp_path / "last.jpg").write_bytes(b"last")
    names = [f"{name}.jpg" for name in (*wanted, "last")]
    subprocess.run(["tar", "-cSf", "s.tar", *form, *names], cwd=tmp_path, check=True)
    data = (tmp_path / "s.tar").read_bytes()
    assert len(data) < 1 << 20
    for opened in (io.BytesIO(data), pipe(data), io.BytesIO(gzip.compress(data))):
        assert contents(opened, max_bytes=1 << 23) == {**wanted, "last": b"last"}
    images, _ = stream(data, max_bytes=300_000)
    assert ["more than max_bytes" in str(image.problem) for image in images] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("numbers", ["0,5,3,5", "0,5", "0,99999999", "0,x", "0", "-1,5", "5,5,0,5"])
def test_a_map_of_holes_that_makes_no_sense_is_a_problem_of_that_image(numbers: str) -> None:
    records = [("GNU.sparse.name", "1.jpg"), ("GNU.sparse.size", "20"), ("GNU.sparse.map", numbers)]
    data = pax(records) + member("GNUSparseFile.0/1.jpg", b"0123456789") + member("2.jpg", b"2") + END
    assert contents(data) == {"1": "the map of its holes is damaged", "2": b"2"}


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar command")
@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7", "oldgnu"])
def test_duplicates_that_the_tar_command_stores_as_hard_links_are_images(tmp_path: Path, form: str) -> None:
    (tmp_path / "1.jpg").write_bytes(b"one" * 500)
    (tmp_path / "2.jpg").hardlink_to(tmp_path / "1.jpg")
    (tmp_path / "3.jpg").symlink_to("2.jpg")
    subprocess.run(
        ["tar", f"--format={form}", "-cf", "s.tar", "1.jpg", "2.jpg", "3.jpg"], cwd=tmp_path, check=True
    )
    data = (tmp_path / "s.tar").read_bytes()
    assert contents(data) == dict.fromkeys("123", b"one" * 500)


def test_a_shard_of_many_volumes_or_with_a_label_says_which_file_is_not_whole() -> None:
    data = header(b"label.jpg", kind=b"V") + header(b"1.jpg", b"%011o\0" % 3, b"M") + b"abc" + bytes(509)
    found = contents(data + member("2.jpg", b"2") + END)
    assert found == {"1": "it is the rest of a file that begins in an earlier volume of the tar", "2": b"2"}


def test_shards_that_were_changed_at_random_always_end_in_words() -> None:
    seeds = [
        SHARD,
        pax([("path", "ä/1.jpg"), ("size", "700")]) + header(b"1") + bytes(1024) + SHARD,
        member("x" * 150 + ".jpg", b"1")
        + member("2.jpg", kind=tarfile.LNKTYPE, target="x" * 150 + ".jpg")
        + END,
        pax([("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "99"), ("GNU.sparse.name", "1.jpg")])
        + member("1", b"1\n0\n9\n" + bytes(505) + b"123456789")
        + END,
        *(pack(SHARD) for pack in PACKERS.values()),
    ]
    for seed in range(1500):
        data = mutated(seeds[seed % len(seeds)], random.Random(seed))
        images, end = stream(data, max_bytes=1 << 16)
        piped, piped_end = stream(pipe(data), max_bytes=1 << 16)
        assert (len(images), end.problem is None) == (len(piped), piped_end.problem is None), seed


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change, drop, repeat or insert bytes at a few places; half of the time checksums of headers are mended."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 1, 2, 12, 100, 512, 1024))
        kind = chance.randrange(5)
        if kind == 0:
            del changed[place : place + length]
        elif kind == 1:
            changed[place:place] = changed[place : place + length]
        elif kind == 2:
            changed[place:place] = chance.randbytes(length)
        else:
            changed[place : place + length] = chance.choice(
                (chance.randbytes(length), bytes(length), b"7" * length)
            )
    if chance.random() < 0.5:
        for start in range(0, len(changed) - 511, 512):
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start + 148 : start + 156] = b" " * 8
                changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)
