"""The files that a folder, a file or a glob stands for, on any storage."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote

import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.storage import open_storage, redact
from pipelines.transport.addresses import local_path
from pipelines.transport.causes import TransferError, blamed_on
from pipelines.transport.patience import patiently, within
from pipelines.transport.walking import Entry, walk_entries

ListedFile = tuple[str, int, bool]
ListedEntry = tuple[Entry, bool]
_CALL_S = 60.0
_LEVELS_UP = 8


def list_files(pattern: str, accepts: Callable[[str], bool]) -> tuple[str, Iterator[ListedFile]]:
    """List the files that a folder, file or glob stands for.

    Args:
        pattern: A folder (listed recursively), one file, or a glob in which ``**`` crosses folders and ``{a,b}``
            and ``{000..012}`` expand. A local name that exists as it stands is no glob.
        accepts: Which names of a folder to take; a file or glob that the user wrote out is taken as it is.

    Returns:
        The root (path or URI, query kept), and (relative path, size, accepted) of each file.

    Raises:
        StorageError: Nothing is there; while listing, a folder that cannot be listed, or a FIFO or device in the
            place of an accepted file.
    """
    root, entries = list_entries(pattern, accepts)
    return root, _strictly(root, entries)


def _strictly(root: str, entries: Iterator[ListedEntry]) -> Iterator[ListedFile]:
    for entry, accepted in entries:
        if entry.kind == "folder" or (entry.problem and accepted):
            raise StorageError(f"{redact(root).rstrip('/')}/{entry.path}: {entry.problem}")
        yield entry.path, entry.size, accepted


def list_entries(pattern: str, accepts: Callable[[str], bool]) -> tuple[str, Iterator[ListedEntry]]:
    """List as `list_files` does, what cannot be read included: folders that cannot be listed, FIFOs and devices.

    Returns:
        The root, and each entry with whether it is accepted.
    """
    wild = _first_wild_piece(pattern)
    if wild is None or ("://" not in pattern and kind_at(pattern) != pafs.FileType.NotFound):
        return _list_plain(pattern, accepts)
    address, mark, query = _split_query(pattern)
    pieces = address.split("/")
    root = "/".join(pieces[:wild]) or ("/" if pattern.startswith("/") else ".")
    root = f"{root}{mark}{query}"
    if kind_at(root) != pafs.FileType.Directory:
        raise StorageError(
            f"no such folder: {redact(root)} (from the pattern {redact(pattern)}){nearest_place(root)}; check the path"
        )
    filesystem, path = open_storage(root)
    parts = [unquote(piece) if "://" in pattern else piece for piece in pieces[wild:]]
    found = walk_entries(filesystem, path, lambda folder: may_lead_to(folder.split("/"), parts))
    return root, ((entry, True) for entry in found if _concerns(entry, parts))


def _concerns(entry: Entry, parts: Sequence[str]) -> bool:
    """Say whether a glob wants an entry, or something that may have lain below it."""
    pieces = entry.path.split("/")
    return matches(pieces, parts) or (entry.kind == "folder" and may_lead_to(pieces, parts))


def _list_plain(uri: str, accepts: Callable[[str], bool]) -> tuple[str, Iterator[ListedEntry]]:
    kind = kind_at(uri)
    if kind == pafs.FileType.NotFound:
        raise StorageError(
            f"no such file or folder: {redact(uri)}{nearest_place(uri)}; check the path of the images"
        )
    filesystem, path = open_storage(uri)
    if kind == pafs.FileType.Directory:
        return uri, ((entry, accepts(entry.path)) for entry in walk_entries(filesystem, path))
    name = path.rstrip("/").rpartition("/")[2]
    if kind == pafs.FileType.Unknown:
        raise StorageError(f"{redact(uri)} is a FIFO, a socket or a device; give a file or a folder")
    return _parent(uri), iter([(Entry(name, 0), True)])


def nearest_place(uri: str) -> str:
    """Say which folder above a missing place is there, and what in it has a similar name; "" where none is."""
    missing = uri
    for _ in range(_LEVELS_UP):
        parent = _parent(missing)
        if parent in (missing, ".") or parent.partition("?")[0].endswith((":/", "://")):
            return ""
        try:
            if kind_at(parent) == pafs.FileType.Directory:
                filesystem, path = open_storage(parent)
                with blamed_on(parent):
                    found = filesystem.get_file_info(pafs.FileSelector(path))
                names = [entry.base_name for entry in islice(found, 1000)]
                wanted = _split_query(missing)[0].rstrip("/").rpartition("/")[2]
                close = get_close_matches(wanted, names, 3, 0.5)
                return f" ({redact(parent)} is there{', and holds ' + ', '.join(close) if close else ''})"
        except (TransferError, StorageError):
            return ""
        missing = parent
    return ""


def matches(pieces: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether the folders and name of a path fit the pieces of a glob."""
    if not patterns:
        return not pieces
    if patterns[0] == "**":
        return any(matches(pieces[skipped:], patterns[1:]) for skipped in range(len(pieces) + 1))
    if not pieces or not _fits_piece(pieces[0], patterns[0]):
        return False
    return matches(pieces[1:], patterns[1:])


