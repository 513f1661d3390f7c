"""A folder, a glob or one file: every image is a file of its own."""

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from pipelines.sources.listing import list_files
from pipelines.sources.record import ImageRecord
from pipelines.storage import join_uri, open_storage, redact

IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *(
            "jpg",
            "jpeg",
            "jpe",
            "jfif",
            "png",
            "bmp",
            "dib",
            "gif",
            "tif",
            "tiff",
            "webp",
            "avif",
            "heic",
            "heif",
        ),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "tga", "ico"),
    )
)


def has_image_extension(name: str) -> bool:
    """Say whether a file name ends like an image's; what the file holds is found out when it is decoded."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


class FolderSource:
    """Images that are files.

    The id of an image is its path relative to the folder, or to the part of a glob before its first wildcard.
    In a folder, files without an image extension and names that start with a dot are passed over; a file that
    ends like an image and is none becomes a failure row.

    Args:
        pattern: Folder, glob or file; local path or URI.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._root, _ = list_files(pattern, has_image_extension)

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {"kind": "folder", "uri": redact(self.pattern)}

    def containers(self) -> None:
        """Return None: there are no shards."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images, sorted folder by folder."""
        self.ignored = 0
        root, files = list_files(self.pattern, has_image_extension)
        public, base = redact(root), open_storage(root)[1].rstrip("/")
        for name, _, accepted in files:
            if not accepted:
                self.ignored += 1
            elif name.isprintable() or _is_utf8(name):
                yield ImageRecord(name, join_uri(public, name), "file", path=f"{base}/{name}")
            else:
                shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                reason = "the file name is not valid UTF-8; rename the file"
                yield ImageRecord(shown, join_uri(public, shown), "broken", reason=reason)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
