"""Images that are files: a folder, a glob, one file, or a list of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.sources.kinds.base import SourceKind, place

if TYPE_CHECKING:
    from pipelines.sources.record import Source


@dataclass(frozen=True)
class ImageFiles(SourceKind):
    """Images that are files.

    Attributes:
        images: Folder (searched below as well), glob, file, .txt list (a path or address a line) or COCO .json;
            local path or URI such as s3://bucket/folder.
    """

    images: str | None = place()

    def open(self) -> "Source":
        """Open the folder, the glob, the file or the list."""
        from pipelines.sources.image_list import open_images

        return open_images(self.images or "")
