"""Reading classes out of files that people have: lines, numbered tables, CVAT's label maps, JSON and YAML.

What says the same in another form is read. What says something else, such as numbers that are not the positions of
the classes, is refused with its line: a class's position is its value in every mask, and a guess would put the wrong
name on every pixel.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ovss_core.errors import VocabularyError

Entry = tuple[str, tuple[str, ...]]
"""A class's name and its phrases."""
BACKGROUND_NAME = "background"
_BACKGROUND_SPELLINGS = (BACKGROUND_NAME, "bg")
_FORM = "give one class a line: its name, and synonyms behind commas"
_DATA_FORM = 'give a list of names, such as ["cat", "dog"], or an object of phrases by name, such as {"cat": ["cat", "kitten"]}'
_CVAT = re.compile(r"([^:]+):(?:\d+,\d+,\d+)?:[^:]*:[^:]*")
_POSITION = re.compile(r"\d{1,9}")
_NUMBERED = re.compile(r"(\d{1,9})\s*([:,;\t])\s*(.+)")
_NUMBERED_BY_SPACE = re.compile(r"(\d{1,9})( +)(\D.*)")
_NUMBER_LAST = re.compile(r"([^:,;\t]*[^\d:,;\t][^:,;\t]*?)\s*([:,;\t])\s*(\d{1,9})")
_TABLE_HEAD = re.compile(
    r"(\w*(id|idx|index|value|number|name|label|class)\w*)\s*[,;\t]\s*\w*(id|idx|index|value|name|label|class)\w*",
    re.I,
)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_STRANGE = re.compile(r"[\t;{}<>|\[\]]")
_KEYS_OF_CLASSES = ("categories", "names", "classes", "labels", "id2label")
_YAML_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML lets through where a text such as ``!!int`` has the wrong form for its type."""

Lines = list[tuple[int, str]]
"""Number (from 1) and text of the lines that count."""


def is_background(name: str) -> bool:
    """Say whether a name is one of the usual spellings of the background: any case, underscores around it, or bg."""
    return name.strip(" _-").casefold() in _BACKGROUND_SPELLINGS


def parse_class_line(line: str) -> Entry:
    """Parse ``phrase, synonym, ...`` (the first phrase names the class) or ``name: phrase, synonym, ...``."""
    name, colon, rest = line.partition(":")
    phrases = [phrase.strip() for phrase in (rest if colon else line).split(",") if phrase.strip()]
    return class_entry(name.strip() if colon else (phrases[0] if phrases else ""), phrases)


def class_entry(name: str, phrases: Sequence[str]) -> Entry:
    """Return an entry; a spelling of the background is no phrase to look for, the plain word is."""
    if is_background(name):
        phrases = [BACKGROUND_NAME if is_background(phrase) else phrase for phrase in phrases]
    return name, tuple(phrases)


def brief(text: str) -> str:
    """Return a name as it stands in messages: quoted, and not all of it where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def split_words(text: str) -> list[str]:
    """Split words that were given inline, one class each, at line ends or else at commas."""
    return [word for word in map(str.strip, text.split("\n" if "\n" in text else ",")) if word]


