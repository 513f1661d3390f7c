"""What the cells of a table may hold: image bytes in any type that holds bytes, addresses, and names of images."""

import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import Literal
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ovss_core.errors import ImageError
from pipelines.storage import open_storage
from pipelines.transport.data_address import decode_data_address, is_data_address
from pipelines.transport.limits import check_size

ImageKind = Literal["bytes", "text", "empty"]

_LONGEST_ADDRESS = 8192
_LONGEST_ID = 1024
_BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
_BASE64_OF_IMAGES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "AAAAI", "AAAAG", "AAAAH")
_SURELY_NO_PATH = 256


def image_kind(kind: pa.DataType) -> ImageKind | None:
    """Say what a column of a type holds: image bytes (or structs with them), text, nothing at all; None: no images.

    Bytes may be any binary type, lists of uint8, or structs with a field "bytes" or "path" of such types; any of
    them may be encoded as a dictionary.
    """
    if len(getattr(kind, "shape", None) or "1") != 1:
        return None  # a tensor of pixels, not the bytes of a file
    kind = _storage(kind)
    if pa.types.is_dictionary(kind):
        return image_kind(kind.value_type)
    if pa.types.is_null(kind):
        return "empty"
    if _is_text(kind):
        return "text"
    if pa.types.is_struct(kind):
        fields = [kind.field(name).type for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        usable = all(image_kind(entry) for entry in fields) and not any(
            pa.types.is_struct(_storage(entry)) for entry in fields
        )
        return "bytes" if fields and usable else None
    if _is_list(kind):
        return "bytes" if kind.value_type == pa.uint8() else None
    return "bytes" if _is_binary(kind) else None


def is_dictionary_inside(kind: pa.DataType) -> bool:
    """Say whether a type is read as a dictionary, or has fields that are."""
    return any(pa.types.is_dictionary(entry) for entry in _entries(kind))


def is_list_inside(kind: pa.DataType) -> bool:
    """Say whether a type is a list, or has fields that are."""
    return any(_is_list(entry) for entry in _entries(kind))


def _entries(kind: pa.DataType) -> list[pa.DataType]:
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        return [_storage(kind.field(index).type) for index in range(kind.num_fields)]
    return [kind]


def read_cell(column: pa.Array, place: int, max_bytes: int) -> bytes | str | None:
    """Return one image of a column: its bytes, an address where they lie, or None for an empty cell.

    Raises:
        ImageError: The image has more bytes than `max_bytes` (found out before they are copied), or the cell
            holds text that is neither an address nor a data address.
    """
    if isinstance(column, pa.ExtensionArray):
        return read_cell(column.storage, place, max_bytes)
    if not column[place].is_valid:
        return None
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_cell(column.dictionary, column.indices[place].as_py(), max_bytes)
    if pa.types.is_struct(kind):
        for name in ("bytes", "path"):
            found = (
                read_cell(column.field(name), place, max_bytes) if kind.get_field_index(name) >= 0 else None
            )
            if found:
                return found
        return None
    if _is_list(kind):
        values = column[place].values
        check_size(len(values), max_bytes)
        if values.null_count:
            raise ImageError("the list of bytes has gaps (nulls)")
        data: bytes = values.to_numpy(zero_copy_only=False).tobytes()
        return data or None
    buffer = column[place].as_buffer()
    if _is_text(kind):
        return _read_text(buffer, max_bytes)
    check_size(buffer.size, max_bytes)
    return buffer.to_pybytes() or None


def _read_text(buffer: pa.Buffer, max_bytes: int) -> bytes | str | None:
    head = buffer[:_LONGEST_ADDRESS].to_pybytes().decode("utf-8", "replace").lstrip()
    if is_data_address(head):
        return decode_data_address(memoryview(buffer), max_bytes) or None
    if looks_like_base64(head):
        raise ImageError(
            "the value looks like base64; ovss takes bytes or addresses: decode the column to binary, or put "
            "data:image/jpeg;base64 and a comma before each value"
        )
    if buffer.size > _LONGEST_ADDRESS:
        raise ImageError(f"the value is text of {buffer.size:,} bytes, which is no address")
    try:
        text: str = buffer.to_pybytes().decode()
    except UnicodeDecodeError as error:
        raise ImageError("the address is not valid UTF-8") from error
    return text if text.strip() else None


def read_texts(column: pa.Array) -> list[str | None]:
    """Turn a column of text into values; what is not UTF-8 holds replacement characters, so is no address."""
    if isinstance(column, pa.ExtensionArray):
        return read_texts(column.storage)
    if pa.types.is_dictionary(column.type):
        return read_texts(column.dictionary_decode())
    try:
        values: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        return [
            value.as_buffer().to_pybytes().decode("utf-8", "replace") if value.is_valid else None
            for value in column
        ]
    return values


def is_address(text: str) -> bool:
    """Say whether text may be an address: what else it is, `read_cell` finds out."""
    return not (
        len(text) > _LONGEST_ADDRESS or "\ufffd" in text or is_data_address(text) or looks_like_base64(text)
    )


def looks_like_base64(text: str) -> bool:
    """Say whether text is a picture in base64 rather than an address."""
    long_enough = len(text) >= _SURELY_NO_PATH or (len(text) >= 32 and text.startswith(_BASE64_OF_IMAGES))
    return long_enough and _BASE64.fullmatch(text) is not None


def locate(address: str, root: str, folder: str) -> tuple[Literal["uri", "file"], str]:
    """Find out where an address of a table leads.

    Args:
        address: A URI, an absolute path, or a path relative to the folder of the table.
        root: URI that opens the file system of the table.
        folder: The table's folder in that file system.

    Returns:
        How an `ImageRecord` names the place: container and path.

    Raises:
        ValueError: No parser takes the address.
    """
    if "://" in address or address.startswith("/"):
        if "://" in address:
            _check_address(address)
        return "uri", address
    path = f"{folder}/{address}"
    if isinstance(open_storage(root)[0], pafs.LocalFileSystem):
        return "file", path  # the system's own rule for "..", which looks at links
    return "file", posixpath.normpath(path)


def _check_address(address: str) -> None:
    """Let the parser of the standard library look at an address, without telling what it holds."""
    try:
        _ = urlsplit(address).port
    except ValueError:
        raise ValueError("the address is malformed: its host or port cannot be read") from None


def read_ids(column: pa.Array) -> list[str | None]:
    """Turn the values of an id column into stable text; None for nulls, empty text and what is not a number."""
    if isinstance(column, pa.ExtensionArray):
        if column.type.extension_name == "arrow.uuid":
            return [None if value is None else str(value) for value in column.to_pylist()]
        return read_ids(column.storage)
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_ids(column.dictionary_decode())
    if _is_text(kind) or _is_binary(kind):
        return [_shorten(text) for text in _decode(column)]
    if pa.types.is_floating(kind):
        return [None if value is None or value != value else str(value) for value in column.to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values


def can_name(kind: pa.DataType) -> bool:
    """Say whether values of a type can be ids: whatever has one line of text."""
    kind = _storage(kind)
    if pa.types.is_dictionary(kind):
        return can_name(kind.value_type)
    return not pa.types.is_nested(kind)


def _decode(column: pa.Array) -> Iterator[str | None]:
    if _is_text(column.type):
        with suppress(UnicodeDecodeError):
            yield from (text or None for text in column.to_pylist())
            return
    for value in column:
        data = value.as_buffer().to_pybytes() if value.is_valid else b""
        try:
            yield data.decode() or None
        except UnicodeDecodeError:
            yield f"0x{data.hex()}"


def _shorten(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST_ID:
        return text
    digest = blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{text[:_LONGEST_ID]}...{digest}"


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
