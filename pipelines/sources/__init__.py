"""Where images come from; each kind of source turns its listing into one record an image."""

from pipelines.sources.folder import FolderSource
from pipelines.sources.image_list import ListSource, open_images
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.record import ImageRecord, Source
from pipelines.sources.webdataset import WebDatasetSource

__all__ = [
    "FolderSource",
    "ImageRecord",
    "ListSource",
    "ParquetSource",
    "Source",
    "WebDatasetSource",
    "open_images",
]
