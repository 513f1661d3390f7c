"""Parquet tables with an image column: bytes, the Hugging Face struct, or addresses."""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ovss_core.errors import ConfigError, StorageError, nearest
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.listing import list_files
from pipelines.sources.parquet_columns import can_name, image_kind
from pipelines.sources.parquet_listing import FileListing, Placed, TableFolder, may_pass
from pipelines.sources.record import ImageRecord
from pipelines.sources.table_formats import find_snapshot, hudi_error, warn_of_glob
from pipelines.storage import redact
from pipelines.transport.causes import one_line

_CANDIDATES = ("image", "bytes", "jpg", "jpeg", "png", "img", "image_bytes", "uri", "url", "path")
_ENDINGS = (".parquet", ".pq", ".parq")
_SCHEMAS_TRIED = 16
_FILES_AT_ONCE = 8
_ROWS_LISTED_AHEAD = 8192


class ParquetSource:
    """Images in the rows of Parquet files.

    The image column holds bytes (any binary type, or lists of uint8), a struct ``{bytes, path}`` (where bytes are
    null, the path is opened), ``data:image/...;base64,`` text, or addresses: URIs, absolute paths, or paths
    relative to the Parquet file. The id of an image is the id column's value, or ``file#row`` without one; an id
    that comes again, in this listing or in the manifest, gets its file, row group and row appended.

    In a folder, files that end in .parquet, .pq or .parq are taken; names that begin with "_" or "." are passed
    over, as Spark and pyarrow do. A Delta table gives the rows of its current version.

    Args:
        pattern: A file, a folder of Parquet files or a glob.
        image_column: Name of the image column; None finds "image", "bytes", ... by itself.
        id_column: Name of a column of unique ids.

    Raises:
        ConfigError: Columns that are not there or cannot be used; a table that needs its own reader.
        StorageError: Nothing is there, or nothing that can be read.
    """

    def __init__(self, pattern: str, image_column: str | None = None, id_column: str | None = None) -> None:
        self.pattern = pattern
        self.ignored = 0
        self._root, self._files, self._kept = self._find_files()
        if not self._files:
            raise StorageError(
                f"no .parquet file in {redact(pattern)}; give a file, a folder of them or a glob"
            )
        self.image_column, self.id_column = self._check_columns(image_column, id_column)
        self._folder = TableFolder(self._root, self.image_column, self.id_column)

    def _find_files(self) -> tuple[str, list[str], Mapping[str, np.ndarray]]:
        root, listed = list_files(self.pattern, lambda name: name.lower().endswith(_ENDINGS))
        files = list(listed)
        if root != self.pattern:  # a file or a glob, which is taken as it is written
            if len(files) > 1:
                warn_of_glob(root)
            written = self.pattern.split("/")
            return root, [name for name, _, _ in files if not is_hidden(name, written)], {}
        if snapshot := find_snapshot(root, [name for name, _, _ in files]):
            return root, list(snapshot.files), snapshot.kept
        seen = [(name, accepted) for name, _, accepted in files if not is_hidden(name)]
        self.ignored = sum(not accepted for _, accepted in seen)
        return root, [name for name, accepted in seen if accepted], {}

    def _check_columns(self, image_column: str | None, id_column: str | None) -> tuple[str, str | None]:
        schemas: list[pa.Schema] = []
        candidates = (image_column,) if image_column else _CANDIDATES
        chosen: str | None = None
        for schema in self._some_schemas():
            schemas.append(schema)
            chosen = chosen or next((name for name in candidates if name in schema.names), None)
            if chosen and (id_column is None or _types(id_column, schemas)):
                break
        names, where = schemas[0].names, redact(self.pattern)
        if self._root == self.pattern and "_hoodie_record_key" in names:
            raise hudi_error(self._root)
        for flag, wanted, found in (
            ("--image-column", image_column, chosen is not None),
            ("--id-column", id_column, bool(_types(id_column, schemas))),
        ):
            if wanted is not None and not found:
                raise ConfigError(
                    f"no column {wanted!r} in {where}{nearest(wanted, names)}; give as {flag} one of {', '.join(names)}"
                )
        if chosen is None:
            fitting = [field.name for field in schemas[0] if image_kind(field.type)]
            raise ConfigError(
                f"which column of {where} holds the images? give as --image-column one of {', '.join(fitting)}"
                if fitting
                else f"no column of {where} can hold images; its columns are {', '.join(names)}"
            )
        self._check_types(chosen, id_column, schemas)
        return chosen, id_column

    def _check_types(self, image_column: str, id_column: str | None, schemas: list[pa.Schema]) -> None:
        kinds = _types(image_column, schemas)
        if not any(image_kind(kind) for kind in kinds):
            found = str(kinds[0])[:200] if kinds else "there twice"
            raise ConfigError(
                f"column {image_column!r} of {redact(self.pattern)} is {found}; images are bytes (or lists of uint8), "
                "a struct with bytes and path, or addresses as strings"
            )
        if id_column is not None and not any(can_name(kind) for kind in _types(id_column, schemas)):
            raise ConfigError(
                f"column {id_column!r} of {redact(self.pattern)} is {str(_types(id_column, schemas)[0])[:200]}; ids "
                "are text, numbers or bytes"
            )

    def _some_schemas(self) -> Iterator[pa.Schema]:
        """Yield the schemas of the first readable files: one of them may lack a column that the next one has."""
        folder, reason, found = TableFolder(self._root, "", None), "", 0
        for name in self._files:
            try:
                with closing(folder.open(name)) as file:
                    yield file.schema
            except Exception as error:
                if may_pass(error):
                    raise
                reason = reason or one_line(error, self._root)
                continue
            found += 1
            if found == _SCHEMAS_TRIED:
                return
        if not found:
            raise StorageError(f"no readable Parquet file in {redact(self.pattern)}: {reason}")

    def column_type(self, name: str) -> pa.DataType | None:
        """Return the type of a column; None where the first readable files have none of that name."""
        return next((kind for schema in self._some_schemas() for kind in _types(name, [schema])), None)

    def column_names(self) -> list[str]:
        """Return the columns of the first readable file."""
        return list(next(self._some_schemas()).names)

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

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return ImageFetcher(self.uri, self.image_column, max_bytes, timeout_s)

    def containers(self) -> list[str]:
        """Return the Parquet files there are."""
        return list(self._files)

    def records(
        self, skip: Collection[str] = (), taken: Callable[[str], bool] | None = None
    ) -> Iterator[ImageRecord]:
        """List the images file by file, row by row; no image bytes are read.

        Args:
            skip: Files that are listed already.
            taken: Says whether an id names another image already, such as one of the files in `skip`.

        Raises:
            TransferError: The storage failed while it was listed; a later try may get further.
        """
        known = frozenset(skip)
        seen: set[bytes] = set()
        for record, place in self._in_order(name for name in self._files if name not in known):
            yield _make_unique(record, place, seen, taken) if self.id_column else record

    def _in_order(self, names: Iterable[str]) -> Iterator[Placed]:
        """List files in order, with the next few being opened meanwhile."""
        ahead: deque[Future[Iterable[Placed]]] = deque()
        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
            for name in names:
                ahead.append(threads.submit(self._begin, name))
                if len(ahead) > _FILES_AT_ONCE:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    def _begin(self, name: str) -> Iterable[Placed]:
        try:
            file = self._folder.open(name)
        except Exception as error:
            if may_pass(error):
                raise
            reason = f"the Parquet file cannot be read: {one_line(error, self._root)}"
            return [self._folder.broken(name, name, reason)]
        listing = FileListing(self._folder, name, file, self._kept.get(name))
        return list(listing.records()) if listing.rows <= _ROWS_LISTED_AHEAD else listing.records()


def is_hidden(name: str, written: Collection[str] = ()) -> bool:
    """Say whether a folder or file of a path is none of the data's, such as ``_temporary/0/part-0.parquet``.

    Args:
        written: Pieces of the user's own pattern; one that begins with "_" or "." asks for such names.
    """
    asked = {piece[:1] for piece in written}
    return any(
        (piece[:1] in ("_", ".") and piece[:1] not in asked and "=" not in piece) for piece in name.split("/")
    )


def _types(column: str | None, schemas: Iterable[pa.Schema]) -> list[pa.DataType]:
    return [schema.field(column).type for schema in schemas if column and schema.names.count(column) == 1]


def _make_unique(
    record: ImageRecord, place: str, seen: set[bytes], taken: Callable[[str], bool] | None
) -> ImageRecord:
    suffix, image_id = 0, record.image_id
    while (key := hashlib.blake2b(image_id.encode(), digest_size=8).digest()) in seen or (
        taken is not None and taken(image_id)
    ):
        image_id = f"{record.image_id}#{place}" + (f"#{suffix}" if suffix else "")
        suffix += 1
    seen.add(key)
    return record if image_id == record.image_id else replace(record, image_id=image_id)
