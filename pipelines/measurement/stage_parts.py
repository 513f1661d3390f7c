"""The parts of stages that the engine runs as one, each to be timed alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from ovss_core.class_purification.affinity import balance
from ovss_core.class_purification.batch import PurificationInput, Units
from ovss_core.class_purification.redundancy import refine
from ovss_core.inference.proposal import Proposal, PurifiedClasses
from ovss_core.inference.stitching import Stitcher
from torch import Tensor

from ovss_core.class_purification.evidence import (
    PhraseScores,
    SoftmaxStatistics,
    active_pairs,
    class_maximum,
    class_peaks,
    collect_rows,
    plan_chunks,
    softmax_statistics,
)
from ovss_core.config import PurificationConfig
from ovss_core.encoders.text_encoder import TextClassifier
from ovss_core.engine.engine import SegmentationEngine

SCORES, REFINEMENT = "vocabulary scores and softmax", "refinement"


def purification_parts(batch: PurificationInput, text: TextClassifier) -> dict[str, Callable[[], object]]:
    """Return scoring, and the refinement of every class with a region, for a vocabulary of one chunk."""
    config = PurificationConfig()
    units = Units(batch.image_index, len(batch.image_sizes))
    chunks = plan_chunks(np.asarray(text.phrase_class), config.phrase_chunk)
    embeddings = text.phrase_embeddings.to(batch.features.device)

    def score() -> tuple[PhraseScores, SoftmaxStatistics]:
        scores = PhraseScores(batch.features, embeddings, config.score_scale, chunks)
        return scores, softmax_statistics(scores, units)

    scores, statistics = score()
    [(chunk, values)] = scores
    log_probability = class_maximum(values, chunk).sub_(statistics.log_total)
    active = active_pairs(class_peaks(log_probability, units), statistics)
    rows = collect_rows(log_probability, active, statistics, units)
    return {
        SCORES: score,
        REFINEMENT: lambda: refine(rows, balance(batch.attention), batch.grid, config.box_threshold),
    }


def stitching_part(engine: SegmentationEngine, proposals: Sequence[Proposal]) -> Callable[[], object]:
    """Return the stitching of all kept maps at the images' sizes."""
    work = [kept_maps(engine, proposal) for proposal in proposals]
    tiled = [(stitcher, stitcher.side_by_side(maps)) for stitcher, maps in work]
    return lambda: [stitcher.stitch(maps) for stitcher, maps in tiled]


def kept_maps(
    engine: SegmentationEngine, proposal: Proposal
) -> tuple[Stitcher, Float[Tensor, "kept windows rows columns"]]:
    """Return an image's stitcher and the maps of its kept classes, on the engine's device."""
    assert isinstance(proposal.content, PurifiedClasses)
    return engine.resolver.stitcher(proposal), torch.from_numpy(proposal.content.maps).to(engine.device)
