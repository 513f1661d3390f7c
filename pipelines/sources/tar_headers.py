"""One block of a tar that is a header, and the extended headers that go before it, in all their dialects."""

from dataclasses import dataclass, field

from pipelines.sources.tar_bytes import BLOCK

_USTAR = b"ustar\0"


@dataclass(frozen=True, slots=True)
class Header:
    """A header block whose checksum fits.

    Attributes:
        block: Its 512 bytes.
        kind: Its type byte.
        size: Its size field in bytes.
    """

    block: bytes
    kind: int
    size: int

    @property
    def name(self) -> str:
        """Name of the member, the folder that POSIX keeps apart included."""
        name = _until_zero(self.block[:100])
        if (
            self.block[257:263] == _USTAR
        ):  # GNU tar keeps times in that place, star in the last 24 bytes of it
            prefix = _until_zero(self.block[345 : 476 if self.block[508:] == b"tar\0" else 500])
            name = prefix + b"/" + name if prefix else name
        return text_of(name)

    @property
    def target(self) -> str:
        """What a link points to."""
        return text_of(_until_zero(self.block[157:257]))

    @property
    def real_size(self) -> int | None:
        """Size of a file with holes in GNU's old format; None where it is no size."""
        return number_of(self.block[483:495])


@dataclass(slots=True)
class Extension:
    """What extended headers say about a member; None where they are silent."""

    name: str | None = None
    target: str | None = None
    size: int | None = None
    sparse: list[tuple[str, str]] = field(default_factory=list)

    def sparse_value(self, *names: str) -> str | None:
        """Return the value of the first of some ``GNU.sparse.`` records that is there."""
        values = dict(self.sparse)
        return next((values[f"GNU.sparse.{name}"] for name in names if f"GNU.sparse.{name}" in values), None)

    def over(self, other: "Extension") -> "Extension":
        """Return this, filled up from what holds for all members."""
        size = other.size if self.size is None else self.size
        return Extension(self.name or other.name, self.target or other.target, size, self.sparse)


def sound_header(block: bytes) -> Header | None:
    """Return the header that a block is; None where its checksum does not fit or its size is none."""
    if len(block) < BLOCK:
        return None
    stored = number_of(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stored != total:  # some old programs add the bytes up with their signs
        negative = sum(byte > 127 for byte in block[:148] + block[156:])
        if not negative or stored != total - 256 * negative:
            return None
    size = number_of(block[124:136])
    return None if size is None or size < 0 else Header(block, block[156], size)


def number_of(data: bytes) -> int | None:
    """Decode a number of a header: octal digits, or GNU's base 256 for large ones; None where it is neither."""
    if data[0] & 0x80:
        bits = 8 * len(data) - 1
        value = int.from_bytes(data, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if data[0] & 0x40 else value
    digits = _until_zero(data).strip()
    return int(digits or b"0", 8) if all(ord("0") <= digit <= ord("7") for digit in digits) else None


def read_pax(data: bytes, extension: Extension) -> bool:
    """Take over what the records ``LENGTH KEY=VALUE`` of a pax header say; False if one is damaged."""
    start = 0
    sparse: list[tuple[str, str]] = []
    while start < len(data) and data[start]:
        digits, space, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits) if space and digits.isdigit() else -1
        key, equals, value = data[start + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            return False
        if not _take(extension, sparse, key, value):
            return False
        start = end
    extension.sparse = sparse or extension.sparse
    return True


def _take(extension: Extension, sparse: list[tuple[str, str]], key: bytes, value: bytes) -> bool:
    if key == b"path":
        extension.name = text_of(value)
    elif key == b"linkpath":
        extension.target = text_of(value)
    elif key == b"size":
        extension.size = int(value) if value.isdigit() and len(value) < 20 else None
        return extension.size is not None
    elif key.startswith(b"GNU.sparse."):
        sparse.append((text_of(key), text_of(value)))
    return True


def text_of(data: bytes) -> str:
    """Decode a name; bytes that are no UTF-8 become backslash escapes."""
    return data.decode("utf-8", "backslashreplace")


def _until_zero(data: bytes) -> bytes:
    return data.split(b"\0", 1)[0]
