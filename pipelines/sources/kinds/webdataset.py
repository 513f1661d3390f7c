"""Images in WebDataset's tar shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipelines.sources.kinds.base import SourceKind, place

if TYPE_CHECKING:
    from pipelines.sources.record import Source


@dataclass(frozen=True)
class WebDatasetShards(SourceKind):
    """Images in tar shards.

    Attributes:
        webdataset: Tar shard, folder of shards or glob such as 'train-{0000..0127}.tar'.
        image_field: Field of a WebDataset sample that holds the picture, such as jpg or image.png; found by itself
            by default. Several that samples may have instead: jpg;png.
    """

    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tar archive": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
    }

    webdataset: str | None = place()
    image_field: str | None = None

    def open(self) -> "Source":
        """Open the shards, which are listed by their names."""
        from pipelines.sources.webdataset import WebDatasetSource

        return WebDatasetSource(self.webdataset or "", self.image_field)
