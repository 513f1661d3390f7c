"""What the demonstration model is trained for: image against caption, and patches against words.

Three terms are summed. The first is CLIP's. The other two are region-level and use the scenes' label maps:
the class token of a crop against the words of its classes, and the patches against the words of theirs. The patch
term is taken where the training-free hosts read: the last block's values without residual and feed-forward network,
once as they are (maskclip) and once after query-query attention (clearclip).
"""

import random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.demonstration.crops import CropBatch
from ovss_core.demonstration.words import CLASS_NAMES, DISTRACTORS, phrases_of
from ovss_core.encoders.positional import resample_positions

BASE_GRID = (14, 14)
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


def position_table(visual: Any, grid: tuple[int, int], rng: random.Random) -> Tensor:
    """Return positions for a grid: the table itself, resampled, or (for smaller grids) a random part of it."""
    table: Tensor = visual.positional_embedding
    if grid == BASE_GRID or rng.random() < 0.4:
        return resample_positions(table, BASE_GRID, grid)
    row, column = rng.randint(0, BASE_GRID[0] - grid[0]), rng.randint(0, BASE_GRID[1] - grid[1])
    patches = table[1:].reshape(*BASE_GRID, -1)[row : row + grid[0], column : column + grid[1]]
    return torch.cat([table[:1], patches.flatten(0, 1)])


def encode_image(visual: Any, images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the image tower once and read it three ways.

    Returns:
        Unit features of the class token [batch, features], of the patches' values [batch, patches, features], and
        of their values after query-query attention [batch, patches, features].
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
    tokens = visual.ln_pre(torch.cat([first, patches], 1) + positions)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    attention = last.attn
    mixed = F.linear(last.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=-1)
    )
    class_out = F.scaled_dot_product_attention(query[:, :, :1], key, value)
    clear_out = F.scaled_dot_product_attention(query, query, value)[:, :, 1:]
    read = torch.cat([class_out, value[:, :, 1:], clear_out], 2).transpose(1, 2).flatten(2)
    read = attention.out_proj(read)
    summary = tokens[:, :1] + read[:, :1]
    summary = summary + last.mlp(last.ln_2(summary))
    features = visual.ln_post(torch.cat([summary, read[:, 1:]], 1)) @ visual.proj
    features = F.normalize(features.float(), dim=-1)
    count = patches.shape[1]
    return features[:, 0], features[:, 1 : 1 + count], features[:, 1 + count :]


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Return unit text features [texts, features]; the tokens [texts, longest] may be shorter than the context."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled = hidden[torch.arange(len(hidden)), tokens.argmax(-1)]
    return F.normalize(pooled @ model.text_projection, dim=-1)


def training_loss(
    model: Any, batch: CropBatch, bank: WordBank, class_weights: Tensor, rng: random.Random, half: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and its terms.

    Args:
        model: The open_clip model.
        batch: Crops of one size.
        bank: Where phrases come from.
        class_weights: float32 [classes], how much a patch of each class counts.
        rng: Where every choice comes from.
        half: Whether the image tower computes in bfloat16.
    """
    side = batch.images.shape[-1] // 16
    positions = position_table(model.visual, (side, side), rng)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        summary, values, clear = encode_image(model.visual, batch.images, positions)
    phrases = bank.draw_phrases(rng)
    words = encode_text(model, bank.tokens(phrases))
    captions = encode_text(model, bank.tokens(batch.captions))
    scale = model.logit_scale.exp().clamp(max=100)
    shares = batch.patch_shares
    whole = shares.mean(1).sqrt()
    terms = {
        "caption": _caption_loss(scale * summary @ captions.T, batch.captions),
        "words": _share_loss(scale * summary @ words.T, whole / whole.sum(1, keepdim=True), None),
        "values": _share_loss(scale * values @ words.T, shares, class_weights),
        "clear": _share_loss(scale * clear @ words.T, shares, class_weights),
    }
    loss = 0.4 * terms["caption"] + 0.5 * terms["words"] + 0.5 * terms["values"] + terms["clear"]
    return loss, {name: float(term.detach()) for name, term in terms.items()}


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
