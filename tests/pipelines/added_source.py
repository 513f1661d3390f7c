"""A source in one file, as somebody would add it to `pipelines/sources/kinds`: the images of zip archives.

`test_source_kinds` lays it beside the kinds there are and uses it from the command line to the rows.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.sources.kinds.base import SourceKind, place, setting

if TYPE_CHECKING:
    from pipelines.sources.record import Source


@dataclass(frozen=True)
class ZipArchives(SourceKind):
    """Images in a zip archive.

    Attributes:
        zip: Zip archive of images.
        zip_folder: Folder of the zip archive that the images lie in; the default is all of it.
    """

    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {"zip archive": (".zip",)}

    zip: str | None = place("FILE")
    zip_folder: str | None = setting("NAME")

    def open(self) -> "Source":
        """Open the archive, and see that it is one."""
        from zipfile import BadZipFile, ZipFile

        from ovss_core.errors import ImageError, StorageError
        from pipelines.sources.fetch import ImageFetcher, Row
        from pipelines.sources.record import ImageRecord

        class ZipFetcher(ImageFetcher):
            def read(self, row: Row) -> bytes:
                if row["container"] != "zip":
                    return super().read(row)
                with ZipFile(self.source) as archive:
                    if archive.getinfo(row["path"]).file_size > self.max_bytes:
                        raise ImageError(f"more than {self.max_bytes} bytes")
                    return archive.read(row["path"])

        class ZipSource:
            ignored = 0

            def __init__(self, uri: str, folder: str) -> None:
                self.uri = uri
                try:
                    with ZipFile(uri) as archive:
                        self._names = sorted(
                            entry.filename
                            for entry in archive.infolist()
                            if not entry.is_dir() and entry.filename.startswith(folder)
                        )
                except (OSError, BadZipFile) as error:
                    raise StorageError(f"cannot read the zip archive {uri}: {error}") from error

            def describe(self) -> dict[str, Any]:
                return {"kind": "zip", "uri": self.uri}

            def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
                return ZipFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

            def containers(self) -> None:
                return None

            def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
                for name in self._names:
                    yield ImageRecord(name, f"{self.uri}#{name}", "zip", path=name)

        return ZipSource(self.zip or "", self.zip_folder or "")
