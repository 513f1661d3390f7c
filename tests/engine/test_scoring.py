"""Scoring heads and the class prior run through the engine as every head does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovss_core.class_purification.evidence import PhraseScores, plan_chunks
from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import (
    ClipSurgeryConfig,
    CliptraseConfig,
    PurificationConfig,
    ResClipConfig,
    SegmenterConfig,
)
from ovss_core.dense_heads.scoring import ScoringHead
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError
from ovss_core.evaluation.oracle import Oracle, restrict
from ovss_core.images.resize import normalize
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

LINES = ["background: sky", "cat", "dog, puppy", "grass", "sofa"]
NONE = PurificationConfig(method="none", crop_size=16)
FREECP = PurificationConfig(thresholds="distractors", crop_size=16)
PICTURES = [random_picture(60, 80, 1), random_picture(50, 50, 2), random_picture(20, 140, 3)]
CASES = {
    "cliper": tiny_config("cliper", NONE),
    "cliper under FreeCP": tiny_config("cliper", FREECP),
    "cliptrase": replace(tiny_config("cliptrase", NONE), cliptrase=CliptraseConfig(True, 0.5, 2)),
    "cliptrase under FreeCP": replace(
        tiny_config("cliptrase", FREECP), cliptrase=CliptraseConfig(True, 0.5, 2)
    ),
    "surgery": replace(tiny_config("clipsurgery", NONE), clipsurgery=ClipSurgeryConfig(True)),
    "surgery under FreeCP": replace(tiny_config("clipsurgery", FREECP), clipsurgery=ClipSurgeryConfig(True)),
    "resclip": replace(tiny_config("resclip", NONE), resclip=ResClipConfig(feedback=True)),
    "resclip under FreeCP": replace(tiny_config("resclip", FREECP), resclip=ResClipConfig(feedback=True)),
    "prior": replace(tiny_config("clearclip", NONE), class_prior=0.3),
    "prior under FreeCP": replace(tiny_config("clearclip", FREECP), class_prior=0.3),
    "cliper with a prior": replace(tiny_config("cliper", NONE), class_prior=0.3),
    "cliper with a prior under FreeCP": replace(tiny_config("cliper", FREECP), class_prior=0.3),
}


def _engine(config: SegmenterConfig) -> SegmentationEngine:
    return SegmentationEngine(config, tiny_clip(), tiny_text(LINES))


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_batch_gives_what_its_images_give_alone(config: SegmenterConfig) -> None:
    engine = _engine(config)
    for one, picture in zip(engine.segment(PICTURES), PICTURES, strict=True):
        [alone] = engine.segment([picture])
        assert (one.label_map != alone.label_map).mean() < 1e-3
        assert [entry.index for entry in one.kept] == [entry.index for entry in alone.kept]


def test_variants_of_scoring_heads_and_priors_share_the_tower_and_label_as_alone() -> None:
    engines = [_engine(config) for config in [*CASES.values(), tiny_config("clearclip", NONE)]]
    for engine, shared in zip(engines, VariantEngines(engines).segment(PICTURES), strict=True):
        for one, other in zip(engine.segment(PICTURES), shared, strict=True):
            assert (one.label_map != other.label_map).mean() < 1e-3


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_an_image_taken_out_of_its_wave_is_labelled_as_within_it(config: SegmenterConfig) -> None:
    engine = _engine(config)
    [waves] = VariantEngines([engine]).encode(PICTURES[:2])
    for wave in waves:
        for position, within in enumerate(wave.segment(engine)):
            [alone] = wave.single(position, engine).segment(engine)
            assert (alone.label_map != within.label_map).mean() < 1e-3


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_the_present_words_alone_are_scored_anew_from_what_was_kept(config: SegmenterConfig) -> None:
    engine, text = _engine(config), tiny_text(LINES)
    [[wave]] = VariantEngines([engine]).encode(PICTURES[:1])
    label_map = Oracle(engine).label_map(wave, [1, 3])
    assert set(np.unique(label_map)) <= {0, 1, 3}
    if config.purification.active:
        return
    fresh = SegmentationEngine(config, tiny_clip(), restrict(text, [0, 1, 3]))
    [expected] = fresh.segment(PICTURES[:1])
    assert (np.array([0, 1, 3])[expected.label_map] != label_map).mean() < 1e-3


def test_the_prior_is_a_share_of_the_whole_images_cosine_in_every_score() -> None:
    config = CASES["prior"]
    plain, engine = _engine(replace(config, class_prior=0.0)), _engine(config)
    [[_, before]], [[wave, after]] = (
        list(made.propose_all(made.gather(PICTURES[:1]))) for made in (plain, engine)
    )
    [[height, width]] = wave.placement.image_sizes
    resized = torch.from_numpy(engine.prepare(PICTURES[0]).pixels).permute(2, 0, 1)[None].float()
    squeezed = F.interpolate(resized, (32, 32), mode="bilinear").round()
    assert resized.shape[2:] == (height, width)
    pixels = normalize(squeezed[0].permute(1, 2, 0)[None].to(torch.uint8), *engine.normalization)
    whole = F.normalize(ImageEncoder(tiny_clip().model.visual).class_features(pixels), dim=-1)
    prior = (whole @ tiny_text(LINES).phrase_embeddings.T)[0]
    expected = 0.7 * before.maps + 0.3 * prior[None, :, None]
    assert torch.allclose(after.maps, expected, atol=1e-4)


def test_without_a_prior_no_image_is_encoded_as_a_whole() -> None:
    engine = _engine(tiny_config("clearclip", NONE))
    [wave] = engine.gather(PICTURES[:1])
    kept = engine.encode(wave)
    assert kept.whole is None
    assert kept.evidence is None


def test_freecp_sees_a_scoring_heads_shares_and_that_of_each_distractor_joining_alone() -> None:
    engine = _engine(CASES["cliper under FreeCP"])
    [wave] = engine.gather(PICTURES[:1])
    kept = engine.encode(wave)
    assert isinstance(engine.scoring_head, ScoringHead)
    tables = engine.scorer.tables(wave, kept)
    assert tables is not None
    logits = engine.scorer.logits(wave, kept, torch.ones(len(wave.pixels), dtype=torch.bool), tables)
    assert logits is not None
    shares = (tables.phrases / tables.phrases.sum(1, keepdim=True)).transpose(0, 1)
    assert torch.allclose(logits[0].softmax(0), shares, atol=1e-5)
    assert logits[1].shape == (20, *logits[0].shape[1:])


def test_given_scores_take_the_place_of_cosines_chunk_by_chunk() -> None:
    table = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    chunks = plan_chunks(np.array([0, 0, 1, 2, 3, 3]), 3)
    for chunk, scores in PhraseScores(torch.zeros(2, 5, 4), torch.zeros(6, 4), 100.0, chunks, table):
        assert torch.equal(scores, table[chunk.phrases])


def test_an_engine_without_the_whole_image_cannot_serve_a_prior() -> None:
    engine = _engine(tiny_config("clearclip", NONE))
    with pytest.raises(ConfigError, match="build an engine of its own"):
        engine.with_vocabulary(tiny_text(LINES), replace(engine.config, class_prior=0.2))
    other = _engine(CASES["prior"])
    assert other.with_vocabulary(tiny_text(LINES), replace(other.config, class_prior=0.1)).segment(
        PICTURES[:1]
    )
    with pytest.raises(ConfigError, match=r"class_prior is 1\.2; give a number from 0 to 1"):
        SegmenterConfig(class_prior=1.2)
