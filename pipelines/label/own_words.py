"""What each image is offered where images bring words along: a vocabulary of its own, with its embeddings.

The driver encodes all that is known beforehand, once: the common vocabulary, and behind it the words that are looked for
in captions (`pipelines.label.word_use.known_words`). An image's words that are among these are taken from there. Others
are encoded when they come (`ovss_core.clip.phrases`), and go on to stage 2 with the image's proposal.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from ovss_core.caption_words import CaptionWords
from ovss_core.class_purification.null import load_distractors
from ovss_core.clip.phrases import ONE_TEMPLATE, PhraseMemory
from ovss_core.clip.text import TEMPLATES, EncodedVocabulary
from ovss_core.clip.weights import ClipModel
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import ImageError
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from ovss_core.vocabulary_files import is_background
from pipelines.faults import Failure
from pipelines.label.word_use import OwnWords, plain_word, word_key
from pipelines.sources.image_words import STAGE, Texts, as_texts

_ENGINES = 256
"""Vocabularies whose engines are kept: images in a row often have the same words."""
_SHOWN = 60


@dataclass(frozen=True)
class Offer:
    """What one image is offered.

    Attributes:
        classes: Of the known words, by index.
        words: Others, behind them.
    """

    classes: tuple[int, ...]
    words: tuple[str, ...] = ()


class Offers:
    """Makes vocabularies of images' words, and engines for them.

    Args:
        settings: How words are used.
        known: All that is known beforehand.
        clip: Encodes other words; None where they come encoded.
        device: Where to encode.
    """

    def __init__(
        self,
        settings: OwnWords,
        known: EncodedVocabulary,
        clip: ClipModel | None = None,
        device: str = "cpu",
    ) -> None:
        self.settings, self.known = settings, known
        templates = ONE_TEMPLATE if settings.templates == "one" else TEMPLATES
        self._memory = PhraseMemory(clip, device, templates) if clip else None
        common = known.vocabulary.classes[: settings.common]
        self.common = Offer(tuple(range(settings.common)))
        self._background = tuple(place for place, entry in enumerate(common) if is_background(entry.name))
        self._named: dict[str, int] = {}
        for place, entry in enumerate(
            known.vocabulary.classes if settings.common or settings.captions else ()
        ):
            for text in (entry.name, *entry.phrases):
                self._named.setdefault(word_key(text), place)
        self._captions = CaptionWords(known.vocabulary) if settings.captions else None
        self._nouns = load_distractors(known.vocabulary.phrases) if len(known.null_embeddings) else []
        self._rows: dict[str, Tensor] = {}
        self._engines: OrderedDict[Offer, SegmentationEngine] = OrderedDict()

    @property
    def base_text(self) -> EncodedVocabulary:
        """The common vocabulary; anything where there is none, for it is never offered."""
        return self.known.select(self.common.classes) if self.settings.common else self.known

    def plan(self, given: Sequence[Any]) -> list[Offer | Failure]:
        """Decide what images are offered, and encode the words that are new, all at once.

        Args:
            given: Values of the column, one an image.
        """
        found: list[Offer | Failure] = []
        for value in given:
            try:
                found.append(self._offer(as_texts(value, self.settings.captions)))
            except ImageError as error:
                found.append(Failure(STAGE, "VocabularyError", Failure.of(STAGE, error).reason))
        if self._memory is None:
            return found
        words = [word for offer in found if isinstance(offer, Offer) for word in offer.words]
        if cut := set(self._memory.cut_off(words)):
            found = [_refused(offer, cut) for offer in found]
        self._rows = self._memory.encode(word for word in words if word not in cut)
        return found

    def text(self, offer: Offer) -> EncodedVocabulary:
        """Return the encoded vocabulary of an offer, whose words were encoded by the last `plan` or `unpack`."""
        known, classes = self.known, list(offer.classes)
        if not offer.words:
            return known.select(classes)
        rows = torch.stack([self._rows[word] for word in offer.words])
        named = [known.vocabulary.classes[index] for index in classes]
        has_phrases = any(entry.phrases for entry in named)  # a background may have none
        phrases = [known.select(classes).phrase_embeddings] if has_phrases else []
        nulls = known.null_embeddings
        if self._nouns:
            left = set(load_distractors([*known.vocabulary.phrases, *offer.words]))
            nulls = nulls[[place for place, noun in enumerate(self._nouns) if noun in left]]
        return replace(
            known,
            vocabulary=Vocabulary((*named, *(VocabularyClass(word, (word,)) for word in offer.words))),
            phrase_embeddings=torch.cat([*phrases, rows]),
            description_embeddings=torch.cat([known.description_embeddings[classes], rows]),
            null_embeddings=nulls,
        )

    def engine(self, offer: Offer, base: SegmentationEngine) -> SegmentationEngine:
        """Return an engine for an offer, on the towers of another one, in whose timings its seconds count."""
        if offer == self.common:
            return base
        found = self._engines.get(offer)
        if found is None:
            found = self._engines[offer] = base.with_vocabulary(self.text(offer), base.config)
            if len(self._engines) > _ENGINES:
                self._engines.popitem(last=False)
        self._engines.move_to_end(offer)
        found.timings = base.timings
        return found

    def pack(self, offer: Offer) -> bytes:
        """Write down an offer with the embeddings of its words, for another process."""
        width = self.known.phrase_embeddings.shape[1]
        rows = [self._rows[word].numpy() for word in offer.words]
        metadata = {"classes": json.dumps(offer.classes), "words": json.dumps(offer.words)}
        return save({"rows": np.array(rows, np.float32).reshape(-1, width)}, metadata)

    def unpack(self, packed: Iterable[bytes]) -> list[Offer]:
        """Read what `pack` wrote, all that one call works on."""
        offers: list[Offer] = []
        rows: dict[str, Tensor] = {}
        for data in packed:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            offer = Offer(tuple(json.loads(metadata["classes"])), tuple(json.loads(metadata["words"])))
            table = torch.from_numpy(load(bytes(data))["rows"].copy())
            rows |= zip(offer.words, table, strict=True)
            offers.append(offer)
        self._rows = rows
        return offers

    def _offer(self, texts: Texts) -> Offer:
        """Decide what an image is offered.

        Raises:
            ImageError: It has too many words, or none where nothing is common.
        """
        settings = self.settings
        first = self.common.classes if settings.use == "besides" else self._background
        known, other = self._sorted(texts or [])
        count = len({*known} - {*first}) + len(other)
        if count > settings.most:
            raise ImageError(
                f"the image has {count} words of its own, more than max_own_words ({settings.most})"
            )
        if not known and not other:
            if set(self.common.classes) <= set(self._background):
                raise ImageError(
                    "the image has no words of its own, and there is no --vocabulary to offer it instead"
                )
            return self.common
        return Offer(tuple(dict.fromkeys([*first, *known])), tuple(other))

    def _sorted(self, texts: Sequence[str]) -> tuple[list[int], list[str]]:
        """Split words into those that are known and others, each once, in their order; a background is neither."""
        if self._captions is not None:
            named = dict.fromkeys(index for text in texts for index in self._captions.find(text))
            return list(named), []
        known: dict[int, None] = {}
        other: dict[str, None] = {}
        for text in texts:
            word = plain_word(text)
            if not word or is_background(word):
                continue
            index = self._named.get(word_key(word))
            if index is None:
                other[word] = None
            elif index not in self._background:
                known[index] = None
        return list(known), list(other)


def _refused(offer: Offer | Failure, cut: set[str]) -> Offer | Failure:
    """Turn an offer with a word that the text tower would not read to its end into a failure."""
    long = next((word for word in offer.words if word in cut), None) if isinstance(offer, Offer) else None
    if long is None:
        return offer
    reason = f"the text tower would not read the image's word {long[:_SHOWN]!r}... to its end, {len(long)} characters"
    return Failure(STAGE, "VocabularyError", reason)


def widened(label_map: np.ndarray, ignore: int) -> np.ndarray:
    """Return a label map in the numbers of a run whose pixels without a label have the value `ignore`."""
    if ignore == np.iinfo(label_map.dtype).max:
        return label_map
    wide = label_map.astype(np.uint16)
    wide[label_map == np.iinfo(label_map.dtype).max] = ignore
    return wide
