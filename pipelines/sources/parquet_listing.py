"""The records of one Parquet file: its rows, from the footer and the columns of ids and addresses alone."""

import logging
import posixpath
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from ovss_core.errors import ImageError
from pipelines.sources.parquet_columns import (
    ImageKind,
    can_name,
    image_kind,
    is_address,
    locate,
    read_ids,
    read_texts,
)
from pipelines.sources.parquet_file import TableFile
from pipelines.sources.record import ImageRecord
from pipelines.storage import join_uri, open_storage, redact
from pipelines.transport.addresses import has_secrets
from pipelines.transport.causes import TransferError, one_line

_LOG = logging.getLogger(__name__)
_LONGEST_VALUE = 1 << 20
_PICTURE_BYTES = 4096
_ROWS_A_BYTE = 64
_FEW_ROWS = 1 << 20
_PIECE_ROWS = 4096

Placed = tuple[ImageRecord, str]
"""A record, and a place in the corpus that no other record has."""


@dataclass(frozen=True)
class TableFolder:
    """A folder of Parquet files, and the columns that are read from them.

    Attributes:
        root: Path or URI of the folder.
        image_column: Column of the images.
        id_column: Column that names the images; None for file#row.
    """

    root: str
    image_column: str
    id_column: str | None

    def path(self, name: str) -> str:
        """Return the path of a file inside the file system."""
        return f"{open_storage(self.root)[1].rstrip('/')}/{name}"

    def open(self, name: str) -> TableFile:
        """Open one of the files."""
        return TableFile(self.root, self.path(name), _LONGEST_VALUE)

    def broken(self, name: str, image_id: str, reason: str) -> Placed:
        """Return the record that stands for what cannot be listed."""
        uri = join_uri(redact(self.root), name)
        return ImageRecord(image_id, uri, "broken", path=self.path(name), reason=reason), image_id


@dataclass(frozen=True)
class _Group:
    """A row group; `position` is the place of its first row in the file."""

    number: int
    position: int
    rows: int


