"""The files that a folder, a file or a glob stands for, on any storage."""

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.storage import open_storage, redact, walk

ListedFile = tuple[str, int, bool]


def list_files(pattern: str, accepts: Callable[[str], bool]) -> tuple[str, Iterator[ListedFile]]:
    """List the files that a folder, file or glob stands for.

    Args:
        pattern: A folder (listed recursively), one file, or a glob in which ``**`` crosses folders and ``{a,b}``
            and ``{000..012}`` expand. A local name that exists as it stands is no glob.
        accepts: Which names of a folder to take; a file or glob that the user wrote out is taken as it is.

    Returns:
        The root (path or URI, query kept), and (relative path, size, accepted) of each file.

    Raises:
        StorageError: Nothing is there.
    """
    wild = _first_wild_piece(pattern)
    if wild is None or ("://" not in pattern and _kind(pattern) != pafs.FileType.NotFound):
        return _list_plain(pattern, accepts)
    address, mark, query = _split_query(pattern)
    pieces = address.split("/")
    root = "/".join(pieces[:wild]) or ("/" if pattern.startswith("/") else ".")
    root = f"{root}{mark}{query}"
    if _kind(root) != pafs.FileType.Directory:
        raise StorageError(
            f"no such folder: {redact(root)} (from the pattern {redact(pattern)}); check the path"
        )
    filesystem, path = open_storage(root)
    parts = pieces[wild:]
    found = walk(filesystem, path)
    return root, ((name, size, True) for name, size in found if matches(name.split("/"), parts))


def _list_plain(uri: str, accepts: Callable[[str], bool]) -> tuple[str, Iterator[ListedFile]]:
    kind = _kind(uri)
    if kind == pafs.FileType.NotFound:
        raise StorageError(f"no such file or folder: {redact(uri)}; check the path of the images")
    filesystem, path = open_storage(uri)
    if kind == pafs.FileType.Directory:
        return uri, ((name, size, accepts(name)) for name, size in walk(filesystem, path))
    info = filesystem.get_file_info(path)
    return _parent(uri), iter([(info.base_name, info.size or 0, True)])


def matches(pieces: Sequence[str], patterns: Sequence[str]) -> bool:
    """Say whether the folders and name of a path fit the pieces of a glob."""
    if not patterns:
        return not pieces
    if patterns[0] == "**":
        return matches(pieces, patterns[1:]) or (bool(pieces) and matches(pieces[1:], patterns))
    if not pieces:
        return False
    names, globs = _options(patterns[0])
    fits = pieces[0] in names or any(fnmatchcase(pieces[0], option) for option in globs)
    return fits and matches(pieces[1:], patterns[1:])


@lru_cache(maxsize=64)
def _options(pattern: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Expand braces once for all files; names without a wildcard are looked up, thousands of them at once."""
    options = expand_braces(pattern)
    wild = tuple(option for option in options if re.search(r"[*?\[]", option))
    return frozenset(options).difference(wild), wild


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


def _kind(uri: str) -> pafs.FileType:
    filesystem, path = open_storage(uri)
    try:
        return filesystem.get_file_info(path).type
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot reach {redact(uri)}: {str(error).splitlines()[0]}") from error


def _first_wild_piece(pattern: str) -> int | None:
    address, _, _ = _split_query(pattern)
    wild = re.compile(r"[*\[{]" if "://" in pattern else r"[*?\[{]")
    return next((index for index, piece in enumerate(address.split("/")) if wild.search(piece)), None)


def _split_query(uri: str) -> tuple[str, str, str]:
    return uri.partition("?") if "://" in uri else (uri, "", "")


def _parent(uri: str) -> str:
    address, mark, query = _split_query(uri)
    head, slash, _ = address.rstrip("/").rpartition("/")
    return f"{head or '/'}{mark}{query}" if slash else "."
