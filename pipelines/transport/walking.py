"""Every file below a folder, on any storage, whatever the folder holds.

Links are followed as `find -L` does: a link to a folder further up is passed over, any other is listed. Folders
that link to each other can be reached along more ways than there are files; a folder is therefore listed through
links so many times at most, and what is passed over beyond that is said.
"""

import os
import stat
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.transport.causes import TransferError, blamed_on
from pipelines.transport.local import kind_of, open_path
from pipelines.transport.patience import patiently, within
from pipelines.transport.stores import is_google_store

_MAX_LISTINGS_BY_LINKS = 64
_LISTING_S = 300.0
LISTING_ALL_S = 6 * 3600.0
"""Seconds for one listing of all that lies below a place: ten million keys are ten thousand answers, one behind the other."""
_EMPTY_NAME = (
    "keys below it have a folder without a name (// or /./), which cannot be opened; copy them to other keys"
)
Enter = Callable[[str], bool]


class Entry(NamedTuple):
    """What a folder holds at one path.

    Attributes:
        path: Relative to the root; names that are no UTF-8 keep their bytes as Python's surrogates.
        size: Bytes.
        kind: "file"; "special" for what has no bytes to read (a FIFO, a device, a link to nothing); "folder" for a
            folder that could not be listed.
        problem: Why there is nothing to read, None for a file.
    """

    path: str
    size: int
    kind: Literal["file", "special", "folder"] = "file"
    problem: str | None = None


