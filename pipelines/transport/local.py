"""Files of this machine: read to a limit, never waited for, and written so that a power cut leaves whole ones."""

import errno
import os
import stat
import uuid
from contextlib import suppress

from ovss_core.errors import ImageError
from pipelines.transport.causes import blamed_on
from pipelines.transport.limits import check_size

_PATH_BYTES = 4000  # a system call takes 4,095 bytes at once
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF})
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_path(path: str, flags: int) -> int:
    """Open a local file or folder whatever the length of its path; a longer one is opened folder by folder."""
    rest = os.fsencode(path)
    folder: int | None = None
    try:
        while len(rest) >= _PATH_BYTES:
            cut = rest.rfind(b"/", 1, _PATH_BYTES)
            if cut < 0:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            below = os.open(rest[:cut], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            if folder is not None:
                os.close(folder)
            folder, rest = below, rest[cut + 1 :]
        return os.open(rest, flags | os.O_CLOEXEC, dir_fd=folder)
    finally:
        if folder is not None:
            os.close(folder)


def kind_of(mode: int) -> str | None:
    """Name what is no regular file by its mode; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for holds, name in _KINDS if holds(mode)), "no regular file")


def read_local(path: str, max_bytes: int) -> bytes:
    """Return a whole regular file; FIFOs and devices are never waited for.

    Raises:
        TransferError: It is not there, or cannot be read.
        ImageError: It is larger than `max_bytes`, no regular file, or shrinks while it is read.
    """
    with blamed_on(path):
        known = os.stat(path).st_mode if len(os.fsencode(path)) < _PATH_BYTES else stat.S_IFREG  # noqa: PTH116
    if kind := kind_of(known):
        raise ImageError(f"this is {kind}, not a file")
    with blamed_on(path):
        # without O_NONBLOCK the open of a FIFO that took the file's place would wait for a writer
        descriptor = open_path(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb", buffering=0, closefd=True) as file:
        with blamed_on(path):
            facts = os.fstat(descriptor)
        if kind := kind_of(facts.st_mode):
            raise ImageError(f"this is {kind}, not a file")
        check_size(facts.st_size, max_bytes)
        pieces, left = [], max_bytes + 1
        while left > 0:
            with blamed_on(path):
                piece = file.read(min(left, max(facts.st_size + 1, 1 << 16)))
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) > max_bytes:
        raise ImageError(f"the file holds more than max_bytes ({max_bytes:,})")
    if len(data) < facts.st_size:
        raise ImageError(f"the file was cut while it was read ({len(data):,} of {facts.st_size:,} bytes)")
    return data


def write_local(path: str, data: bytes) -> None:
    """Write a whole file: under a hidden name beside its place, through to the disk, then renamed.

    Without the two syncs, a power cut can leave an empty file under the final name, and the marker of a part in
    front of the part that it vouches for.
    """
    folder = os.path.dirname(path)  # noqa: PTH120 (it may be no text)
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    hidden = os.path.join(folder, f".{uuid.uuid4().hex}.part")  # noqa: PTH118
    try:
        with open(hidden, "xb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            _sync(file.fileno())
        os.replace(hidden, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.unlink(hidden)  # noqa: PTH108
        raise
    _sync_folder(folder)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network file systems do not know it
            raise


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)