@lru_cache(maxsize=64)
def _options(pattern: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Expand braces once for all files; names without a wildcard are looked up, thousands of them at once."""
    options = expand_braces(pattern)
    wild = tuple(option for option in options if re.search(r"[*?\[]", option))
    return frozenset(options).difference(wild), wild


def may_lead_to(pieces: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether something below a folder may fit the pieces of a glob."""
    for piece, pattern in zip(pieces, patterns, strict=False):
        if pattern == "**":
            return True
        if not _fits_piece(piece, pattern):
            return False
    return len(pieces) < len(patterns)


def _fits_piece(piece: str, pattern: str) -> bool:
    names, globs = _options(pattern)
    return piece in names or any(fnmatchcase(piece, option) for option in globs)


def expand_braces(text: str) -> list[str]:
    """Expand ``{a,b}`` and ``{000..012}``; other braces stay as they are."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if match is None:
        return [text]
    first, last, options = match.groups()
    if options is None:
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        values = options.split(",")
    head, tail = text[: match.start()], text[match.end() :]
    return [expanded for value in values for expanded in expand_braces(f"{head}{value}{tail}")]


def kind_at(uri: str) -> pafs.FileType:
    """Say what lies at an address; "Unknown" is a FIFO, a socket or a device."""
    path = local_path(uri)
    try:
        if path is not None:
            return _local_kind(path)
        filesystem, inside = open_storage(uri)

        def ask() -> pafs.FileType:
            with blamed_on(uri):
                return filesystem.get_file_info(inside).type

        return patiently(lambda left: within(left, ask, f"reaching {redact(uri)}"), _CALL_S, redact(uri))
    except TransferError as error:
        raise StorageError(f"cannot reach {redact(uri)}: {error}") from error


def _local_kind(path: str) -> pafs.FileType:
    try:
        with blamed_on(path):
            mode = os.stat(path).st_mode  # noqa: PTH116 (it may be no text)
    except TransferError as error:
        if error.error_type in ("FileNotFoundError", "NotADirectoryError"):
            return pafs.FileType.NotFound
        raise
    if stat.S_ISDIR(mode):
        return pafs.FileType.Directory
    return pafs.FileType.File if stat.S_ISREG(mode) else pafs.FileType.Unknown


def _first_wild_piece(pattern: str) -> int | None:
    address, _, _ = _split_query(pattern)
    wild = re.compile(r"[*\[{]" if "://" in pattern else r"[*?\[{]")
    return next((index for index, piece in enumerate(address.split("/")) if wild.search(piece)), None)


def _split_query(uri: str) -> tuple[str, str, str]:
    address, mark, query = uri.partition("?")
    options = local_path(uri) is None and "=" in query  # else the question mark belongs to a name
    return (address, mark, query) if options else (uri, "", "")


def _parent(uri: str) -> str:
    address, mark, query = _split_query(uri)
    head, slash, _ = address.rstrip("/").rpartition("/")
    return f"{head or '/'}{mark}{query}" if slash else "."
