"""What a file is by its first bytes, and the sizes it holds beside the one that its header tells.

Decoders take memory, and time, for whatever a file makes them unpack. A header that tells a small picture may
hide a large one: an icon's directory the PNG inside, a box file the frame in its stream, a TIFF the tile that is
unpacked whole. These are read here before any decoder sees the file.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from PIL import IcoImagePlugin

from ovss_core.errors import ImageError
from ovss_core.images.box_files import av1_frame_sizes, box_brands, jpeg_xl_size, missing_box_bytes

MAX_JPEG_SCANS = 100
"""Scans of one JPEG, each of which costs a pass over the picture; encoders write about ten, libtiff allows so many."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"),
)
_FOREIGN = (
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), "an HTML page"),
    (
        re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.I | re.S),
        "an SVG drawing",
    ),
    (re.compile(rb"\s*<\?xml"), "an XML document"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), "JSON"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the file it stands for"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "gzip-compressed"),
)
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_TIFF_WIDTHS = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
_ICON_HEADER = struct.Struct("<IIi")


class HiddenSize(NamedTuple):
    """A size that a file holds beside the one that its header tells: what of, width, height."""

    what: str
    width: int
    height: int


def identify(data: bytes) -> str | None:
    """Return the format that the first bytes name, as Pillow calls it; None where they name none (TGA, PPM)."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = box_brands(data)
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIF"
    return None


def foreign_kind(data: bytes) -> str | None:
    """Say what a file is that is no picture, for the common ones."""
    head = data[:1024]
    return next((name for pattern, name in _FOREIGN if pattern.match(head)), None)


def missing_bytes(data: bytes, kind: str | None) -> int:
    """Return how many bytes a file says it has beyond its end; 0 where it does not say."""
    if kind == "WEBP":
        return max(0, 8 + int.from_bytes(data[4:8], "little") - len(data))
    if kind in ("AVIF", "HEIF") or (kind in ("JPEG2000", "JXL") and data[:1] == b"\0"):
        return missing_box_bytes(data)
    return 0


def unwrap_icon(data: bytes) -> bytes:
    """Return the PNG inside an icon, which is then decoded as any PNG; an icon of bitmaps stays what it is.

    Of several pictures it is the one that Pillow takes: the largest by the directory, of the most colors.
    """
    offset = _icon_offset(data)
    return data[offset:] if offset is not None and data[offset : offset + 8] == _SIGNATURES[1][0] else data


def check_hidden_sizes(data: bytes, kind: str | None, max_pixels: int) -> None:
    """Refuse a file that would make its decoder unpack more than it tells.

    Raises:
        ImageError: It hides more than `max_pixels` pixels, or a JPEG has more than `MAX_JPEG_SCANS` scans.
    """
    if kind == "JPEG":
        _check_scans(data)
    for what, width, height in _HIDDEN[kind](data) if kind in _HIDDEN else ():
        if width * height > max_pixels:
            raise ImageError(
                f"{what} of {width} x {height} is {width * height:,} pixels, more than max_pixels "
                f"({max_pixels:,}); raise it to decode this image"
            )


def _icon_offset(data: bytes) -> int | None:
    try:
        return int(IcoImagePlugin.IcoFile(io.BytesIO(data)).entry[0].offset)
    except Exception:  # a broken directory: Pillow will say so
        return None


def _icon_sizes(data: bytes) -> Iterator[HiddenSize]:
    offset = _icon_offset(data)
    if offset is None or offset + _ICON_HEADER.size > len(data):
        return
    size, width, height = _ICON_HEADER.unpack_from(data, offset)
    if size == 12:  # the first version of the header has 16-bit sides
        width, height = struct.unpack_from("<HH", data, offset + 4)
    yield HiddenSize("the icon's bitmap", width, abs(height) // 2)


def _webp_sizes(data: bytes) -> Iterator[HiddenSize]:
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
        yield HiddenSize("the WebP's canvas", width, height)


def _tiff_sizes(data: bytes) -> Iterator[HiddenSize]:
    """Yield the size of a TIFF's picture and of its tiles, which are unpacked whole, with all their samples.

    A directory that names a tag twice is read in one way here and in another there: the largest value counts.
    """
    tags = _tiff_numbers(data)
    width, height, samples = tags.get(256, 0), tags.get(257, 0), -(-tags.get(277, 1) // 8)
    yield HiddenSize("the TIFF's picture", width, height * samples)
    if 322 in tags or 323 in tags:
        yield HiddenSize("the TIFF's tile", tags.get(322, width), tags.get(323, height) * samples)


def _tiff_numbers(data: bytes) -> dict[int, int]:
    """Read the single numbers of a TIFF's first directory."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(place: int, width: int) -> int:
        return int.from_bytes(data[place : place + width], order)

    big = number(2, 2) == 43
    field, entry = (8, 20) if big else (4, 12)
    start = number(8, 8) if big else number(4, 4)
    first = start + (8 if big else 2)
    count = min(number(start, first - start), (len(data) - first) // entry)
    found: dict[int, int] = {}
    for place in range(first, first + entry * max(0, count), entry):
        tag, width = number(place, 2), _TIFF_WIDTHS.get(number(place + 2, 2), 0)
        if width and number(place + 4, field) * width <= field:
            found[tag] = max(found.get(tag, 0), number(place + 4 + field, width))
    return found


def _jpeg_2000_sizes(data: bytes) -> Iterator[HiddenSize]:
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0 or place + 42 > len(data):
        return
    right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
    (components,) = struct.unpack_from(">H", data, place + 40)
    # A decoder unpacks every component; up to four belong to the picture.
    yield HiddenSize(
        "the JPEG 2000 codestream", max(0, right - left) * -(-components // 4), max(0, bottom - top)
    )


def _avif_sizes(data: bytes) -> Iterator[HiddenSize]:
    for width, height in av1_frame_sizes(data):
        yield HiddenSize("the AVIF's video frame", width, height)


def _jpeg_xl_sizes(data: bytes) -> Iterator[HiddenSize]:
    size = jpeg_xl_size(data)
    if size is not None:
        yield HiddenSize("the JPEG XL image", *size)


_HIDDEN: dict[str | None, Callable[[bytes], Iterator[HiddenSize]]] = {
    "ICO": _icon_sizes,
    "TIFF": _tiff_sizes,
    "WEBP": _webp_sizes,
    "JPEG2000": _jpeg_2000_sizes,
    "AVIF": _avif_sizes,
    "JXL": _jpeg_xl_sizes,
}


def _check_scans(data: bytes) -> None:
    if data.count(b"\xff\xda") <= MAX_JPEG_SCANS:  # an upper bound: previews in the metadata have scans too
        return
    scans = sum(1 for marker, _, _ in jpeg_segments(data) if marker == 0xDA)
    if scans > MAX_JPEG_SCANS:
        raise ImageError(
            f"the JPEG has {scans:,} scans, more than the {MAX_JPEG_SCANS} that are decoded: each is another pass over "
            "the whole picture, and encoders write about ten; save it anew to label it"
        )


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the end of the first image; scans include their data."""
    place = 2
    while place + 4 <= len(data):
        found = _JPEG_MARKER.search(data, place)
        if found is None:
            return
        start, marker = found.start(), found.group()[-1]
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8):
            place = found.end()
            continue
        end = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        if marker == 0xDA:
            following = _JPEG_MARKER.search(data, end)
            end = len(data) if following is None else following.start()
        yield marker, start, min(end, len(data))
        place = max(end, found.end())
