"""Parquet tables with an image column: bytes, the Hugging Face struct, or addresses."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import ConfigError, StorageError
from pipelines.sources.listing import list_files
from pipelines.sources.record import ImageRecord
from pipelines.storage import join_uri, open_storage, redact

_CANDIDATES = ("image", "bytes", "jpg", "jpeg", "png", "img", "image_bytes", "uri", "url", "path")
_ROWS = 1024


class ParquetSource:
    """Images in the rows of Parquet files.

    The image column holds bytes, a struct ``{bytes, path}`` (where bytes are null, the path is opened), or
    addresses: URIs, absolute paths, or paths relative to the Parquet file. The id of an image is the id column's
    value, or ``file#row`` without one; an id that comes again gets ``#file#row`` appended.

    Args:
        pattern: A file, a folder of ``*.parquet`` or a glob.
        image_column: Name of the image column; None finds "image", "bytes", ... by itself.
        id_column: Name of a column of unique ids.
    """

    def __init__(self, pattern: str, image_column: str | None = None, id_column: str | None = None) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._root, files = list_files(pattern, lambda name: name.lower().endswith((".parquet", ".pq")))
        self._files = [name for name, _, accepted in files if accepted]
        if not self._files:
            raise StorageError(
                f"no .parquet file in {redact(pattern)}; give a file, a folder of them or a glob"
            )
        self._filesystem, self._base = open_storage(self._root)
        self.image_column, self.id_column = self._check_columns(image_column, id_column)

    def _check_columns(self, image_column: str | None, id_column: str | None) -> tuple[str, str | None]:
        schema = self._schema_of_first_readable()
        names = schema.names
        chosen = image_column or next((name for name in _CANDIDATES if name in names), None)
        for wanted in (chosen, id_column):
            if wanted is not None and wanted not in names:
                raise ConfigError(f"no column {wanted!r} in {redact(self.pattern)}; its columns are {names}")
        if chosen is None:
            raise ConfigError(f"which column of {redact(self.pattern)} holds the images? Give one of {names}")
        kind = schema.field(chosen).type
        if not (_is_bytes(kind) or _is_text(kind) or _is_image_struct(kind)):
            raise ConfigError(
                f"column {chosen!r} of {redact(self.pattern)} is {kind}; images are bytes, a struct with bytes and "
                "path, or addresses as strings"
            )
        return chosen, id_column

    def _schema_of_first_readable(self) -> pa.Schema:
        reason = ""
        for name in self._files:
            try:
                return pq.read_schema(self._at(name), filesystem=self._filesystem)
            except (OSError, pa.ArrowException) as error:
                reason = reason or str(error).splitlines()[0]
        raise StorageError(f"no readable Parquet file in {redact(self.pattern)}: {reason}")

    def _at(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        return {
            "kind": "parquet",
            "uri": redact(self.pattern),
            "image_column": self.image_column,
            "id_column": self.id_column,
        }

    def containers(self) -> list[str]:
        """Return the Parquet files there are."""
        return list(self._files)

    def records(
        self, skip: Collection[str] = (), taken: Callable[[str], bool] | None = None
    ) -> Iterator[ImageRecord]:
        """List the images file by file, row by row; no image bytes are read.

        Args:
            taken: Says of an id whether an earlier listing gave it to an image of the files in `skip`.
        """
        known = frozenset(skip)
        seen: set[bytes] = set()
        for name in self._files:
            if name in known:
                continue
            for record in self._file_records(name):
                yield self._make_unique(record, name, seen, taken) if self.id_column else record

    def _file_records(self, name: str) -> Iterator[ImageRecord]:
        uri, position = join_uri(redact(self._root), name), 0
        try:
            with pq.ParquetFile(self._at(name), filesystem=self._filesystem) as file:
                text = _is_text(file.schema_arrow.field(self.image_column).type)
                columns = [
                    column for column in (self.id_column, self.image_column if text else None) if column
                ]
                for group in range(file.metadata.num_row_groups):
                    for row, values in enumerate(_rows(file, group, columns)):
                        image_id = self._image_id(values, name, position)
                        if text:
                            yield self._address_record(image_id, values.get(self.image_column), name)
                        else:
                            yield ImageRecord(
                                image_id, uri, "parquet", path=self._at(name), row_group=group, row=row
                            )
                        position += 1
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            reason = f"the Parquet file cannot be read to its end: {str(error).splitlines()[0]}"
            yield ImageRecord(name, uri, "broken", path=self._at(name), reason=reason)

    def _image_id(self, values: dict[str, Any], name: str, position: int) -> str:
        value = values.get(self.id_column) if self.id_column else None
        return f"{name}#{position}" if value is None else str(value)

    def _address_record(self, image_id: str, address: str | None, name: str) -> ImageRecord:
        if not address:
            reason = f"column {self.image_column!r} is empty in this row"
            return ImageRecord(image_id, join_uri(redact(self._root), name), "broken", reason=reason)
        if "://" in address or address.startswith("/"):
            return ImageRecord(image_id, redact(address), "uri", path=address)
        beside = (PurePosixPath(name).parent / address).as_posix()
        return ImageRecord(image_id, join_uri(redact(self._root), beside), "file", path=self._at(beside))

    def _make_unique(
        self, record: ImageRecord, name: str, seen: set[bytes], taken: Callable[[str], bool] | None
    ) -> ImageRecord:
        suffix, image_id = 0, record.image_id
        while (key := hashlib.blake2b(image_id.encode(), digest_size=8).digest()) in seen or (
            taken and taken(image_id)
        ):
            place = f"{name}#{record.row_group or 0}.{record.row or 0}"
            image_id = f"{record.image_id}#{place}" + (f"#{suffix}" if suffix else "")
            suffix += 1
        seen.add(key)
        if image_id == record.image_id:
            return record
        fields = {slot: getattr(record, slot) for slot in ImageRecord.__slots__}
        return ImageRecord(**{**fields, "image_id": image_id})


def _rows(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0
