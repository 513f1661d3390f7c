"""Files without what decides no pixel: comments, profiles and checksums of them must not cost a picture."""

import zlib
from collections.abc import Iterator

from ovss_core.errors import ImageError
from ovss_core.images.containers import jpeg_segments

_PNG_SIGNATURE_LENGTH = 8
_PNG_ANCILLARY = 0x20
_PNG_KEPT = (b"tRNS", b"eXIf")
_JFIF, _APP1, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xEE, 0xFE


def plain_png(data: bytes) -> bytes:
    """Reduce a PNG to the chunks that decide its pixels: the critical ones, transparency and orientation.

    Raises:
        ImageError: A critical chunk is cut off, or its checksum is wrong.
    """
    view = memoryview(data)
    kept: list[tuple[int, int]] = []
    place = _PNG_SIGNATURE_LENGTH
    while place + 8 <= len(data):
        length, name = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 : place + 8])
        if not name.isalpha():  # no chunk: what follows the last one is judged by the decoder
            break
        end = place + 12 + length
        if not name[0] & _PNG_ANCILLARY:
            _check_chunk(view, name, place, end)
            kept.append((place, end))
        elif name in _PNG_KEPT and end <= len(data) and _is_whole(view, place, end):
            kept.append((place, end))
        place = end
        if name == b"IEND":
            break
    if sum(end - start for start, end in kept) + _PNG_SIGNATURE_LENGTH >= len(data):
        return data
    return b"".join([view[:_PNG_SIGNATURE_LENGTH], *(view[start:end] for start, end in kept)])


def _check_chunk(view: memoryview, name: bytes, place: int, end: int) -> None:
    missing = end - 4 - len(view)
    if missing > 0:
        raise ImageError(f"the PNG is truncated: {missing:,} bytes of its chunk {name.decode()} are missing")
    if end <= len(view) and not _is_whole(view, place, end):
        raise ImageError(f"the PNG is damaged (checksum of chunk {name.decode()})")


def _is_whole(view: memoryview, place: int, end: int) -> bool:
    return zlib.crc32(view[place + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")


def without_metadata(data: bytes, kind: str | None) -> Iterator[bytes]:
    """Yield a file with less and less metadata, for when it cannot be opened as it is."""
    if kind == "JPEG":
        yield _jpeg_without(data, keep_exif=True)
        yield _jpeg_without(data, keep_exif=False)
    elif kind == "AVIF":
        head, mark, pixels = data.partition(b"mdat")
        yield head.replace(b"Exif", b"skip").replace(b"mime", b"skip") + mark + pixels


def _jpeg_without(data: bytes, keep_exif: bool) -> bytes:
    """Leave out the segments that decide no pixel; JFIF's and Adobe's say what the colors are."""
    parts = [data[:2]]
    for marker, start, end in jpeg_segments(data):
        if marker == 0xDA:
            return b"".join([*parts, data[start:]])
        application = _JFIF <= marker <= 0xEF
        wanted = marker in (_JFIF, _ADOBE) or (
            keep_exif and marker == _APP1 and data[start:end].find(b"Exif", 0, 8) > 0
        )
        if wanted or not (application or marker == _COMMENT):
            parts.append(data[start:end])
    return data
