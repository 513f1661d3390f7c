"""Images in a column of Parquet tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipelines.sources.kinds.base import SourceKind, place, setting

if TYPE_CHECKING:
    from pipelines.sources.record import Source


@dataclass(frozen=True)
class ParquetTables(SourceKind):
    """Images in Parquet tables.

    Attributes:
        parquet: Parquet file, folder or glob with a column of images.
        image_column: Column of the Parquet table: bytes, a struct with bytes and path, or addresses. Found by its
            name where there is one such as "image".
        id_column: Column of the Parquet table whose values name the images; the default is file#row.
    """

    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {"Parquet table": (".parquet", ".pq")}

    parquet: str | None = place()
    image_column: str | None = setting("NAME")
    id_column: str | None = setting("NAME")

    def open(self) -> "Source":
        """Open the tables, and find their columns."""
        from pipelines.sources.parquet import ParquetSource

        return ParquetSource(self.parquet or "", self.image_column, self.id_column)
