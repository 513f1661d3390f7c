"""Images written into their own address, as in ``data:image/jpeg;base64,...``."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from ovss_core.errors import ImageError
from pipelines.transport.limits import check_size

_HEAD = re.compile(rb"\s*data:[^,]{0,200};\s*base64,", re.IGNORECASE)


def is_data_address(text: str) -> bool:
    """Say whether text is an address that holds its own data."""
    return text.lstrip()[:5].lower() == "data:"


def decode_data_address(address: bytes | memoryview, max_bytes: int) -> bytes:
    """Return the bytes that an address holds.

    Raises:
        ImageError: They are too many, or no sound base64.
    """
    head = _HEAD.match(address)
    if head is None:
        raise ImageError("a data: address without base64; ovss takes data:image/...;base64 or bytes")
    check_size((len(address) - head.end()) // 4 * 3, max_bytes)
    try:
        payload = unquote_to_bytes(bytes(address[head.end() :]))
        return base64.b64decode(b"".join(payload.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"the data: address is no valid base64 ({error})") from error
