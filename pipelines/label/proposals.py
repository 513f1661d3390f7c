"""Proposals on their way from one process to another: lossless compression of what shrinks by it.

A byte that Ray moves is copied four times and kept in memory meanwhile. Purified maps are zero in half of their places and
shrink to a quarter at 0.5 GB a second; crops, which are photographs, to four fifths in ten times the time, so they are
compressed only where a proposal would be large (images with many ambiguous regions).
"""

import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

LARGE_BYTES = 250_000
"""Beyond this the crops of a proposal are compressed, too."""
_CODECS = {b"0": None, b"l": pa.Codec("lz4_raw"), b"z": pa.Codec("zstd", 1)}
_HEADER = struct.Struct("<cxxxi")
_PACKED = ("maps", "crops")


def pack(row: Mapping[str, Any]) -> dict[str, Any]:
    """Compress the large values of a row of `Proposals.to_rows`; threads do it side by side."""
    packed = {**row, "maps": _compress(row["maps"], b"l")}
    is_large = sum(len(value or b"") for value in packed.values()) > LARGE_BYTES
    return packed | {"crops": _compress(row["crops"], b"z" if is_large else b"0")}


def unpack(row: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `pack`."""
    return {name: _decompress(value) if name in _PACKED else value for name, value in row.items()}


def _compress(data: Any, codec: bytes) -> bytes:
    """Put before the data how it is compressed, and its length before that; what would not shrink stays as it is."""
    compressor = _CODECS[codec]
    packed = compressor.compress(data, asbytes=True) if compressor and len(data) else data
    if len(packed) >= len(data):
        codec, packed = b"0", data
    return b"".join((_HEADER.pack(codec, len(data)), packed))


def _decompress(data: Any) -> Any:
    codec, length = _HEADER.unpack_from(data)
    packed = memoryview(data)[_HEADER.size :]
    decompressor = _CODECS[codec]
    return decompressor.decompress(packed, decompressed_size=length) if decompressor else packed
