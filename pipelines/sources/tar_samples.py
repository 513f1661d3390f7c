"""Which members of a WebDataset shard are pictures: one a sample, by the field right behind its key."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ovss_core.errors import ConfigError
from pipelines.sources.folder import IMAGE_EXTENSIONS
from pipelines.sources.tar_faults import shown

_PASSED_OVER = re.compile(r"(^|/)(\.(?!\.?/)|__MACOSX/)|^(\./)*__[^/]*__/")
_FIELDS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ImageFields:
    """The field of a sample that is its picture.

    Attributes:
        names: Fields by name, in lower case, such as "jpg" or "image.png"; empty for the extension of an image
            right behind the key, which passes over ``x.mask.png`` and the like.
        beside: Fields whose bytes are wanted with the picture, such as "json" and "txt".
    """

    names: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> "ImageFields":
        """Read the names from a flag: one, or several that samples may have instead, as in "jpg;png".

        Raises:
            ConfigError: There is no name in the text.
        """
        if text is None:
            return cls()
        names = tuple(name.strip().lstrip(".").lower() for name in re.split("[;,]", text))
        if not all(names) or "/" in text:
            raise ConfigError(
                f"--image-field is {text!r}; give the part of a member's name behind its key, as in png"
            )
        return cls(names)

    def holds(self, name: str) -> bool:
        """Say whether a field is a picture's."""
        return name in self.names if self.names else f".{name}" in IMAGE_EXTENSIONS


def split_member(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and field at the first dot of the file name, as WebDataset does.

    Returns:
        None for what is no part of a sample: names without a field, hidden ones as in folders, and what macOS adds.
    """
    if _PASSED_OVER.search(name):
        return None
    path = PurePosixPath(name.removeprefix("./"))
    stem, dot, field = path.name.partition(".")
    return ((path.parent / stem).as_posix(), field.lower()) if dot and stem else None


class Samples:
    """Follows the samples of a shard and gives each picture its key.

    A sample is a run of members with one key; it ends where the key changes, a field comes again, or another
    joined archive begins. Its first picture counts; other pictures of it are passed over.

    Attributes:
        pictures: Keys given out.
        ignored: Members passed over.
    """

    def __init__(self, fields: ImageFields) -> None:
        self.pictures = 0
        self.ignored = 0
        self._fields = fields
        self._current: tuple[str, int] | None = None
        self._seen_fields: set[str] = set()
        self._has_picture = False
        self._given: dict[str, int] = {}
        self._without: dict[str, tuple[str, int]] = {}
        self._some_fields: dict[str, None] = {}

    def picture_key(self, name: str, archive: int) -> str | None:
        """Return the key of the picture that a member is; None if it is none.

        Args:
            name: The member's name.
            archive: Which of the joined archives it lies in.
        """
        parts = split_member(name)
        if parts is not None:
            key, field = parts
            if (key, archive) != self._current or field in self._seen_fields:
                self._current, self._seen_fields, self._has_picture = (key, archive), set(), False
            self._seen_fields.add(field)
            if not self._has_picture and self._fields.holds(field):
                self._has_picture = True
                self._without.pop(key, None)
                self.pictures += 1
                return self._unique(key)
            self._note_other(key, field, name)
        self.ignored += 1
        return None

    def _note_other(self, key: str, field: str, name: str) -> None:
        if len(self._some_fields) < _FIELDS_SHOWN:
            self._some_fields[field] = None
        looks_so = f".{field.rpartition('.')[2]}" in IMAGE_EXTENSIONS
        if looks_so and key not in self._given:
            first, count = self._without.get(key, (name, 0))
            self._without[key] = first, count + 1

    def _unique(self, key: str) -> str:
        while True:
            self._given[key] = self._given.get(key, 0) + 1
            if self._given[key] == 1:
                return key
            key = f"{key}#{self._given[key]}"

    def fault(self) -> str | None:
        """Say which samples have no picture although they look as if they should; None where all have one."""
        if self._without:
            name, _ = next(iter(self._without.values()))
            files = sum(count for _, count in self._without.values())
            what = "1 picture file belongs" if files == 1 else f"{files:,} picture files belong"
            return (
                f"{what} to samples without a picture {self._wanted()}, such as {shown(name)}; --image-field names "
                "the field that holds it (a field begins at the first dot of the file's name)"
            )
        if not self.pictures and self.ignored:
            there = ", ".join(shown(field) for field in self._some_fields) or "none"
            return (
                f"none of {self.ignored:,} files is a picture {self._wanted()} (fields there: {there}); "
                "--image-field names the field that holds it"
            )
        return None

    def _wanted(self) -> str:
        if self._fields.names:
            return f"in the field {' or '.join(self._fields.names)}"
        return "with an image's extension right behind the key"