def walk(filesystem: pafs.FileSystem, root: str, enter: Enter | None = None) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the root, size) of every file below a folder, sorted, folder by folder.

    Names that start with a dot are left out, FIFOs and devices too. Memory is bounded by the largest single folder.

    Raises:
        StorageError: A folder cannot be listed.
    """
    for entry in walk_entries(filesystem, root, enter):
        if entry.kind == "folder":
            raise StorageError(f"cannot list {root.rstrip('/')}/{entry.path}: {entry.problem}")
        if entry.kind == "file":
            yield entry.path, entry.size


def walk_entries(filesystem: pafs.FileSystem, root: str, enter: Enter | None = None) -> Iterator[Entry]:
    """Yield what lies below a folder, what cannot be read included.

    Args:
        enter: Says of a folder's relative path whether anything below it can be wanted.

    Raises:
        StorageError: The root itself cannot be listed.
    """
    lister = _tree(filesystem, root)
    try:
        levels = [iter(lister.first())]
    except TransferError as error:
        raise StorageError(f"cannot list {root}: {error}") from error
    while levels:  # no recursion: trees are deeper than Python's stack
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            lister.leave()
        elif isinstance(found, Entry):
            yield found
        elif enter is None or enter(found.path):
            try:
                entries = lister.enter(found)
            except TransferError as error:
                yield Entry(found.path, 0, "folder", f"the folder cannot be listed: {error}")
                continue
            if isinstance(entries, Entry):
                yield entries
            elif entries is not None:
                levels.append(iter(entries))


def _tree(filesystem: pafs.FileSystem, root: str) -> "_LocalTree | _RemoteTree":
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _LocalTree(root)
    return (_TreeOfKeys if is_google_store(filesystem) else _RemoteTree)(filesystem, root)


class _Below(NamedTuple):
    """A folder to go into."""

    path: str
    by_link: bool = False
    identity: tuple[int, int] = (0, 0)


class _LocalTree:
    def __init__(self, root: str) -> None:
        self._root = root
        self._above: list[tuple[tuple[int, int], bool]] = []
        self._listings: Counter[tuple[int, int]] = Counter()

    def first(self) -> list[Entry | _Below]:
        with blamed_on(self._root):
            facts = os.stat(self._root) if len(os.fsencode(self._root)) < 4000 else None  # noqa: PTH116
        identity = (facts.st_dev, facts.st_ino) if facts else (0, 0)
        entries = self._list("")
        self._above.append((identity, False))
        return entries

    def enter(self, folder: _Below) -> "list[Entry | _Below] | Entry | None":
        if any(folder.identity == identity for identity, _ in self._above):  # a link that points back up
            return None
        linked = folder.by_link or self._above[-1][1]
        if linked:
            self._listings[folder.identity] += 1
            if self._listings[folder.identity] == _MAX_LISTINGS_BY_LINKS + 1:
                reason = f"more than {_MAX_LISTINGS_BY_LINKS} ways of links lead to this folder; it is listed no more"
                return Entry(folder.path, 0, "folder", reason)
            if self._listings[folder.identity] > _MAX_LISTINGS_BY_LINKS:
                return None
        entries = self._list(folder.path)
        self._above.append((folder.identity, linked))
        return entries

    def leave(self) -> None:
        self._above.pop()

    def _list(self, below: str) -> list[Entry | _Below]:
        place = os.path.join(self._root, below)  # noqa: PTH118 (one string a file; Path objects cost ten times that)
        with blamed_on(place), _scan(place) as entries:
            # the facts are asked for while the folder is open: a long path can only be reached through it
            found = [_look(entry, f"{below}/{entry.name}" if below else entry.name) for entry in entries]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.path)


@contextmanager
def _scan(place: str) -> Iterator[Iterator["os.DirEntry[str]"]]:
    if len(os.fsencode(place)) < 4000:
        with os.scandir(place) as entries:
            yield entries
        return
    descriptor = open_path(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            yield entries
    finally:
        os.close(descriptor)


def _look(entry: "os.DirEntry[str]", path: str) -> Entry | _Below | None:
    if entry.name.startswith("."):
        return None
    link = entry.is_symlink()
    try:
        facts = entry.stat()
    except FileNotFoundError:
        if not link:
            return Entry(path, 0)  # it went away; reading it will say so
        # without an ending it may have been a folder, and its images would be missing without a word
        kind: Literal["special", "folder"] = "special" if "." in entry.name else "folder"
        return Entry(path, 0, kind, "a link to something that is not there")
    except OSError as error:
        if not link and entry.is_file(follow_symlinks=False):
            return Entry(path, 0)  # reading it will say what is wrong
        return Entry(
            path, 0, "folder", f"a {'link' if link else 'folder'} that cannot be followed: {error.strerror}"
        )
    if stat.S_ISDIR(facts.st_mode):
        return _Below(path, link, (facts.st_dev, facts.st_ino))
    if kind_name := kind_of(facts.st_mode):
        return Entry(path, 0, "special", f"this is {kind_name}, not a file")
    return Entry(path, facts.st_size)


class _RemoteTree:
    _limit_s = _LISTING_S

    def __init__(self, filesystem: pafs.FileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def first(self) -> list[Entry | _Below]:
        return self._list("")

    def enter(self, folder: _Below) -> "list[Entry | _Below] | Entry | None":
        entries = self._list(folder.path)
        if not entries and "." in folder.path.rpartition("/")[2]:
            return Entry(
                folder.path, 0, "special", "this is the marker of a folder (a key that ends in /), not a file"
            )
        return entries

    def leave(self) -> None:
        """Nothing is kept of a folder that has been listed."""

    def _list(self, below: str) -> list[Entry | _Below]:
        here = f"{self._root}/{below}" if below else self._root
        entries = patiently(lambda _: self._ask(here), self._limit_s, f"listing {here}")
        found: list[Entry | _Below] = []
        nameless = Entry(f"{below}//" if below else "//", 0, "folder", _EMPTY_NAME)
        for entry in sorted(entries, key=lambda entry: str(entry.base_name)):
            name, folder = entry.base_name, entry.type == pafs.FileType.Directory
            path = f"{below}/{name}" if below else name
            if folder and (name in ("", ".", "..") or entry.path.rstrip("/") == here):
                found += [nameless] if nameless not in found[:1] else []
            elif not name.startswith("."):
                found.append(_Below(path) if folder else Entry(path, entry.size or 0))
        return found

    def _ask(self, here: str, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(here, recursive=recursive)

        def ask() -> list[pafs.FileInfo]:
            with blamed_on(here):
                listed: list[pafs.FileInfo] = self._filesystem.get_file_info(selector)
                return listed

        return within(self._limit_s, ask, f"listing {here}")


class _TreeOfKeys(_RemoteTree):
    """Google's store, whose folders are known by the keys below them: all are listed once, at the start, and kept."""

    _limit_s = LISTING_ALL_S

    def __init__(self, filesystem: pafs.FileSystem, root: str) -> None:
        super().__init__(filesystem, root)
        self._keys: list[str] | None = None
        self._sizes = array("q")

    def _ask(self, here: str, recursive: bool = False) -> list[pafs.FileInfo]:
        if self._keys is None:
            listed = super()._ask(self._root, recursive=True)
            listed.sort(key=key_of)
            self._sizes = array("q", (entry.size or 0 for entry in listed))
            self._keys = list(map(key_of, listed))
        found, prefix = [], f"{here}/"
        at = bisect_left(self._keys, prefix)
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            name, below, _ = self._keys[at][len(prefix) :].partition("/")
            if below:
                found.append(pafs.FileInfo(f"{prefix}{name}", pafs.FileType.Directory))
                at = bisect_left(self._keys, f"{prefix}{name}0", at)  # "0" comes next after "/"
                continue
            if name:  # else the marker of this folder
                found.append(pafs.FileInfo(f"{prefix}{name}", pafs.FileType.File, size=self._sizes[at]))
            at += 1
        return found


def key_of(entry: pafs.FileInfo) -> str:
    """Return the key of a listed object; that of a folder's marker ends in ``/``, whoever made it."""
    return f"{entry.path.removesuffix('/')}/" if entry.type == pafs.FileType.Directory else str(entry.path)
