"""What the language model is asked, and how its answers are read."""

import json
import re
from collections.abc import Sequence

from ovss_core.vocabulary import Vocabulary, VocabularyClass
from ovss_core.vocabulary_files import is_background

_SHOWN_RIVALS = 150
_TASK = """\
You describe object classes for a vision-language model that compares your sentences with photographs.
Write {count} sentences about the class. Each stands alone, names the class by the word that you are given, has 8 to 25
words, begins with a capital letter and ends with a full stop. Say only what can be seen in nearly every photograph of the
class: what it looks like, its parts, its material and colors, where it stands, and what tells it from the other classes
of the same vocabulary. Do not write the name of any other class, not even inside another word's plural. Vary how
sentences begin.
Answer with JSON only: {{"sentences": ["...", "..."]}}"""
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.S)

Messages = list[dict[str, str]]


def first_messages(entry: VocabularyClass, vocabulary: Vocabulary, count: int) -> Messages:
    """Return the question about one class: the task, the class with its phrases, and its rivals."""
    others = [name for name in vocabulary.names if name != entry.name and not is_background(name)]
    rivals = ", ".join(others[:_SHOWN_RIVALS])
    also = [phrase for phrase in entry.phrases if phrase != entry.name]
    asked = f"Class: {entry.name}" + (f" (also called: {', '.join(also)})" if also else "")
    return [
        {"role": "system", "content": _TASK.format(count=count)},
        {"role": "user", "content": f"{asked}\nOther classes: {rivals or 'none'}"},
    ]


def again(messages: Messages, answer: str, faults: Sequence[str]) -> Messages:
    """Return the question once more, with an answer that was refused and the reasons."""
    told = "\n".join(f"- {fault}" for fault in faults)
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": f"That cannot be used:\n{told}\nWrite the whole JSON again, without these faults.",
        },
    ]


def read_answer(text: str) -> tuple[list[str], list[str]]:
    """Read an answer; returns its sentences, or none of them and what is wrong with its form."""
    fenced = _FENCED.search(text)
    try:
        values = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return [], ["the answer is no JSON"]
    sentences = values.get("sentences") if isinstance(values, dict) else None
    if not isinstance(sentences, list) or not sentences or not all(isinstance(one, str) for one in sentences):
        return [], ['the JSON is no object {"sentences": [...]} with a list of texts']
    try:
        "".join(sentences).encode()
    except UnicodeEncodeError:
        return [], ["a sentence holds halves of characters"]
    return [" ".join(one.split()) for one in sentences], []
