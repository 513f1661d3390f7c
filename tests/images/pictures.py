"""Image files drawn for tests, sound ones and ones that lie."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

RAMP = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", found)


def with_chunk(data: bytes, chunk: bytes, before: bytes = b"IDAT") -> bytes:
    """Put a chunk into a PNG."""
    place = data.index(before) - 4
    return data[:place] + chunk + data[place:]


def png_header_only(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


def tiff(
    size: tuple[int, int],
    samples: bytes,
    bits: Sequence[int],
    tags: Mapping[int, int | bytes] | None = None,
    order: str = "<",
) -> bytes:
    """Write an uncompressed TIFF by hand: Pillow cannot write what cameras and instruments do.

    Args:
        size: Height and width.
        samples: The samples as they are to be stored.
        bits: Bits of each sample of a pixel.
        tags: Further tags or others in place of the usual ones; bytes become text.
        order: "<" or ">".
    """
    entries: dict[int, int | bytes | tuple[int, ...]] = {
        256: size[1],
        257: size[0],
        258: tuple(bits),
        259: 1,
        262: 1 if len(bits) == 1 else 2,
        273: 0,
        277: len(bits),
        278: size[0],
        279: len(samples),
    }
    entries |= tags or {}
    start = 8 + 2 + 12 * len(entries) + 4
    behind = b""
    table = struct.pack(order + "H", len(entries))
    places = {}
    for tag, value in sorted(entries.items()):
        if isinstance(value, bytes | tuple):
            text = isinstance(value, bytes)
            body = value + b"\0" if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}H", *value)
            count = len(body) if text else len(body) // 2
            if len(body) > 4:
                field = struct.pack(order + "I", start + len(behind))
                behind += body
            else:
                field = body.ljust(4, b"\0")
            table += struct.pack(order + "HHI", tag, 2 if text else 3, count) + field
        else:
            places[tag] = len(table)
            table += struct.pack(order + "HHII", tag, 4, 1, value)
    pixels = struct.pack(order + "I", start + len(behind))
    table = table[: places[273] + 8] + pixels + table[places[273] + 12 :]
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + table + struct.pack("I", 0) + behind + samples


def icon(picture: bytes) -> bytes:
    """Wrap a PNG, or a bitmap without its file header, into an icon whose directory says 16 x 16."""
    directory = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    return b"\0\0\1\0\1\0" + directory + picture


def progressive_jpeg(scans: int, side: int = 64) -> bytes:
    """Encode a progressive JPEG of one gray that goes through its last scan again and again."""
    whole = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    tables = whole.rindex(b"\xff\xc4", 0, last) if b"\xff\xc4" in whole else last
    head, scan = whole[:-2], whole[tables:-2]
    return head + scan * max(0, scans - whole.count(b"\xff\xda")) + whole[-2:]
