"""One flag: its name, the type and unit of its value, and its text, which is the docstring of a setting."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle, parse

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "text"}
_METAVARS = {bool: "{true,false}", int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
_VALUES = {
    "region_maps": "FOLDER",
    "folder": "FOLDER",
    "output": "FOLDER",
    "config": "FILE",
    "descriptions": "FILE|none",
    "vocabulary": "WORDS",
    "caption_words": "WORDS",
    "words_column": "NAME",
    "caption_column": "NAME",
    "model": "NAME",
    "pretrained": "TAG|FILE",
    "proxy": "NAME",
    "proxy_pretrained": "hub|FILE",
    "device": "NAME",
    "address": "HOST:PORT",
    "shard_size": "IMAGES",
    "previews": "IMAGES",
    "batch_size": "IMAGES",
    "limit": "IMAGES",
    "sample": "IMAGES",
    "shard": "I/N",
    "image_count": "IMAGES",
    "ray_images": "IMAGES",
    "window_batch": "WINDOWS",
    "phrase_chunk": "PHRASES",
}
"""What stands for the value of a flag in the help, where the type alone says too little."""
_PLACES = {
    "PATH": "a path or an address",
    "FOLDER": "a folder",
    "FILE": "a file",
    "FILE|none": "a file, or none",
    "NAME": "a name",
    "TAG|FILE": "a weight tag or a file",
    "hub|FILE": "hub or a file",
    "HOST:PORT": "an address",
}
_LINE = 80
"""Characters of choices that stand beside a flag."""
_UNITS = {
    "_s": "SECONDS",
    "_bytes": "BYTES",
    "_pixels": "PIXELS",
    "size": "PIXELS",
    "stride": "PIXELS",
    "_side": "PIXELS",
}


@dataclass(frozen=True)
class Flag:
    """A flag and what is known about it.

    Attributes:
        dest: Its name in a YAML file, such as ``windows.size``.
        hint: The type of its value.
        meaning: Its help.
        section: Title of the section of the help that holds it.
        default: Its value where it is not given.
        required: It must be given.
        short: A second, short spelling, such as ``-v``.
        value: What stands for its value in the help; its type and name decide, unless given.
        group_file: It names a file with the settings below its name, and is none itself.
        bare: Its value may stand alone, without its name, as in ``ovss verify out/photos``; where it is a list, any number
            of them.
        alone: Its value where it is given without one, as in ``--grid``.
        place: It names an input; a second value must not replace the first in silence, whose images would be missing.
        joined: Several of the values to choose from may be given, by commas.
    """

    dest: str
    hint: Any
    meaning: str
    section: str
    default: Any = None
    required: bool = False
    short: str | None = None
    value: str | None = None
    group_file: bool = False
    bare: bool = False
    alone: str | None = None
    place: bool = False
    joined: bool = False

    @property
    def option(self) -> str:
        """Its spelling on the command line: dashes, but underscores in a group such as ``--windows.short_side``."""
        return f"--{self.dest if '.' in self.dest else self.dest.replace('_', '-')}"

    @property
    def switch(self) -> bool:
        """Whether it takes no value: giving it means yes."""
        return self.hint is bool and self.default is False and "." not in self.dest

    @property
    def many(self) -> bool:
        """Whether its value is a list."""
        return any(get_origin(kind) is list for kind in self.kinds)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its value may have, None left out."""
        parts = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else (self.hint,)
        return tuple(part for part in parts if part is not NoneType)

    @property
    def optional(self) -> bool:
        """Whether its value may be null."""
        return NoneType in get_args(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values to choose from; none for a free value."""
        return tuple(value for kind in self.kinds if get_origin(kind) is Literal for value in get_args(kind))

    @property
    def many_choices(self) -> bool:
        """Whether the values to choose from are too many for one line, so that its text lists them."""
        return len(",".join(self.choices)) > _LINE

    @property
    def metavar(self) -> str:
        """What stands for its value in the help: choices, a unit or a kind."""
        name = self.dest.rpartition(".")[2]
        if self.value:
            return self.value
        if self.choices:
            return "NAME" if self.many_choices else f"{{{','.join(self.choices)}}}"
        if name in _VALUES:
            return _VALUES[name]
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), None)
        if unit and self.kinds[0] in (int, float):
            return unit
        return _METAVARS.get(self.kinds[0], "[A,B,...]")

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.metavar == "WORDS":
            return "words by commas, a file, a shipped name, or a list of words in quotes"
        words = _PLACES.get(self.metavar) or _KINDS.get(self.kinds[0], "a list such as [a,b]")
        if self.kinds[0] in (int, float) and self.metavar not in ("N", "NUMBER"):
            words += f" of {self.metavar.lower()}"
        if any(get_origin(kind) is list for kind in self.kinds[1:]):
            words += " or a list"
        return f"{words}, or null" if self.optional and self.kinds[0] is not str else words

    @property
    def help(self) -> str:
        """Its meaning, and its default where there is one to show."""
        meaning = f"{self.meaning} One of {', '.join(self.choices)}." if self.many_choices else self.meaning
        if self.required:
            return f"{meaning} (required)"
        shown = "" if self.switch else _shown(self.default)
        if shown and self.metavar == "BYTES":
            shown = f"{shown}, {self.default / (1 << 20):.0f} MiB"
        return f"{meaning} (default: {shown})" if shown else meaning


def flags_of(
    kind: type,
    section: str,
    prefix: str = "",
    skip: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> list[Flag]:
    """Read the flags that a settings' dataclass stands for.

    Args:
        kind: The dataclass; its docstring's section "Attributes" says what each field means.
        section: Where its flags stand, unless the page says otherwise.
        prefix: Group of the flags: ``windows`` gives ``--windows.size``.
        skip: Fields without a flag.
        names: Flags of other names, by field.
        hints: Narrower types than the fields', such as a list of choices, by field.
    """
    types, meanings = get_type_hints(kind), attribute_meanings(kind)
    found = []
    for entry in fields(kind):
        if entry.name in skip:
            continue
        dest = (names or {}).get(entry.name) or (f"{prefix}.{entry.name}" if prefix else entry.name)
        required = entry.default is MISSING
        found.append(
            Flag(
                dest,
                (hints or {}).get(entry.name, types[entry.name]),
                meanings.get(entry.name, ""),
                section,
                None if required else entry.default,
                required,
                value=entry.metadata.get("value"),
                place=entry.metadata.get("place", False),
            )
        )
    return found


def attribute_meanings(kind: type) -> dict[str, str]:
    """Read what a dataclass's docstring says of each attribute, as help says it: unset, where Python says None."""
    entries = parse(getdoc(kind) or "", DocstringStyle.GOOGLE).params
    return {entry.arg_name: _as_help(entry.description or "") for entry in entries}


def choice(names: Sequence[str]) -> Any:
    """Return the type of a value that is one of `names`."""
    return Literal.__getitem__(tuple(names))


def _as_help(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("`", "")
    return re.sub(r"\bNone\b", "unset", re.sub(r"(^|\. )None\b", r"\1Unset", text))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
