"""The text side of a run: phrases to unit vectors, once, cached on disk by content."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from safetensors.numpy import load, save
from torch import Tensor

from ovss_core.clip.weights import ClipModel
from ovss_core.vocabulary import Vocabulary, require_descriptions

logger = logging.getLogger(__name__)

TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
CAR_PROMPTS: tuple[str, ...] = (
    "{}",
    "a clean origami {}.",
    *(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
)
"""Prompts that CaR reads one by one: the bare name for its first maps, the second for later ones. Its judge takes all but the
first; behind the second these are the seven that CLIP's authors found to do best together."""
PROMPT_BATCH = 512
_LONGEST_TEMPLATE = max(len(template.encode()) for template in TEMPLATES)


@dataclass(frozen=True)
class EncodedVocabulary:
    """What stands for the vocabulary in the joint space; all rows are unit vectors, float32.

    Attributes:
        vocabulary: The classes.
        phrase_embeddings: One row a phrase [phrases, features].
        description_embeddings: One row a class, for the ambiguity step [classes, features]; zeros for a class
            without phrases.
        null_embeddings: Distractor phrases, none of them in the vocabulary [distractors, features].
        weights_hash: SHA-256 of the weights that made them.
        logit_scale: Factor on cosines that these weights were trained with.
        prompt_embeddings: Each phrase in each of `CAR_PROMPTS` by itself, where CaR filters words.
    """

    vocabulary: Vocabulary
    phrase_embeddings: Float[Tensor, "phrases features"]
    description_embeddings: Float[Tensor, "classes features"]
    null_embeddings: Float[Tensor, "distractors features"]
    weights_hash: str
    logit_scale: float = 100.0
    prompt_embeddings: Float[Tensor, "prompts phrases features"] | None = None

    @property
    def phrase_class(self) -> Int[Tensor, " phrases"]:
        """The class index of each phrase."""
        return torch.from_numpy(self.vocabulary.phrase_class)

    def select(self, classes: Sequence[int], name: str | None = None) -> "EncodedVocabulary":
        """Return the text side of some of the classes, in this order, which their indices then follow.

        Raises:
            VocabularyError: They are no vocabulary by themselves, such as none at all.
        """
        vocabulary = Vocabulary(tuple(self.vocabulary.classes[index] for index in classes), name)
        ends = np.cumsum([0, *(len(entry.phrases) for entry in self.vocabulary.classes)])
        rows = np.concatenate([np.arange(ends[index], ends[index + 1]) for index in classes])
        return replace(
            self,
            vocabulary=vocabulary,
            phrase_embeddings=self.phrase_embeddings[torch.from_numpy(rows)],
            description_embeddings=self.description_embeddings[list(classes)],
            prompt_embeddings=None
            if self.prompt_embeddings is None
            else self.prompt_embeddings[:, torch.from_numpy(rows)],
        )

    def to_bytes(self) -> bytes:
        """Serialise without pickle."""
        tensors = {
            "phrases": self.phrase_embeddings.numpy(),
            "descriptions": self.description_embeddings.numpy(),
            "null": self.null_embeddings.numpy(),
        }
        if self.prompt_embeddings is not None:
            tensors["prompts"] = self.prompt_embeddings.numpy()
        metadata = {
            "vocabulary": json.dumps(self.vocabulary.to_dict()),
            "weights_hash": self.weights_hash,
            "logit_scale": repr(self.logit_scale),
        }
        return save(tensors, metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> "EncodedVocabulary":
        """Rebuild what `to_bytes` wrote."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in load(data).items()}
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        return cls(
            vocabulary=Vocabulary.from_dict(json.loads(metadata["vocabulary"])),
            phrase_embeddings=tensors["phrases"],
            description_embeddings=tensors["descriptions"],
            null_embeddings=tensors["null"],
            weights_hash=metadata["weights_hash"],
            logit_scale=float(metadata["logit_scale"]),
            prompt_embeddings=tensors.get("prompts"),
        )


class TextEncoder:
    """Encodes phrases with prompt templates, and remembers them on disk.

    Args:
        clip: Both towers; the text tower is moved to `device` while encoding.
        device: Where to encode.
        cache_dir: Folder of remembered embeddings; None is `$OVSS_CACHE`, or `~/.cache/ovss`.
    """

    def __init__(
        self, clip: ClipModel, device: str | torch.device = "cpu", cache_dir: str | Path | None = None
    ) -> None:
        self._clip = clip
        self._device = torch.device(device)
        self._cache_dir = Path(cache_dir or os.environ.get("OVSS_CACHE") or Path.home() / ".cache" / "ovss")
        self.weights_hash = clip.weights_hash()
        self.logit_scale = float(clip.model.logit_scale.detach().exp())

    def encode_phrases(
        self, phrases: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> Float[Tensor, "phrases features"]:
        """Encode each phrase through all templates: normalize, average, normalize.

        Args:
            templates: Prompts with one `{}` for the phrase; ("{}",) takes the phrases as sentences.
        """
        unique = list(dict.fromkeys(phrases))
        folder = self._cache_folder(templates)
        width = self._output_dim()
        remembered = {phrase: _read_embedding(folder, phrase, width) for phrase in unique}
        known = {phrase: row for phrase, row in remembered.items() if row is not None}
        missing = [phrase for phrase in unique if phrase not in known]
        if missing:
            logger.info("encoding %d phrases with %d templates", len(missing), len(templates))
        self._clip.model.to(self._device)
        per_step = max(1, PROMPT_BATCH // len(templates))
        for start in range(0, len(missing), per_step):
            part = missing[start : start + per_step]
            rows = encode_in_templates(self._clip, part, templates, self._device)
            for phrase, row in zip(part, rows, strict=True):
                known[phrase] = row
                _write_embedding(folder, phrase, row)
        self._clip.model.to("cpu")
        if not phrases:
            return torch.zeros(0, width)
        return torch.stack([known[phrase] for phrase in phrases])

    def _output_dim(self) -> int:
        return int(self._clip.model.visual.output_dim)

    def _cache_folder(self, templates: Sequence[str]) -> Path:
        # equal weights encode otherwise under another activation, which a file's format may decide
        kinds = sorted({type(module).__name__ for module in self._clip.model.modules()})
        settings = json.dumps([list(templates), self._clip.config.name, kinds])
        digest = hashlib.sha256(settings.encode()).hexdigest()
        return self._cache_dir / "text" / f"{self.weights_hash[:24]}-{digest[:16]}"


def encode_in_templates(
    clip: ClipModel, phrases: Sequence[str], templates: Sequence[str], device: torch.device
) -> Float[Tensor, "phrases features"]:
    """Encode each phrase through all templates, in one pass: normalize, average, normalize; on the CPU.

    Args:
        clip: Its text tower lies on the device.
        templates: Prompts with one `{}` for the phrase.
    """
    prompts = [template.format(phrase) for phrase in phrases for template in templates]
    with torch.inference_mode():
        encoded = F.normalize(encode_prompts(clip, prompts, device).float(), dim=-1)
        mean = encoded.view(len(phrases), len(templates), -1).mean(1)
        return F.normalize(mean, dim=-1).cpu()


def encode_prompts(
    clip: ClipModel, prompts: Sequence[str], device: torch.device
) -> Float[Tensor, "prompts features"]:
    """Encode prompts as open_clip's `encode_text` does, not normalized.

    CLIP's text attention is causal and its feature is the end token's, so tokens behind the longest prompt
    cannot matter and are cut off.
    """
    tokens = clip.tokenizer(list(prompts)).to(device)
    model = clip.model
    if not hasattr(model, "token_embedding") or model.text_pool_type != "argmax" or model.attn_mask is None:
        features: Tensor = model.encode_text(tokens)
        return features
    length = int(tokens.argmax(1).max()) + 1
    hidden = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    pooled = model.ln_final(hidden)[torch.arange(len(prompts), device=device), tokens.argmax(1)]
    projection = model.text_projection
    projected: Tensor = projection(pooled) if isinstance(projection, torch.nn.Module) else pooled @ projection
    return projected


def cut_texts(
    load_tokenizer: Callable[[], Any],
    context_length: int,
    phrases: Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Warn of texts that are longer than the text tower reads: it sees their beginning only.

    Args:
        load_tokenizer: Called only where a text is long enough to be in doubt.
        context_length: Tokens that the text tower reads.
        phrases: Encoded in every template.
        descriptions: Sentences by class name, encoded as they are.

    Returns:
        One warning with the first such text, or nothing.
    """
    sentences = [sentence for entry in (descriptions or {}).values() for sentence in entry]
    room = context_length - 2  # a start and an end token; every other takes a byte at least
    framed = [phrase for phrase in phrases if len(phrase.encode()) + _LONGEST_TEMPLATE > room]
    plain = [sentence for sentence in sentences if len(sentence.encode()) > room]
    if not framed and not plain:
        return []
    tokenizer = load_tokenizer()
    frame = TEMPLATES[int(count_tokens(tokenizer, context_length, TEMPLATES).argmax())]
    prompts = [*(frame.format(phrase) for phrase in framed), *plain]
    counts = count_tokens(tokenizer, context_length, prompts)
    cut = [text for text, count in zip([*framed, *plain], counts, strict=True) if count > context_length]
    if not cut:
        return []
    shown = cut[0] if len(cut[0]) <= 80 else f"{cut[0][:77]}..."
    more = f" (and of {len(cut) - 1} more)" if len(cut) > 1 else ""
    return [
        f"the text tower reads {context_length} tokens: the end of {shown!r}{more} is cut off and does not count; "
        "shorten it"
    ]


def count_tokens(tokenizer: Any, context_length: int, texts: Sequence[str]) -> Int[Tensor, " texts"]:
    """Count the tokens of texts, a start and an end included, up to twice what the tower reads.

    A text ends before the padding behind it; padding's number may stand for a word as well ("!" in CLIP's).
    """
    room = 2 * context_length
    tokens = tokenizer(list(texts), context_length=room)
    padding = tokenizer([""], context_length=room)[0, -1]
    behind = (tokens != padding).int().flip(1).argmax(1)
    count: Tensor = room - behind
    return count


def encode_vocabulary(
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    descriptions: Mapping[str, Sequence[str]] | None = None,
    distractors: Iterable[str] = (),
    prompts: Sequence[str] = (),
) -> EncodedVocabulary:
    """Encode everything a run needs to know of its vocabulary.

    Args:
        descriptions: Sentences by class name for the ambiguity step, encoded without templates; a class
            without an entry falls back to the mean of its phrases' embeddings.
        distractors: Phrases of the null; those that are in the vocabulary must have been left out.
        prompts: Templates in which phrases are encoded one by one as well.

    Raises:
        ConfigError: A description belongs to no class, or has no sentence.
    """
    require_descriptions(vocabulary, descriptions)
    given = descriptions or {}
    phrases = encoder.encode_phrases(vocabulary.phrases)
    rows = torch.zeros(len(vocabulary), phrases.shape[1])
    rows.index_add_(0, torch.from_numpy(vocabulary.phrase_class), phrases)
    for name, sentences in given.items():
        rows[vocabulary.names.index(name)] = encoder.encode_phrases(list(sentences), ("{}",)).mean(0)
    null = encoder.encode_phrases(list(distractors))
    descriptions_of_classes = F.normalize(rows, dim=-1)
    by_prompt = [encoder.encode_phrases(vocabulary.phrases, (prompt,)) for prompt in prompts]
    return EncodedVocabulary(
        *(vocabulary, phrases, descriptions_of_classes, null, encoder.weights_hash, encoder.logit_scale),
        prompt_embeddings=torch.stack(by_prompt) if by_prompt else None,
    )


def _entry(folder: Path, phrase: str) -> Path:
    return folder / f"{hashlib.sha256(phrase.encode()).hexdigest()}.npy"


def _read_embedding(folder: Path, phrase: str, width: int) -> Tensor | None:
    """Recall one embedding; None where there is none, or where its file is damaged."""
    try:
        row = np.load(_entry(folder, phrase), allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile):
        return None
    sound = isinstance(row, np.ndarray) and row.shape == (width,) and row.dtype == np.float32
    return torch.from_numpy(row) if sound and np.isfinite(row).all() else None


def _write_embedding(folder: Path, phrase: str, row: Tensor) -> None:
    """Remember one embedding; a cache that cannot be written costs time, never a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
            np.save(file, row.numpy())
        Path(file.name).replace(_entry(folder, phrase))
    except OSError as error:
        logger.debug("the text cache %s cannot be written: %s", folder, error)
