"""What a mistyped name was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
"""All that word processors and web pages turn a dash into."""
_SHOWN = 3


def near_names(given: str, known: Iterable[str], likeness: float = 0.75) -> list[str]:
    """Return the known names that resemble what was given, the nearest first; at most three.

    A name resembles it when few letters differ, or when one of its words begins with it (``--batch`` and ``--gpu``
    find ``--batch-size`` and ``--num-gpus``).

    Args:
        given: What was typed.
        known: What could have been meant.
        likeness: How alike the letters must be, from 0 to 1.
    """
    bare = {_bare(name): name for name in known}
    word = _bare(given)
    if not word:
        return []
    certain = get_close_matches(word, bare, 1, cutoff=0.9)
    if certain:
        return [bare[certain[0]]]
    close = get_close_matches(word, bare, _SHOWN, cutoff=likeness)
    begun = [name for name in bare if len(word) > 2 and name.startswith(word)]
    parts = [
        name
        for name in bare
        if len(word) > 2 and any(part.startswith(word) for part in name.replace(".", "-").split("-"))
    ]
    last = {name.rpartition(".")[2]: name for name in bare if "." in name}
    inner = [last[name] for name in get_close_matches(word.rpartition(".")[2], last, 1, cutoff=0.8)]
    found = dict.fromkeys([*close, *begun, *inner, *parts])
    return [bare[name] for name in list(found)[:_SHOWN]]


def did_you_mean(given: str, known: Iterable[str], likeness: float = 0.75) -> str:
    """Return the question, to be put behind a message, or nothing where no name is near."""
    near = near_names(given, known, likeness)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _bare(name: str) -> str:
    return name.strip().lstrip(DASHES).replace("_", "-").lower()
