"""Phrases that come by and by, with the images of a corpus: each is encoded when it comes first, and then remembered."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ovss_core.clip.text import PROMPT_BATCH, count_tokens, encode_in_templates
from ovss_core.clip.weights import ClipModel

ONE_TEMPLATE = ("a photo of a {}.",)
"""The prompt of a phrase that stands for one image, or for few: all 80 would cost more than the image."""
MOST_PHRASES = 1 << 15
"""Phrases that are remembered: 64 MB of 512 dimensions."""


class PhraseMemory:
    """Encodes phrases, those that come together in one go, and remembers the latest ones.

    Args:
        clip: Its text tower is moved to `device`.
        device: Where to encode.
        templates: Prompts with one `{}` for the phrase.
        most: Phrases that are remembered; of the others the one that was asked for longest ago goes first.

    Attributes:
        encoded: Phrases that were encoded so far.
    """

    def __init__(
        self,
        clip: ClipModel,
        device: str | torch.device = "cpu",
        templates: Sequence[str] = ONE_TEMPLATE,
        most: int = MOST_PHRASES,
    ) -> None:
        self._clip = clip
        self._device = torch.device(device)
        self._templates = tuple(templates)
        self._most = most
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._longest = max(len(template.encode()) for template in self._templates)
        self.encoded = 0
        clip.model.to(self._device)

    def encode(self, phrases: Iterable[str]) -> dict[str, Tensor]:
        """Return the unit vector of each phrase, float32 [features] on the CPU."""
        wanted = list(dict.fromkeys(phrases))
        found = {phrase: self._rows[phrase] for phrase in wanted if phrase in self._rows}
        # prompts of one pass are as long as its longest one
        missing = sorted((phrase for phrase in wanted if phrase not in found), key=len)
        step = max(1, PROMPT_BATCH // len(self._templates))
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            rows = encode_in_templates(self._clip, part, self._templates, self._device)
            found |= zip(part, rows, strict=True)
        self.encoded += len(missing)
        for phrase in wanted:
            self._rows[phrase] = found[phrase]
            self._rows.move_to_end(phrase)
        while len(self._rows) > self._most:
            self._rows.popitem(last=False)
        return found

    def cut_off(self, phrases: Iterable[str]) -> list[str]:
        """Return the phrases that are longer than the text tower reads, in a prompt."""
        room = self._clip.context_length - 2  # a start and an end token; every other takes a byte at least
        doubtful = [
            phrase
            for phrase in dict.fromkeys(phrases)
            if phrase not in self._rows and len(phrase.encode()) + self._longest > room
        ]
        if not doubtful:
            return []
        frame = max(self._templates, key=lambda template: len(template.encode()))
        prompts = [frame.format(phrase) for phrase in doubtful]
        counts = count_tokens(self._clip.tokenizer, self._clip.context_length, prompts).tolist()
        return [
            phrase
            for phrase, count in zip(doubtful, counts, strict=True)
            if count > self._clip.context_length
        ]
