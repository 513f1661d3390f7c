"""How large the file of one image may be."""

from ovss_core.errors import ImageError


def check_size(size: int, max_bytes: int) -> None:
    """Refuse an image file with too many bytes.

    Raises:
        ImageError: It has more than `max_bytes`.
    """
    if size > max_bytes:
        raise ImageError(f"the file has {size:,} bytes, more than max_bytes ({max_bytes:,})")
