"""The words, or captions, that a corpus has beside each image: they travel with its bytes to the first stage.

They lie where carried columns lie (`pipelines.sources.carried`), but decide the masks. So what cannot be read is a
failure of its image, and never "no words".
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from ovss_core.errors import ConfigError, ImageError, StorageError, nearest
from pipelines.faults import Failure
from pipelines.sources.carried import FIELDS, MAX_BYTES, TEXT, read_beside, sidecar_stem, table_of
from pipelines.sources.folder import FolderSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.parquet_file import TableFile
from pipelines.sources.record import Source
from pipelines.sources.webdataset import WebDatasetSource
from pipelines.storage import open_storage, redact
from pipelines.transport.causes import TransferError
from pipelines.transport.whole import read_inside

STAGE = "words"
Row = Mapping[str, Any]
Texts = list[str] | None
"""Words or captions of an image, as the source has them; None where it has none."""


class ImageWords:
    """Reads what one column of a source says of its images.

    Args:
        source: URI of the source's root, credentials included.
        name: A column of a table, a key of the ``.json`` beside an image, or "txt" for the text of the ``.txt`` there.
        captions: Texts are captions, which are not split at commas.
        timeout_s: Seconds that one read may take, tries and waits included.
    """

    def __init__(self, source: str, name: str, captions: bool = False, timeout_s: float = 60.0) -> None:
        self.source, self.name, self.captions, self.timeout_s = source, name, captions, timeout_s
        self._group: tuple[tuple[str, int], pa.ChunkedArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the rows that were read behind when the object travels."""
        return {**self.__dict__, "_group": None}

    def read(self, rows: Sequence[Row], pool: ThreadPoolExecutor) -> list[Texts | Failure]:
        """Return the texts of manifest rows, or why they cannot be had, in order.

        Args:
            rows: With all columns of `MANIFEST_SCHEMA`.
            pool: Reads files beside images.
        """
        files = iter(pool.map(self._found, [row for row in rows if not _is_in_table(row)]))
        # a table is read row group by row group, by one thread
        return [self._found(row) if _is_in_table(row) else next(files) for row in rows]

    def _found(self, row: Row) -> Texts | Failure:
        try:
            return as_texts(self._value(row), self.captions)
        except (StorageError, ImageError, OSError, ValueError) as error:
            return Failure.of(STAGE, error)

    def of_beside(self, beside: Mapping[str, bytes]) -> Texts | Failure:
        """Return the texts of an image of a shard, from the fields of its sample."""
        try:
            return as_texts(self._named(beside), self.captions)
        except ImageError as error:
            return Failure.of(STAGE, error)

    def _value(self, row: Row) -> Any:
        path, group = table_of(row)
        if path is not None and group is not None:
            return self._of_table(path, group, row["row"])
        if row["container"] == "tar":
            carried = {} if row["carried"] is None else json.loads(row["carried"])
            return self._named(
                {ending: carried[ending].encode() for ending in (TEXT, FIELDS) if ending in carried}
            )
        if row["container"] != "file":
            return None  # what is broken has no image either
        ending = TEXT if self.name == TEXT else FIELDS
        path = open_storage(self.source)[1] if row["path"] is None else row["path"]  # the source is one file
        try:
            place = f"{sidecar_stem(path)}.{ending}"
            return self._named({ending: read_inside(self.source, place, MAX_BYTES, self.timeout_s)})
        except TransferError as error:
            if error.error_type == "FileNotFoundError":  # not every image has one
                return None
            raise

    def _of_table(self, path: str, group: int, row: int) -> Any:
        """Return a cell; the column of the row group that was read last is kept."""
        if self._group is None or self._group[0] != (path, group):
            with closing(TableFile(self.source, path, MAX_BYTES, self.timeout_s)) as file:
                if file.column_type(self.name) is None:
                    raise ImageError(f"the file has no column {self.name!r}")
                pieces = [batch.column(self.name) for batch in file.read_values(group, [self.name])]
            self._group = (path, group), pa.chunked_array(pieces)
        column = self._group[1]
        if row >= len(column):
            raise ImageError("the row is gone from the file")
        return column[row].as_py()

    def _named(self, beside: Mapping[str, bytes]) -> Any:
        wanted = TEXT if self.name == TEXT else FIELDS
        if wanted == FIELDS and FIELDS in beside:
            try:
                json.loads(beside[FIELDS])
            except (ValueError, RecursionError) as error:
                raise ImageError(f"the .json beside the image is none: {error}") from error
        return read_beside({wanted: beside[wanted]}).get(self.name) if wanted in beside else None


def _is_in_table(row: Row) -> bool:
    return table_of(row)[1] is not None


def as_texts(value: Any, captions: bool = False) -> Texts:
    """Return the texts of a cell: a list of texts, or one text, which holds words by commas or is a caption.

    Raises:
        ImageError: It is something else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return [value] if captions else value.split(",")
    if isinstance(value, list | tuple | np.ndarray):
        texts = [entry for entry in value if entry is not None]
        if all(isinstance(entry, str) for entry in texts):
            return texts
        odd = next(entry for entry in texts if not isinstance(entry, str))
        raise ImageError(f"the image's words are a list with {_kind(odd)} in it; they are texts")
    raise ImageError(f"the image's words are {_kind(value)}; they are a list of texts, or a text with commas")


def find_words(source: Source, name: str, captions: bool, flag: str, timeout_s: float = 60.0) -> ImageWords:
    """Find the column of a source that holds its images' words.

    Args:
        captions: It holds captions.
        flag: What named it.
        timeout_s: Seconds that one read may take.

    Raises:
        ConfigError: The source has no such column, or one that holds something else than texts.
    """
    if isinstance(source, ParquetSource):
        kind = source.column_type(name)
        if kind is None:
            names = source.column_names()
            raise ConfigError(
                f"no column {name!r} in {redact(source.pattern)}{nearest(name, names)}; give as {flag} one of {', '.join(names)}"
            )
        if not _is_text(kind) and not (_is_list(kind) and _is_text(kind.value_type)):
            raise ConfigError(
                f"column {name!r} of {redact(source.pattern)} is {str(kind)[:200]}; {flag} takes lists of texts, or texts"
            )
    elif not isinstance(source, FolderSource | WebDatasetSource):
        raise ConfigError(
            f"{flag} takes a column of --parquet, or what lies beside images in --webdataset and folders"
        )
    return ImageWords(source.uri, name, captions, timeout_s)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return kinds.get(type(value), type(value).__name__)