def read_entries(path: Path) -> list[Entry]:
    """Read the classes of a file.

    Raises:
        OSError, UnicodeDecodeError: The file cannot be read.
        VocabularyError: It holds something else than a vocabulary; the line or entry is named.
    """
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
        return _from_parsed(_parse_json, path, text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _from_parsed(_parse_yaml, path, text)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return _from_lines([(number, line) for number, line in lines if line and not line.startswith("#")], path)


def _from_lines(lines: Lines, path: Path) -> list[Entry]:
    cvat = [_CVAT.fullmatch(line) for _, line in lines]
    if lines and all(cvat):
        return [class_entry(match[1].strip(), [match[1].strip()]) for match in cvat if match]
    if lines and all(line.startswith("- ") for _, line in lines):
        return [parse_class_line(line[2:].strip().strip("'\"")) for _, line in lines]
    if len(lines) > 1 and _TABLE_HEAD.fullmatch(lines[0][1]) and _numbers(lines[1:]):
        lines = lines[1:]
    numbers = _numbers(lines)
    if numbers:
        _require_positions([number for number, _ in numbers], f"the numbers of {path}", lines)
        lines = [(number, text) for (number, _), (_, text) in zip(lines, numbers, strict=True)]
    for number, line in lines:
        _require_class(number, line, path)
    return [parse_class_line(line) for _, line in lines]


def _numbers(lines: Lines) -> list[tuple[int, str]] | None:
    """Split a table whose every line is a number and a class, or the other way round; None for other lines."""
    for pattern, number, name in ((_NUMBERED, 1, 3), (_NUMBER_LAST, 3, 1)):
        found = [pattern.fullmatch(line) for _, line in lines]
        if found and all(found) and len({match[2] for match in found if match}) == 1:
            return [(int(match[number]), match[name]) for match in found if match]
    spaced = [_NUMBERED_BY_SPACE.fullmatch(line) for _, line in lines]
    numbers = [(int(match[1]), match[3]) for match in spaced if match]
    counted = [number for number, _ in numbers] == list(
        range(len(lines))
    )  # else "7 seas" and "2 cats" are names
    return numbers if counted and len(lines) > 1 else None


def _require_positions(numbers: Sequence[int], what: str, lines: Lines | None = None) -> None:
    """Refuse numbers that are not the positions 0, 1, 2, ... of their classes."""
    for position, number in enumerate(numbers):
        if number != position:
            where = f" (line {lines[position][0]}: {brief(lines[position][1])})" if lines else ""
            raise VocabularyError(
                f"{what} are not 0, 1, 2, ... in order: class {position} has {number}{where}; in ovss a class's value is "
                "its position from 0, so write the names alone, one a line, in the order of the values you want"
            )


def _require_class(number: int, line: str, path: Path) -> None:
    """Refuse a line that belongs to another kind of file."""
    strange = _STRANGE.search(line)
    parts = [part.strip() for part in re.split("[,:]", line)]
    numeric = [part for part in parts if _NUMBER.fullmatch(part)]
    shown = brief(line)
    if strange:
        what = "a tab" if strange[0] == "\t" else f"a {strange[0]!r}"
        raise VocabularyError(f"line {number} of {path} has {what} in it ({shown}); {_FORM}")
    if _CVAT.fullmatch(line) or len(numeric) > 1 or (len(parts) > 1 and numeric and parts[0] == numeric[0]):
        raise VocabularyError(f"line {number} of {path} has numbers beside a name ({shown}); {_FORM}")


def _from_parsed(parse: Callable[[Path, str], Any], path: Path, text: str) -> list[Entry]:
    """Read JSON or YAML; values that no parser or number type can hold are no vocabulary either."""
    try:
        return _from_data(parse(path, text), path)
    except VocabularyError:
        raise
    except (*_YAML_FAULTS, RecursionError) as error:
        raise VocabularyError(
            f"{path} holds something else than a vocabulary ({str(error)[:100] or type(error).__name__}); {_DATA_FORM}"
        ) from error


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "it"
        raise VocabularyError(
            f"{path} looks like JSON, but {where} is none ({error}); {_FORM}, or {_DATA_FORM}"
        ) from error


def _parse_yaml(path: Path, text: str) -> Any:
    import yaml  # only files of that name need it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        raise VocabularyError(f"{where} of {path} is no YAML; {_FORM}, or {_DATA_FORM}") from error


def _from_data(data: Any, path: Path) -> list[Entry]:
    """Read parsed JSON or YAML: names, lists of phrases, objects with a name, or phrases (or numbers) by name."""
    if isinstance(data, dict):
        for key in _KEYS_OF_CLASSES:
            if isinstance(data.get(key), list | dict):
                return _from_data(data[key], path)
        return _from_mapping(data, path)
    if not isinstance(data, list):
        raise VocabularyError(f"{path} holds {_kind(data)}; {_DATA_FORM}")
    if data and all(isinstance(entry, dict) for entry in data):
        return _from_objects(data, path)
    return [_from_item(entry, position, path) for position, entry in enumerate(data)]


def _from_item(entry: Any, position: int, path: Path) -> Entry:
    if isinstance(entry, str) and entry.strip():
        return parse_class_line(entry)
    if (
        isinstance(entry, list)
        and entry
        and all(isinstance(phrase, str) and phrase.strip() for phrase in entry)
    ):
        return class_entry(entry[0].strip(), [phrase.strip() for phrase in entry])
    raise VocabularyError(f"entry {position + 1} of {path} is {_kind(entry)}, no class; {_DATA_FORM}")


def _from_objects(data: list[dict[str, Any]], path: Path) -> list[Entry]:
    """Read objects with a name, as COCO's categories and CVAT's labels are; their ids must be their positions."""
    numbers = [entry.get("id") for entry in data]
    if any(number is not None for number in numbers):
        known = [number if isinstance(number, int) else -1 for number in numbers]
        order = sorted(range(len(data)), key=known.__getitem__)
        _require_positions([known[index] for index in order], f"the ids of {path}")
        data = [data[index] for index in order]
    entries = []
    for position, entry in enumerate(data, 1):
        name = entry.get("name", entry.get("label"))
        if not isinstance(name, str):
            raise VocabularyError(f"entry {position} of {path} has no name; {_DATA_FORM}")
        entries.append(class_entry(name.strip(), [name.strip()]))
    return entries


def _from_mapping(data: dict[Any, Any], path: Path) -> list[Entry]:
    if data and all(_POSITION.fullmatch(str(key)) for key in data):
        ordered = sorted(data.items(), key=lambda pair: int(pair[0]))
        _require_positions([int(key) for key, _ in ordered], f"the numbers of {path}")
        return [_from_item(value, position, path) for position, (_, value) in enumerate(ordered)]
    if data and all(isinstance(value, int) for value in data.values()):
        ordered = sorted(data.items(), key=lambda pair: pair[1])
        _require_positions([value for _, value in ordered], f"the numbers of {path}")
        return [_from_item([key], position, path) for position, (key, _) in enumerate(ordered)]
    return list(_phrases_by_name(data, path))


def _phrases_by_name(data: dict[Any, Any], path: Path) -> Iterator[Entry]:
    for name, phrases in data.items():
        listed = [phrases] if isinstance(phrases, str) else [] if phrases is None else phrases
        if not isinstance(listed, list) or not all(isinstance(phrase, str) for phrase in listed):
            raise VocabularyError(
                f"{brief(str(name))} of {path} has {_kind(phrases)} for phrases; {_DATA_FORM}"
            )
        yield class_entry(str(name), [phrase.strip() for phrase in listed])


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")
