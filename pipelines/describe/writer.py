"""Ask a language model for the sentences of each class until the review accepts them."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovss_core.description_review import Finding, count_clip_tokens, review, review_class
from ovss_core.errors import ConfigError, OvssError
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from ovss_core.vocabulary_files import is_background
from pipelines.describe.journal import Journal, replace_file
from pipelines.describe.options import DescribeOptions
from pipelines.describe.prompt import Messages, again, first_messages, read_answer

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the service's key."""
_UNSET = VocabularyClass("NAME", ("NAME",))


@dataclass(frozen=True)
class Described:
    """What came out.

    Attributes:
        sentences: By class name, as the file holds them.
        missing: Classes whose answers were all refused, with the last reason.
        findings: What the review finds in the whole.
        tokens: What all starts together have used, "prompt" and "completion".
    """

    sentences: dict[str, list[str]]
    missing: dict[str, str]
    findings: list[Finding]
    tokens: dict[str, int]


def write_descriptions(
    vocabulary: Vocabulary, options: DescribeOptions, tell: Callable[[str], None] = lambda _: None
) -> Described:
    """Write the file of descriptions; what an earlier start has stored is not asked again.

    Args:
        tell: Called with a line of progress after each class.

    Raises:
        ConfigError: The client is not installed, or the output belongs to another prompt, model or vocabulary.
        StorageError: The output cannot be written.
        OvssError: The service refuses, or stays away; the same command goes on.
    """
    client = _Client(options)
    output = Path(options.output)
    journal = Journal(output, _asked(vocabulary, options), options.overwrite)
    entries = [entry for entry in vocabulary.classes if not is_background(entry.name)]
    missing: dict[str, str] = {}
    for count, entry in enumerate(entries, 1):
        if entry.name in journal.accepted:
            continue
        fault = _ask(client, journal, entry, vocabulary, options)
        if fault:
            missing[entry.name] = fault
        tell(f"{count} of {len(entries)} classes, {sum(journal.tokens.values()):,} tokens so far")
    sentences = {
        entry.name: journal.accepted[entry.name] for entry in entries if entry.name in journal.accepted
    }
    replace_file(output, (json.dumps(sentences, indent=2, ensure_ascii=False) + "\n").encode())
    found = review(vocabulary, sentences, count_clip_tokens, rules=options.rules)
    return Described(
        sentences, missing, [entry for entry in found if entry.name not in missing], journal.tokens
    )


def _asked(vocabulary: Vocabulary, options: DescribeOptions) -> dict[str, Any]:
    """Return what decides the answers; the endpoint does not count, and no key is among it."""
    return {
        "prompt": first_messages(_UNSET, Vocabulary((_UNSET,)), options.sentences),
        "model": options.model,
        "temperature": options.temperature,
        "vocabulary": vocabulary.to_dict()["classes"],
    }


def _ask(
    client: "_Client",
    journal: Journal,
    entry: VocabularyClass,
    vocabulary: Vocabulary,
    options: DescribeOptions,
) -> str | None:
    """Ask for one class until an answer is accepted; returns the last fault where none was."""
    question = first_messages(entry, vocabulary, options.sentences)
    messages, faults = question, ["never asked"]
    for _ in range(options.attempts):
        answer, tokens = client.ask(messages)
        sentences, faults = read_answer(answer)
        if not faults:
            others = {name: one for name, one in journal.accepted.items() if name != entry.name}
            found = review_class(entry.name, sentences, vocabulary, count_clip_tokens, options.rules, others)
            faults = [str(finding).removeprefix(f"{entry.name}: ") for finding in found]
        journal.add(
            {
                "class": entry.name,
                "messages": messages,
                "answer": answer,
                "sentences": sentences,
                "faults": faults,
                "tokens": tokens,
            }
        )
        if not faults:
            return None
        messages = again(question, answer, faults)
    return faults[0]


class _Client:
    """The `openai` client, with its faults in one line that never holds the key."""

    def __init__(self, options: DescribeOptions) -> None:
        try:
            import openai  # an extra: labelling needs no client
        except ImportError as error:
            raise ConfigError(
                "ovss describe needs the openai client; install it: pip install 'ovss[describe]'"
            ) from error
        self._fault: type[Exception] = openai.OpenAIError
        self._options = options
        self._key = os.environ.get(KEY, "")
        self._client = openai.OpenAI(
            base_url=options.endpoint,
            api_key=self._key or "none",  # services on one's own machine ask for none
            max_retries=options.retries,
            timeout=options.timeout_s,
        )

    def ask(self, messages: Messages) -> tuple[str, dict[str, int]]:
        """Return an answer and the tokens that it took.

        Raises:
            OvssError: The service refuses, or does not answer after all retries.
        """
        chosen = {} if self._options.temperature is None else {"temperature": self._options.temperature}
        try:
            reply = self._client.chat.completions.create(
                model=self._options.model, messages=messages, **chosen
            )
            text, usage = _content(reply.choices), getattr(reply, "usage", None)
        except (self._fault, ValueError, TypeError, AttributeError) as error:
            raise OvssError(
                f"the service at {self._options.endpoint} did not answer as it should: {self._without_key(error)}; put "
                "that right, and the same command goes on"
            ) from None  # the cause may hold the key
        return text, {
            "prompt": int(getattr(usage, "prompt_tokens", 0) or 0),
            "completion": int(getattr(usage, "completion_tokens", 0) or 0),
        }

    def _without_key(self, error: Exception) -> str:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return said.replace(self._key, "***") if self._key else said


def _content(choices: Sequence[Any]) -> str:
    """Return the text of the first choice; nothing where a service sends none."""
    return str(choices[0].message.content or "") if choices else ""
