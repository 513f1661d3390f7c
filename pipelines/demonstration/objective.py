"""What the demonstration model is trained for: image against caption, patches against words, and coherent patches.

The first term is CLIP's. The others are region-level and use the scenes' label maps: the class token of a crop
against the words of its classes; the patches against the words of theirs, as clearclip and one other host, drawn anew
each time, read them; and, because SFP and FreeCP build on them, the attention of the blocks (it should stay within a
class) and the similarities of the middle layers (high within a class, low across classes). A CLIP trained on
millions of captions has much of the latter two without being told.
"""

import random
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.feature_purification.similarity import patch_similarity
from pipelines.demonstration.crops import PATCH, CropBatch
from pipelines.demonstration.tower_reader import TowerReader, draw_host
from pipelines.demonstration.words import CLASS_NAMES, DISTRACTORS, phrases_of

MIDDLE_LAYERS = (4, 9)
_READING = {"caption": 0.4, "words": 0.5, "clear": 1.0, "other": 0.7}
FIRST_WEIGHTS = {**_READING, "attention": 0.2, "similarity": 1.0}
SECOND_WEIGHTS = {**_READING, "attention": 0.6, "similarity": 4.0}
"""How much each term counts in the two parts of the training: coherence matters once there is meaning to cohere."""
_DISTRACTORS_A_STEP = 20
_TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES


class WordBank:
    """Draws phrases for classes and distractors and turns them into token ids, each text only once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, Tensor] = {}

    def tokens(self, texts: list[str]) -> Tensor:
        """Return token ids, int64 [texts, longest]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._tokenizer(new), strict=True))
        ids = torch.stack([self._known[text] for text in texts])
        return ids[:, : int((ids != 0).sum(1).max())]

    def draw_phrases(self, rng: random.Random) -> list[str]:
        """Draw a phrase in a template for each class, then for some distractors."""
        words = [name if rng.random() < 0.6 else rng.choice(phrases_of(name)) for name in CLASS_NAMES]
        words += rng.sample(DISTRACTORS, _DISTRACTORS_A_STEP)
        return [rng.choice(_TEMPLATES)(word) if rng.random() < 0.9 else word for word in words]


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Return unit text features [texts, features]; the tokens [texts, longest] may be shorter than the context."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = hidden[torch.arange(len(hidden)), tokens.argmax(-1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


def training_loss(
    model: Any,
    reader: TowerReader,
    batch: CropBatch,
    bank: WordBank,
    class_weights: Tensor,
    weights: Mapping[str, float],
    rng: random.Random,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its terms.

    Args:
        model: The open_clip model.
        reader: Reads its image tower.
        batch: Crops of one size.
        bank: Where phrases come from.
        class_weights: float32 [classes], how much a patch of each class counts.
        weights: How much each term counts.
        rng: Where every choice comes from.
    """
    side = batch.images.shape[-1] // PATCH
    trace = reader.trace(batch.images, reader.draw_positions((side, side), rng))
    words = encode_text(model, bank.tokens(bank.draw_phrases(rng)))
    captions = encode_text(model, bank.tokens(batch.captions))
    scale = model.logit_scale.exp().clamp(max=100)
    summary, shares = reader.class_features(trace), batch.patch_shares
    clear, other = reader.patch_features(trace, "clearclip"), reader.patch_features(trace, *draw_host(rng))
    whole = shares.mean(1).sqrt()
    same = shares @ shares.transpose(1, 2)
    assert trace.mean_attention is not None
    terms = {
        "caption": _caption_loss(scale * summary @ captions.T, batch.captions),
        "words": _share_loss(scale * summary @ words.T, whole / whole.sum(1, keepdim=True), None),
        "clear": _share_loss(scale * clear @ words.T, shares, class_weights),
        "other": _share_loss(scale * other @ words.T, shares, class_weights),
        "attention": attention_loss(trace.mean_attention, same, shares @ class_weights),
        "similarity": torch.stack(
            [similarity_loss(trace.hidden[layer], same) for layer in MIDDLE_LAYERS]
        ).sum(),
    }
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: float(term.detach()) for name, term in terms.items()}


def attention_loss(
    attention: Float[Tensor, "batch patches patches"],
    same: Float[Tensor, "batch patches patches"],
    weights: Float[Tensor, "batch patches"],
) -> Float[Tensor, ""]:
    """Minus the logarithm of the share of its attention that a patch pays to patches of its own class.

    Args:
        attention: Non-negative; rows need not sum to 1.
        same: Share of one class that two patches have in common.
        weights: How much each patch counts.
    """
    share = (attention * same).sum(-1) / attention.sum(-1)
    return -((share + 1e-3).log() * weights).sum() / weights.sum()


def similarity_loss(
    tokens: Float[Tensor, "batch tokens width"], same: Float[Tensor, "batch patches patches"]
) -> Float[Tensor, ""]:
    """Squared hinge on the cosines of patches: at least 0.7 within a class, at most 0.2 across classes.

    Args:
        tokens: The class token, which does not count, and the patches.
        same: As for `attention_loss`.
    """
    cosine = patch_similarity(tokens[:, 1:])
    other = 1 - same
    near = (same * F.relu(0.7 - cosine).square()).sum() / same.sum()
    far = (other * F.relu(cosine - 0.2).square()).sum() / other.sum().clamp(min=1)
    return near + far


def _share_loss(logits: Tensor, shares: Tensor, class_weights: Tensor | None) -> Tensor:
    """Cross-entropy with the shares as soft targets; words past the classes are never right."""
    loss = -(shares * logits.log_softmax(-1)[..., : shares.shape[-1]]).sum(-1)
    if class_weights is None:
        return loss.mean()
    weights = shares @ class_weights
    return (loss * weights).sum() / weights.sum()


def _caption_loss(logits: Tensor, captions: list[str]) -> Tensor:
    """CLIP's symmetric cross-entropy; equal captions are equally right."""
    same = torch.tensor([[float(one == other) for other in captions] for one in captions])
    target = same / same.sum(1, keepdim=True)
    return -0.5 * ((target * logits.log_softmax(1)).sum(1) + (target * logits.log_softmax(0).T).sum(1)).mean()
