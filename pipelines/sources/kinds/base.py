"""What a way to give images brings: its flags, and the source that they open.

A file of this folder is read whenever a command is typed, help included. So what reads files, tables or archives is
imported in the methods that need it, not above them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from inspect import cleandoc, get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from pipelines.sources.record import Source

Options = TypeVar("Options")
_ATTRIBUTES = "Attributes:\n"


def place(value: str = "PATH") -> Any:
    """Return the field of an input's place: it may be given once, and no output may lie in it.

    Args:
        value: What stands for it in the help.
    """
    return field(default=None, metadata={"value": value, "place": True})


def setting(value: str, default: Any = None) -> Any:
    """Return the field of a setting whose type says too little in the help.

    Args:
        value: What stands for it there, such as "NAME".
    """
    return field(default=default, metadata={"value": value})


@dataclass(frozen=True)
class SourceKind:
    """A way to give images, chosen by the flag that says where they lie.

    A subclass is a frozen dataclass in a file of `pipelines.sources.kinds`, where it is found. Its fields are flags and
    keys of settings files; the docstring's section "Attributes" is their help. The first field is the place (see
    `place`); whoever gives it has chosen this kind, and the others go with it. All have defaults; that of a text is None.

    Attributes:
        endings: Names of files that are given this way and no other, by what such a file is ("tar archive"); the other
            kinds say so where they meet one.
    """

    endings: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def open(self) -> "Source":
        """Open what was given.

        Raises:
            ConfigError: The settings do not fit it.
            StorageError: Nothing is there.
        """
        raise NotImplementedError

    def places(self) -> dict[str, str]:
        """Return the inputs that were given by their flags, for the check that no output lies in them."""
        found = ((flag_of(entry), getattr(self, entry.name)) for entry in fields(self) if is_place(entry))
        return {flag: value for flag, value in found if value}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of its fields; the first one is that of the place."""
        return tuple(entry.name for entry in fields(cls))

    @classmethod
    def flags(cls) -> tuple[str, ...]:
        """Return its flags, in the order of `names`."""
        return tuple(map(flag_of, fields(cls)))


def is_place(entry: "Field[Any]") -> bool:
    """Say whether a field names an input."""
    return bool(entry.metadata.get("place"))


def flag_of(entry: "Field[Any]") -> str:
    """Return the spelling of a field's flag."""
    return f"--{entry.name.replace('_', '-')}"


def offering(kinds: Sequence[type[SourceKind]]) -> Callable[[type[Options]], type[Options]]:
    """Give a class, before it is made a dataclass, the fields of all kinds, with their texts; places come first.

    Raises:
        TypeError: Two kinds have a field of one name.
    """

    def extend(owner: type[Options]) -> type[Options]:
        listed = [entry for kind in kinds for entry in fields(kind)]
        if len({entry.name for entry in listed}) < len(listed):
            raise TypeError(f"two kinds of sources share a setting: {sorted(entry.name for entry in listed)}")
        added = sorted(listed, key=lambda entry: not is_place(entry))
        for entry in added:
            setattr(owner, entry.name, field(default=entry.default, metadata=entry.metadata))
        owner.__annotations__ = {**{entry.name: entry.type for entry in added}, **get_annotations(owner)}
        head, _, own = cleandoc(owner.__doc__ or "").partition(_ATTRIBUTES)
        owner.__doc__ = f"{head}{_ATTRIBUTES}{''.join(_texts(kinds))}{own}\n"
        return owner

    return extend


def _texts(kinds: Sequence[type[SourceKind]]) -> Iterator[str]:
    """Yield what each kind's docstring says of its fields."""
    for kind in kinds:
        yield cleandoc(kind.__doc__ or "").partition(_ATTRIBUTES)[2].rstrip() + "\n"
