"""Where images come from; each kind of source turns its listing into one record an image, and fetches their bytes.

The flags of the kinds are in `pipelines.sources.kinds`, which reads nothing and is imported by every command; so what
reads is imported here only when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.sources.folder import FolderSource
    from pipelines.sources.image_list import ListSource, open_images
    from pipelines.sources.parquet import ParquetSource
    from pipelines.sources.record import ImageRecord, Source
    from pipelines.sources.webdataset import WebDatasetSource

_HOMES = {
    "FolderSource": "folder",
    "ImageRecord": "record",
    "ListSource": "image_list",
    "ParquetSource": "parquet",
    "Source": "record",
    "WebDatasetSource": "webdataset",
    "open_images": "image_list",
}

__all__ = [
    "FolderSource",
    "ImageRecord",
    "ListSource",
    "ParquetSource",
    "Source",
    "WebDatasetSource",
    "open_images",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
