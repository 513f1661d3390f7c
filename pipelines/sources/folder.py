"""A folder, a glob or one file: every image is a file of its own."""

from collections import Counter
from collections.abc import Collection, Iterator
from posixpath import splitext
from typing import Any

from ovss_core.errors import StorageError
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.kinds import kind_for
from pipelines.sources.listing import list_entries
from pipelines.sources.record import ImageRecord
from pipelines.storage import join_uri, open_storage, redact
from pipelines.transport.addresses import file_uri, printable
from pipelines.transport.stores import is_google_store

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *(
            "jpg",
            "jpeg",
            "jpe",
            "jfif",
            "jif",
            "mpo",
            "png",
            "apng",
            "bmp",
            "dib",
            "gif",
            "tif",
            "tiff",
            "webp",
        ),
        *("avif", "avifs", "heic", "heif", "heics", "heifs", "hif", "jxl"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jpm", "tga", "ico"),
    )
)
_WAYS_IN = {
    ".zip": "unpack archives first",
    ".txt": "give a list of images as a file, not its folder",
}


def has_image_extension(name: str) -> bool:
    """Say whether a file name ends like an image's; what the file holds is found out when it is decoded."""
    return splitext(name)[1].lower() in IMAGE_EXTENSIONS


class FolderSource:
    """Images that are files.

    The id of an image is its path relative to the folder, or to the part of a glob before its first wildcard; bytes
    of a name that are no UTF-8 are written as ``\\xff``. In a folder, files without an image extension and names
    that start with a dot are passed over; a file that ends like an image and is none becomes a failure row, and so
    does a folder that cannot be listed.

    Args:
        pattern: Folder, glob or file; local path or URI.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._root, _ = list_entries(pattern, has_image_extension)

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._root

    @property
    def lists_at_once(self) -> bool:
        """Whether even the first image is only known when all are listed."""
        return is_google_store(open_storage(self._root)[0])

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {"kind": "folder", "uri": redact(self.pattern)}

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> None:
        """Return None: there are no shards."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images, sorted folder by folder.

        Raises:
            StorageError: There is none; the message says what is there instead.
        """
        self.ignored, found = 0, 0
        others: Counter[str] = Counter()
        root, entries = list_entries(self.pattern, has_image_extension)
        public, base = redact(root), open_storage(root)[1].rstrip("/")
        names = _Names()
        for entry, accepted in entries:
            if entry.kind == "folder" or (entry.problem and accepted):
                shown = names.unique(entry.path)
                yield ImageRecord(shown, join_uri(public, entry.path), "broken", reason=entry.problem)
            elif accepted:
                yield file_record(names.unique(entry.path), public, base, entry.path)
            else:
                self.ignored += 1
                others[splitext(entry.path)[1].lower()] += 1
                continue
            found += 1
        if not found:
            raise StorageError(self._nothing_found(root, others))

    def _nothing_found(self, root: str, others: Counter[str]) -> str:
        if redact(root) != redact(self.pattern):
            return f"nothing matches {redact(self.pattern)}; {redact(root)} is there, check the rest of the pattern"
        hint = next(filter(None, (_way_in(ending) for ending, _ in others.most_common())), None)
        kinds = ", ".join(
            f"{count:,} {ending or 'without ending'}" for ending, count in others.most_common(3)
        )
        passed = (
            f" ({others.total():,} other files passed over: {kinds})" if others else " (the folder is empty)"
        )
        return f"no image in {redact(self.pattern)}{passed}; {hint or 'check the path'}"


class _Names:
    """Keeps apart what is shown alike: a name with the byte ff, and a name that spells ``\\xff``."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def unique(self, path: str) -> str:
        shown = printable(path)
        if "\\" not in shown:
            return shown
        number, name = 1, shown
        while name in self._seen:
            number += 1
            name = f"{shown}#{number}"
        self._seen.add(name)
        return name


def _way_in(ending: str) -> str | None:
    """Say how files that end so are given."""
    if found := kind_for(ending) or kind_for(f".tar{ending}"):  # shards are packed as .tar.gz
        return f"{found[0]}s are given with {found[1]}"
    return _WAYS_IN.get(ending)


def file_record(image_id: str, public: str, base: str, relative: str) -> ImageRecord:
    """Return the record of a file below a root.

    Args:
        public: The root's address as `redact` returns it.
        base: The root's path inside its file system.
        relative: The file's path below it; it may hold bytes that are no text, which travel as a ``file://`` URI.
    """
    path = f"{base}/{relative}"
    if printable(path) == path:
        return ImageRecord(image_id, join_uri(public, relative), "file", path=path)
    return ImageRecord(image_id, file_uri(path), "uri", path=file_uri(path))
