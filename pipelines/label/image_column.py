"""The image column of somebody else's table: files as bytes, structs of bytes, or decoded pixels in many dresses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.decode import picture_to_rgb, to_rgb
from pipelines.label.batches import Batch, is_missing

WANTED = "image files as bytes (binary, a struct with a field bytes, list<uint8>) or pixels (uint8 tensors [height, width, 3])"
Item = bytes | np.ndarray | Image.Image
_CHANNELS = (1, 3, 4)


class OddValue:
    """A value that is no image in a column where others are.

    Args:
        value: What was found.
    """

    def __init__(self, value: Any) -> None:
        self.reason = f"a value of type {type(value).__name__} is no image; give {WANTED}"


def image_items(batch: Batch, name: str) -> list[Item | OddValue | None]:
    """Return what the image column holds, row by row; None where it holds nothing.

    Raises:
        ConfigError: There is no such column, or it holds something else than images.
    """
    column = batch.column(name)
    values = _arrow_values(column, name) if isinstance(column, pa.ChunkedArray) else list(column)
    items = [_item(value) for value in values]
    known = [item for item in items if item is not None]
    if known and all(isinstance(item, OddValue) for item in known):
        first = next(value for value in values if not is_missing(value))
        raise _refusal(name, _describe(first, column))
    return items


def to_pixels(item: np.ndarray | Image.Image, max_pixels: int) -> np.ndarray:
    """Return decoded pixels as uint8 RGB [height, width, 3]: gray ones repeated, transparency on white.

    Raises:
        ImageError: They are no picture, or more than `max_pixels`.
    """
    if isinstance(item, Image.Image):
        return picture_to_rgb(item, max_pixels)
    pixels = item
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    colored = pixels.ndim == 3 and pixels.shape[2] in _CHANNELS
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (colored or pixels.ndim == 2):
        raise ImageError(
            f"pixels of type {pixels.dtype} and shape {pixels.shape} are no picture; give uint8 [height, width, 3]"
        )
    height, width = pixels.shape[:2]
    if height * width > max_pixels:
        raise ImageError(f"{width} x {height} pixels are more than max_pixels ({max_pixels:,}); raise it")
    if colored and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _arrow_values(column: pa.ChunkedArray, name: str) -> list[Any]:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension_values(column, name)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or _is_bytes(kind):
        return list(column.to_pylist())
    if pa.types.is_struct(kind):
        fields = [field for field in kind if field.name == "bytes" and _is_bytes(field.type)]
        if fields:
            return [value and value["bytes"] for value in column.to_pylist()]
    read = _list_reader(kind)
    if read is None:
        raise _refusal(name, str(kind))
    return [read(value) if value.is_valid else None for chunk in column.chunks for value in chunk]


def _is_bytes(kind: pa.DataType) -> bool:
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests if hasattr(pa.types, test))


def _list_reader(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return what reads one value of a list of uint8 (a file) or of lists of lists of it (pixels)."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if not pa.types.is_uint8(kind) or depth == 0:
        return None
    if depth == 1:
        return lambda value: value.values.to_numpy(zero_copy_only=False).tobytes()
    return _nested


def _nested(value: Any) -> Any:
    try:
        return np.array(value.as_py(), np.uint8)
    except ValueError:  # rows of different lengths
        return value.as_py()


def _extension_values(column: pa.ChunkedArray, name: str) -> list[Any]:
    """Read tensors, pyarrow's own and Ray's, and whatever Ray pickles."""
    if "Tensor" not in type(column.type).__name__:
        return list(column.to_pylist())
    values: list[Any] = []
    for chunk in column.chunks:
        if hasattr(chunk, "to_numpy_ndarray"):
            arrays = chunk.to_numpy_ndarray()
        else:
            arrays = chunk.to_numpy(zero_copy_only=False)
        valid = chunk.is_valid().to_pylist()
        values += [array if sound else None for array, sound in zip(arrays, valid, strict=True)]
    first = next((value for value in values if value is not None), None)
    if first is not None and np.asarray(first).dtype != np.uint8:
        raise _refusal(name, f"tensors of {np.asarray(first).dtype}")
    return values


def _item(value: Any) -> Item | OddValue | None:
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, dict) and "bytes" in value:
        return _item(value["bytes"])
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, list) or type(value).__name__ == "TensorArrayElement":
        value = _as_array(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.tobytes() if value.ndim == 1 else value
    return OddValue(value)


def _as_array(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:
        return value
    whole = array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255
    return array.astype(np.uint8) if whole else array


def _describe(value: Any, column: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"arrays of {value.dtype}"
    stored = str(getattr(column, "dtype", "object"))
    return type(value).__name__ if stored == "object" else stored


def _refusal(name: str, kind: str) -> ConfigError:
    advice = (
        "; it looks like addresses: read the files first, as with ray.data.read_binary_files"
        if "str" in kind
        else "; name the column of the images with image_column"
    )
    return ConfigError(f"the column {name!r} holds {kind}, not {WANTED}{advice}")
