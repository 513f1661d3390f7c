"""The usual JPEG, decoded straight to RGB by libjpeg-turbo while Python's lock is released.

Pillow decodes the same bytes, but copies them twice with the lock held, and reads the header in Python: a tenth and more of
the time of an image, in which no other thread of a worker runs. Only files on which both agree to the byte are decoded
here: a whole JPEG of gray or YCbCr whose orientation is certain. Whatever libjpeg so much as warns about, and anything
unusual, is Pillow's.
"""

import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from ovss_core.images.containers import MAX_JPEG_SCANS

try:
    import simplejpeg
except ImportError:  # there is no wheel for this platform: Pillow decodes everything
    simplejpeg = None

_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_COLORS = ("YCbCr", "Gray")


@dataclass(frozen=True)
class PlainJpeg:
    """A JPEG that can be decoded without Pillow as far as its header tells.

    Attributes:
        data: The whole file.
        height, width: Before any rotation.
        orientation: By its EXIF block, 1 to 8; 1 where it has none.
    """

    data: bytes
    height: int
    width: int
    orientation: int

    @classmethod
    def of(cls, data: bytes, max_pixels: int) -> "PlainJpeg | None":
        """Look at a file; None where Pillow has to decide.

        Args:
            data: The whole file.
            max_pixels: A larger one is for others to refuse.
        """
        if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
            return None
        orientation = _orientation(data)
        if orientation is None or count_scans(data) > MAX_JPEG_SCANS:
            return None
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        if colors not in _COLORS or height * width > max_pixels:
            return None
        return cls(data, height, width, orientation)

    def pixels(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """Decode it, not turned yet; None where the data is not flawless."""
        try:
            pixels: np.ndarray = simplejpeg.decode_jpeg(self.data, "RGB", strict=True)
        except ValueError:
            return None
        return pixels


def count_scans(data: bytes) -> int:
    """Return an upper bound for the scans of a JPEG; NumPy looks ten times as fast as `bytes.count`, without the lock."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == _START_OF_SCAN)))


def _orientation(data: bytes) -> int | None:
    """Read the orientation from the segments before the first scan; None where it is not certain."""
    place, orientation, blocks = 2, 1, 0
    while place + 4 <= len(data):
        mark, marker, length = struct.unpack_from(">BBH", data, place)
        if mark != 0xFF or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9:
            return None
        if marker == _START_OF_SCAN:
            return orientation
        if marker == _APP1:
            found = _exif_orientation(data[place + 4 : place + 2 + length])
            blocks += 1
            if found is None or blocks > 1:
                return None
            orientation = found
        place += 2 + length
    return None


def _exif_orientation(block: bytes) -> int | None:
    """Read the orientation of an EXIF block; None where it is no such block or says something unusual."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[6:10])
    if block[:6] != _EXIF or order is None or len(block) < 16:
        return None
    start = 6 + struct.unpack_from(f"{order}I", block, 10)[0]
    if start + 2 > len(block):
        return None
    end = start + 2 + 12 * struct.unpack_from(f"{order}H", block, start)[0]
    if end + 4 > len(block):
        return None
    values = []
    for tag, kind, count, value in struct.iter_unpack(f"{order}HHII", block[start + 2 : end]):
        size = _SIZES.get(kind, len(block)) * count
        if size > 4 and 6 + value + size > len(block):
            return None
        if tag == _ORIENTATION_TAG:
            values.append(value >> 16 if order == ">" else value & 0xFFFF)
            if kind != _SHORT or count != 1:
                return None
    if len(values) > 1 or not all(1 <= value <= 8 for value in values):
        return None
    return values[0] if values else 1