class FileListing:
    """The rows of one open file.

    Args:
        name: The file's path below the folder.
        kept: bool, one a row: False where the row is deleted.
    """

    def __init__(
        self, folder: TableFolder, name: str, file: TableFile, kept: np.ndarray | None = None
    ) -> None:
        self.folder = folder
        self.name = name
        self.file = file
        self.kept = kept
        self.rows: int = file.metadata.num_rows
        self._root = redact(folder.root)
        self._uri = join_uri(self._root, name)
        self._path = folder.path(name)

    def records(self) -> Iterator[Placed]:
        """List the rows, and close the file.

        Returns:
            One record a row; what cannot be listed is one broken record a file or row group, which says how many
            rows that costs.

        Raises:
            TransferError: The storage failed, for now; a later listing may get further.
        """
        with closing(self.file):
            kind, reason = self._image_kind()
            if kind is None:
                yield self._broken(self.name, f"{reason}; none of its {self.rows:,} rows is read")
                return
            names = [self.folder.id_column] if self._is_named() else []
            position = 0
            for number in range(self.file.metadata.num_row_groups):
                group = _Group(number, position, self.file.metadata.row_group(number).num_rows)
                position += group.rows
                if lie := _implausible(self.file, number):
                    yield self._broken(f"{self.name}#row group {number}", lie)
                else:
                    yield from self._list_group(group, names, kind == "text")

    def _image_kind(self) -> tuple[ImageKind | None, str]:
        column = self.folder.image_column
        try:
            kind = self.file.column_type(column)
        except ImageError as error:
            return None, str(error)
        if kind is None:
            names = ", ".join(self.file.schema.names[:8])
            return None, f"the file has no column {column!r} (it has {names})"
        return image_kind(kind), f"column {column!r} is {str(kind)[:80]} in this file"

    def _is_named(self) -> bool:
        column = self.folder.id_column
        if column is None:
            return False
        try:
            kind = self.file.column_type(column)
        except ImageError:
            kind = None
        if kind is None or not can_name(kind):
            _LOG.warning("%s: no column %r with ids; its images are named file#row", self.name, column)
        return kind is not None and can_name(kind)

    def _list_group(self, group: _Group, names: list[str | None], text: bool) -> Iterator[Placed]:
        done = 0
        try:
            text = text and not _holds_pictures(self.file, group.number, self.folder.image_column)
            for ids, addresses in self._values(group, names, text):
                for image_id, address in zip(ids, addresses, strict=True):
                    if self._keeps(group.position + done):
                        yield self._record(group, done, image_id, address, text)
                    done += 1
        except Exception as error:
            if may_pass(error):
                raise
            yield self._rest(group, done, one_line(error, self.folder.root))
        else:
            if done < group.rows:
                yield self._rest(group, done, f"the row group ends after {done:,} rows")

    def _values(
        self, group: _Group, names: list[str | None], text: bool
    ) -> Iterator[tuple[list[str | None], list[str | None]]]:
        """Yield ids and addresses, a piece of the row group at a time."""
        columns = {name for name in (*names, self.folder.image_column if text else None) if name}
        if not columns:
            for first in range(0, group.rows, _PIECE_ROWS):
                nothing: list[str | None] = [None] * min(_PIECE_ROWS, group.rows - first)
                yield nothing, nothing
            return
        for batch in self.file.read_values(group.number, sorted(columns)):
            nothing = [None] * len(batch)
            yield (
                read_ids(batch.column(names[0])) if names else nothing,
                read_texts(batch.column(self.folder.image_column)) if text else nothing,
            )

    def _keeps(self, position: int) -> bool:
        return self.kept is None or position >= len(self.kept) or bool(self.kept[position])

    def _record(
        self, group: _Group, row: int, image_id: str | None, address: str | None, text: bool
    ) -> Placed:
        image_id = image_id or f"{self.name}#{group.position + row}"
        image_id = redact(image_id) if has_secrets(image_id) else image_id
        place = f"{self.name}#{group.number}.{row}"
        cell = ImageRecord(image_id, self._uri, "parquet", path=self._path, row_group=group.number, row=row)
        if not text or (address is not None and not is_address(address)):
            return cell, place
        if address is not None and has_secrets(address):  # the address stays in the table
            return replace(cell, uri=redact(address)), place
        found = self._address_record(image_id, address)
        if found.container == "broken":
            return found, place
        return replace(found, member=self._path, row_group=group.number, row=row), place

    def _address_record(self, image_id: str, address: str | None) -> ImageRecord:
        if address is None or not address.strip():
            reason = f"column {self.folder.image_column!r} is empty in this row"
            return ImageRecord(image_id, self._uri, "broken", reason=reason)
        try:
            container, path = locate(address, self.folder.root, self._path.rpartition("/")[0])
            public = redact(address) if container == "uri" else self._beside(address)
        except ValueError as error:
            return ImageRecord(image_id, self._uri, "broken", reason=str(error))
        return ImageRecord(image_id, public, container, path=path)

    def _beside(self, address: str) -> str:
        root = self._root
        relative = posixpath.normpath(posixpath.join(posixpath.dirname(self.name), address))
        while relative.startswith("../") and "/" in root.rpartition("://")[2]:
            root, relative = root.rpartition("/")[0], relative[3:]
        return join_uri(root, relative)

    def _rest(self, group: _Group, done: int, reason: str) -> Placed:
        first, last = group.position + done, group.position + group.rows - 1
        what = f"rows {first:,} to {last:,} of the file cannot be listed: {reason}"
        return self._broken(f"{self.name}#{first}-{last}", what)

    def _broken(self, image_id: str, reason: str) -> Placed:
        return self.folder.broken(self.name, image_id, reason)


def may_pass(error: BaseException) -> bool:
    """Say whether an error is one of the storage that a later try may not meet; such a file must be listed later."""
    return isinstance(error, TransferError) and error.transient


def _holds_pictures(file: TableFile, group: int, column: str) -> bool:
    """Say whether the text of a column is too long to be addresses, from the footer alone."""
    leaves = file.footer.leaves(group, [column])
    return any(leaf.unpacked > _PICTURE_BYTES * max(1, leaf.values) for leaf in leaves)


def _implausible(file: TableFile, group: int) -> str | None:
    """Return why a row group cannot hold the rows that it claims; a damaged footer may claim any number."""
    rows = file.metadata.row_group(group).num_rows
    if rows < 0 or rows > max(_FEW_ROWS, _ROWS_A_BYTE * file.size):
        return f"the file is damaged: row group {group} claims {rows:,} rows in a file of {file.size:,} bytes"
    return None
