"""The bytes of a tar shard from front to back, compressed or not, with what is wrong about them in words."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

BLOCK = 512
_PIECE = 1 << 20
_PACKED = 1 << 14
_XZ_MEMORY = 1 << 28
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_COMPRESSIONS = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_FORMATS = {
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "a ZIP archive",
    b"PAR1": "a Parquet file; --parquet reads those",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x9d": "compress (.Z) data",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xd8\xff": "a JPEG image; --images reads those",
    b"\x89PNG": "a PNG image; --images reads those",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
}
_TEXTS = {
    b"<!doctype": "an HTML page, perhaps of a server that refused",
    b"<html": "an HTML page, perhaps of a server that refused",
    b"<?xml": "an XML text, perhaps of a store that refused",
    b"{": "a JSON text",
    b"[": "a JSON text",
}


class DamagedShardError(Exception):
    """The shard's own bytes are at fault, and nothing behind this point can be read; the text says how."""


def compression_of(head: bytes) -> str | None:
    """Name the compression that the first bytes of a file tell of."""
    if _BZIP2.match(head):
        return "bzip2"
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def foreign_format(head: bytes) -> str | None:
    """Say in words what a file is that is no tar, from its first bytes; None where they tell nothing."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    packed = compression_of(head)
    if packed:
        return f"{packed} data"
    known = next((words for magic, words in _FORMATS.items() if head.startswith(magic)), None)
    return known or next((words for magic, words in _TEXTS.items() if text.startswith(magic)), None)


class ShardBytes:
    """The bytes of the tar inside a shard, read forwards.

    Errors of the stream itself, which are the storage's, are raised as they come.

    Args:
        stream: The shard; a seekable one may stand anywhere, and its positions stay those of the file.

    Attributes:
        compression: "gzip", "bzip2", "xz", "zstd" or "lz4", whatever the file is called; None for a plain tar.
        position: Where the next byte to be read lies, in the file or, if it is compressed, in what it unpacks to.
        size: Where the tar ends, if that is known before it is read: in a plain, seekable shard.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._storage = _Storage(stream)
        head = self._storage.peek(BLOCK)
        self.compression = compression_of(head)
        self.size = None if self.compression else self._storage.size
        self.position = 0 if self.compression else self._storage.start
        self._source: _Readable = self._storage
        if self.compression:
            self._source = _unpack(self.compression, self._storage)
        self._ahead, self._at = b"", 0

    @property
    def seekable(self) -> bool:
        """Whether `move_to` may go back, and passes over bytes without reading them."""
        return self.size is not None

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end.

        Memory for bytes that are not there is never taken.

        Raises:
            DamagedShardError: The bytes cannot be unpacked.
        """
        if self.size is not None:
            count = min(count, max(0, self.size - self.position))
        pieces = [self._ahead[self._at : self._at + count]]
        missing = count - len(pieces[0])
        self._at += len(pieces[0])
        while missing > 0 and (piece := self._piece(missing)):
            pieces.append(piece)
            missing -= len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.position += len(data)
        return data

    def unread(self, data: bytes) -> None:
        """Put back bytes that were read last."""
        if self.seekable:
            self.move_to(self.position - len(data))
            return
        self._ahead, self._at = data + self._ahead[self._at :], 0
        self.position -= len(data)

    def pieces(self) -> Iterator[bytes]:
        """Yield what is left in pieces that grow, for a search that may end soon and puts back the rest."""
        size = _PACKED
        while piece := self.read(size):
            yield piece
            size = min(2 * size, _PIECE)

    def move_to(self, position: int) -> bool:
        """Go to a position, back only where `seekable`; False if the shard ends before it."""
        if self.size is not None:
            if position != self.position:
                self.position = min(position, self.size)
                self._storage.seek(self.position)
            return position <= self.size
        while self.position < position:
            if not self.read(min(_PIECE, position - self.position)):
                return False
        return True

    def _piece(self, count: int) -> bytes:
        limit = count if self.size is not None else min(count, _PIECE)
        try:
            return self._source.read(limit)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            if self._storage.failed or not self.compression:
                raise
            words = str(error).strip() or type(error).__name__
            what = f"is damaged ({words})"
            if isinstance(error, EOFError) or "Truncated" in words:
                what = "ends early"
            elif "memory" in words.lower():
                what = "needs too much memory to be unpacked"
            raise DamagedShardError(
                f"the shard cannot be read to its end: its {self.compression} compression {what} behind "
                f"{self.position:,} unpacked bytes"
            ) from error


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Storage:
    """The shard's file; remembers whether it was the one that failed, so that unpacking is not blamed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ahead = b""
        self.failed = False
        self.closed = False
        self.start = 0
        self.size: int | None = None
        if stream.seekable():
            self.start = stream.tell()
            try:
                self.size = stream.seek(0, io.SEEK_END)
            except (
                OSError,
                ValueError,
            ):  # streams of web servers that state no length say they can, and cannot
                return
            stream.seek(self.start)

    def peek(self, count: int) -> bytes:
        while len(self._ahead) < count and (piece := self._stream.read(count - len(self._ahead))):
            self._ahead += piece
        return self._ahead

    def read(self, count: int, /) -> bytes:
        """Read all of `count` bytes if they are there: what is unpacked before damage must not hang on chance."""
        pieces = [self._ahead[:count]] if self._ahead else []
        missing, self._ahead = count - len(self._ahead[:count]), self._ahead[count:]
        try:
            while missing > 0 and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except BaseException:
            self.failed = True
            raise
        return b"".join(pieces)

    def seek(self, position: int) -> None:
        self._ahead = b""
        self._stream.seek(position)

    def close(self) -> None:
        """Leave the stream open: it belongs to whoever opened it."""


def _unpack(compression: str, storage: _Storage) -> _Readable:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=cast(BinaryIO, storage))
    if compression == "bzip2":
        return _Frames(storage, bz2.BZ2Decompressor)
    if compression == "xz":
        return _Frames(storage, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
    stream: _Readable = pa.CompressedInputStream(pa.PythonFile(storage, mode="r"), compression)
    return stream


class _Frames:
    """Unpacks bzip2 and xz, whose streams may follow one another as gzip's do."""

    def __init__(
        self, storage: _Storage, start: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
    ) -> None:
        self._storage = storage
        self._start = start
        self._frame = start()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._frame.eof:
                rest = self._frame.unused_data.lstrip(b"\0")
                while not rest:  # zeros between and behind the streams are padding
                    piece = self._storage.read(_PACKED)
                    if not piece:
                        return b""
                    rest = piece.lstrip(b"\0")
                self._frame = self._start()
            elif self._frame.needs_input:
                rest = self._storage.read(_PACKED)
                if not rest:
                    raise EOFError
            else:
                rest = b""
            piece = self._frame.decompress(rest, size)
            if piece:
                return piece
