"""The bytes of one file, from any address, within a number of bytes and of seconds."""

from typing import Any

import pyarrow.fs as pafs

from ovss_core.errors import ImageError
from pipelines.transport.addresses import host_of, local_path
from pipelines.transport.causes import blamed_on
from pipelines.transport.data_address import decode_data_address, is_data_address
from pipelines.transport.http import http_client
from pipelines.transport.limits import check_size
from pipelines.transport.local import read_local
from pipelines.transport.patience import patiently, within
from pipelines.transport.stores import is_google_store, open_storage

_PIECE = 1 << 20


def read_address(address: str, max_bytes: int, limit_s: float) -> bytes:
    """Return the whole file behind a local path or URI; what may pass is tried again.

    Args:
        max_bytes: A larger file is refused, before it is read where its length is known.
        limit_s: Seconds for everything, waits and tries included.

    Raises:
        TransferError: It could not be had; the message is one line without secrets.
        ImageError: It is too large, or no file.
    """
    if is_data_address(address):
        return decode_data_address(address.encode("utf-8", "surrogateescape"), max_bytes)
    path = local_path(address)
    if path is not None:
        return patiently(lambda _: read_local(path, max_bytes), limit_s)
    if address.partition("://")[0].lower() in ("http", "https"):
        return patiently(lambda left: http_client().get(address, max_bytes, left), limit_s)

    def read() -> bytes:
        filesystem, inside = open_storage(address)
        return _read_stream(filesystem, inside, address, max_bytes)

    return patiently(lambda left: within(left, read, f"reading from {host_of(address)}"), limit_s)


def read_inside(source: str, path: str, max_bytes: int, limit_s: float) -> bytes:
    """Return a whole file by its path inside the file system that an address opens; else as `read_address`."""
    if local_path(source) is not None:
        return patiently(lambda _: read_local(path, max_bytes), limit_s)

    def read() -> bytes:
        return _read_stream(open_storage(source)[0], path, source, max_bytes)

    return patiently(lambda left: within(left, read, f"reading from {host_of(source)}"), limit_s)


def _read_stream(filesystem: pafs.FileSystem, path: str, address: str, max_bytes: int) -> bytes:
    with blamed_on(address):
        if isinstance(filesystem, pafs.PyFileSystem):
            return _read_pieces(filesystem.handler.fs.open(path, "rb"), max_bytes)
        if is_google_store(filesystem):
            return _read_pieces(filesystem.open_input_stream(path), max_bytes)
        with filesystem.open_input_file(path) as stream:
            check_size(stream.size(), max_bytes)
            data: bytes = stream.read()
            return data


def _read_pieces(file: Any, max_bytes: int) -> bytes:
    """Read a stream that may not know its length, and no further than the limit."""
    pieces: list[bytes] = []
    received = 0
    with file:
        if isinstance(size := getattr(file, "size", None), int):
            check_size(size, max_bytes)
        while piece := file.read(min(_PIECE, max_bytes + 1 - received)):
            pieces.append(piece)
            received += len(piece)
            if received > max_bytes:
                raise ImageError(f"the stream is longer than max_bytes ({max_bytes:,})")
    return b"".join(pieces)
