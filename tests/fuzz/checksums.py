"""Checksums put right in a damaged file: a reader that trusts them is to be reached behind them, too."""

import zlib

_BLOCK = 512
_SUM = slice(148, 156)
_PNG = b"\x89PNG\r\n\x1a\n"


def mend_tar(data: bytes) -> bytes:
    """Write the right checksum into every block that is a header of a plain tar."""
    mended = bytearray(data)
    for start in range(0, len(data) - _BLOCK + 1, _BLOCK):
        block = bytearray(data[start : start + _BLOCK])
        if block[257:262] == b"ustar":
            block[_SUM] = b" " * 8
            block[_SUM] = b"%06o\0 " % sum(block)
            mended[start : start + _BLOCK] = block
    return bytes(mended)


def mend_png(data: bytes) -> bytes:
    """Write the right checksum behind every chunk of a PNG, as far as their lengths lead."""
    if not data.startswith(_PNG):
        return data
    mended = bytearray(data)
    start = len(_PNG)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(mended)
