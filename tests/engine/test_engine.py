from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ovss_core.class_purification.room import Room
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.clip.positions import Resampling
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.clip.weights import load_clip
from ovss_core.config import (
    Background,
    LabelConfig,
    PurificationConfig,
    PurificationVariant,
    SegmenterConfig,
    WindowConfig,
)
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.finite import raise_first
from ovss_core.engine.proposal import Decisions, Proposals
from ovss_core.errors import ConfigError, ImageError, ModelError
from ovss_core.head_names import clip_hosts
from ovss_core.images.resize import normalize, resize_image
from ovss_core.images.windows import WindowLayout
from ovss_core.results import Segmentation
from tests import oracles
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config, tiny_text

SIZES = [(1, 1), (1, 300), (37, 512), (20, 20), (60, 80), (45, 33)]
PICTURES = [random_picture(height, width) for height, width in SIZES]
WITH_BACKGROUND = ["background: wall, floor", *WORDS]
METHODS = {
    "none": PurificationConfig("none"),
    **{
        f"{variant} {thresholds}": PurificationConfig(
            variant=variant,
            thresholds=thresholds,
            crop_size=16,
            redundancy_threshold=0.05,
            ambiguity_threshold=0.3,
        )
        for variant in ("image", "filter", "released", "paper")
        for thresholds in ("distractors", "fixed")
    },
}


def _engine(config: SegmenterConfig | None = None, lines: list[str] = WORDS) -> SegmentationEngine:
    return SegmentationEngine(config or tiny_config(), tiny_clip(), tiny_text(lines))


def _assert_sound(result: Segmentation, size: tuple[int, int], names: list[str]) -> None:
    assert result.label_map.shape == size
    assert result.label_map.dtype == np.uint8
    assert result.label_map.max() < len(names)
    assert sum(entry.share for entry in result.present) == pytest.approx(1)
    assert sum(entry.pixels for entry in result.present) == size[0] * size[1]
    assert [entry.index for entry in result.present] == np.unique(result.label_map).tolist()
    for entry in result.present:
        assert entry.name == names[entry.index]
        assert entry.pixels == (result.label_map == entry.index).sum()
        assert 0 <= entry.confidence <= 1 + 1e-5
    for group in result.groups:
        assert len(group.classes) >= 2
        for box in group.boxes:
            assert box.winner is None or box.winner in group.classes
            assert 0 <= box.x0 <= size[1]
            assert 0 <= box.y1 <= size[0]


@pytest.mark.parametrize(
    ("host", "method"),
    [
        *((host, method) for host in clip_hosts() for method in ("none", "image distractors")),
        *(
            pytest.param(host, method, marks=() if host in ("sfp", "cliper") else pytest.mark.slow)
            for host in clip_hosts()
            for method in ("filter fixed", "released fixed", "paper fixed")
        ),
    ],
)
def test_every_host_and_method_labels_pictures_of_any_size(host: str, method: str) -> None:
    engine = _engine(tiny_config(host, METHODS[method]), WITH_BACKGROUND)
    for result, size in zip(engine.segment(PICTURES), SIZES, strict=True):
        _assert_sound(result, size, engine.text.vocabulary.names)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("background", ["auto", "none", "first_class"])
def test_every_background_policy_accounts_for_every_class(method: str, background: Background) -> None:
    config = tiny_config(purification=METHODS[method], labels=LabelConfig(background=background))
    engine = _engine(config, WITH_BACKGROUND)
    for result, size in zip(engine.segment(PICTURES), SIZES, strict=True):
        _assert_sound(result, size, engine.text.vocabulary.names)
        kept, removed = ({entry.index for entry in entries} for entries in (result.kept, result.removed))
        present = {entry.index for entry in result.present}
        assert not kept & removed
        if method != "none":
            assert (kept | removed) - {0} == set(range(1, 7))
            assert present - {0} <= kept
        if background == "none":
            assert 0 not in present


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ambiguity", [True, False])
@pytest.mark.parametrize("redundancy", [True, False])
def test_each_part_of_purification_can_be_left_out(method: str, redundancy: bool, ambiguity: bool) -> None:
    purification = replace(METHODS[method], redundancy=redundancy, ambiguity=ambiguity)
    engine = _engine(tiny_config(purification=purification))
    assert engine.config.purification.needs_crops is (method != "none" and ambiguity)
    for result, size in zip(engine.segment(PICTURES), SIZES, strict=True):
        _assert_sound(result, size, engine.text.vocabulary.names)
        assert ambiguity or not result.groups


def test_these_pictures_do_have_removed_classes_and_decided_regions() -> None:
    results = _engine(tiny_config(purification=METHODS["image fixed"])).segment(PICTURES)
    assert any(result.removed for result in results)
    assert any(box.winner is not None for result in results for group in result.groups for box in group.boxes)


def _assert_alike(first: Segmentation, second: Segmentation) -> None:
    assert [entry.index for entry in first.kept] == [entry.index for entry in second.kept]
    assert [group.classes for group in first.groups] == [group.classes for group in second.groups]
    assert (first.label_map != second.label_map).mean() <= 0.002


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_each_picture_what_it_gets_alone(method: str) -> None:
    engine = _engine(tiny_config(purification=METHODS[method]), WITH_BACKGROUND)
    for picture, result in zip(PICTURES, engine.segment(PICTURES), strict=True):
        _assert_alike(result, engine.segment([picture])[0])


@pytest.mark.parametrize("method", ["none", "image distractors", "released fixed"])
def test_the_number_of_windows_at_once_changes_rounding_only(method: str) -> None:
    results = [
        _engine(tiny_config(purification=METHODS[method], window_batch=batch)).segment(PICTURES)
        for batch in (1, 3, 64)
    ]
    for one, other in pairwise(results):
        for first, second in zip(one, other, strict=True):
            _assert_alike(first, second)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_proposals_sent_as_rows_are_finished_to_the_same_labels(method: str) -> None:
    engine = _engine(tiny_config(purification=METHODS[method]), WITH_BACKGROUND)
    expected = engine.segment(PICTURES)
    for wave in engine.gather(PICTURES):
        rows = engine.propose(wave).wait().to_rows()
        for order in (range(len(rows)), reversed(range(len(rows)))):
            for place in [list(order)]:
                sent = engine.proposals_of_rows([rows[position] for position in place])
                for position, result in zip(place, raise_first(engine.finish(sent)), strict=True):
                    wanted = expected[wave.places[position]]
                    assert np.array_equal(result.label_map, wanted.label_map)
                    assert [entry.pixels for entry in result.present] == [
                        entry.pixels for entry in wanted.present
                    ]
                    assert result.groups == wanted.groups
                    assert str(result.kept) == str(
                        wanted.kept
                    )  # nan, the background's score, is not equal to itself


@pytest.mark.parametrize("size", [(30, 40), (45, 33), (9, 70)])
def test_without_purification_the_labels_are_the_hosts_own(size: tuple[int, int]) -> None:
    config = tiny_config("naclip", PurificationConfig("none"))
    engine, picture = _engine(config), random_picture(*size, seed=4)
    resized = resize_image(picture, 48, 160, 8)
    layout = WindowLayout.of(resized.shape[0], resized.shape[1], config.windows)
    encoder, head = ImageEncoder(tiny_clip().model.visual), build_head("naclip", HeadOptions())
    windows = normalize(torch.from_numpy(layout.cut(resized)))
    features = head.features(encoder, encoder.trace(windows, head.request(4))).double().numpy()
    phrases = engine.text.phrase_embeddings.double().numpy()
    rows, columns = (side // 8 for side in layout.window_size)
    cosines = np.stack([oracles.unit_rows(window) @ phrases.T for window in features])
    maps = cosines.transpose(2, 0, 1).reshape(len(phrases), len(layout), rows, columns)
    stitched = np.stack(
        [oracles.stitch(m, layout.origins, layout.window_size, layout.image_size, size) for m in maps]
    )
    classes = engine.text.vocabulary.phrase_class.tolist()
    expected, _ = oracles.label_pixels(stitched, classes, 6, scale=40.0)
    result = engine.segment([picture])[0]
    assert (result.label_map != expected).mean() <= 0.002
    assert (result.kept, result.removed, result.groups) == ((), (), ())


def _permuted(lines: list[str], order: list[int]) -> list[str]:
    return [lines[index] for index in order]


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_classes_permutes_the_labels(method: str) -> None:
    order = [3, 0, 5, 6, 1, 4, 2]
    config = tiny_config(purification=METHODS[method])
    results = _engine(config, WITH_BACKGROUND).segment(PICTURES)
    others = _engine(config, _permuted(WITH_BACKGROUND, order)).segment(PICTURES)
    for first, second in zip(results, others, strict=True):
        assert (first.label_map != np.array(order)[second.label_map]).mean() <= 0.002
        assert {entry.name for entry in first.kept} == {entry.name for entry in second.kept}


@pytest.mark.parametrize("method", ["none", "image distractors", "released fixed", "paper fixed"])
def test_a_vocabulary_of_one_class_labels_everything_with_it(method: str) -> None:
    for result, size in zip(
        _engine(tiny_config(purification=METHODS[method]), ["thing"]).segment(PICTURES), SIZES, strict=True
    ):
        _assert_sound(result, size, ["thing"])


@pytest.mark.parametrize("phrases", [30, 5000])
def test_more_phrases_than_dimensions_are_kept_as_features_and_get_the_same_labels(phrases: int) -> None:
    lines = [f"class {k}: " + ", ".join(f"phrase {k} {i}" for i in range(5)) for k in range(phrases // 5)]
    engine = _engine(tiny_config(purification=PurificationConfig("none")), lines)
    [wave] = engine.gather([random_picture(30, 40)])
    proposals = engine.propose(wave).wait()
    assert not proposals.scored
    scored = replace(proposals, maps=engine.text.phrase_embeddings @ proposals.maps, scored=True)
    [kept], [direct] = (raise_first(engine.finish(found)) for found in (proposals, scored))
    assert np.array_equal(kept.label_map, direct.label_map)
    assert kept.label_map.dtype == (np.uint8 if phrases == 30 else np.uint16)


@pytest.mark.parametrize("variant", ["image", "released"])
def test_chunks_of_the_vocabulary_change_nothing(variant: PurificationVariant) -> None:
    lines = [f"class {k}" for k in range(40)]
    whole, chunked = (
        _engine(
            tiny_config(purification=PurificationConfig(variant=variant, phrase_chunk=chunk, crop_size=16)),
            lines,
        )
        for chunk in (512, 7)
    )
    for first, second in zip(whole.segment(PICTURES), chunked.segment(PICTURES), strict=True):
        _assert_alike(first, second)


@pytest.mark.parametrize("variant", ["image", "released", "paper"])
def test_an_image_that_keeps_nothing_is_all_background(variant: PurificationVariant) -> None:
    strict = PurificationConfig(
        variant=variant, thresholds="fixed", redundancy_threshold=1.0, ambiguity_threshold=0.3, crop_size=16
    )
    labels = LabelConfig(background="residual")
    engine = _engine(tiny_config(purification=strict, labels=labels), WITH_BACKGROUND)
    for picture, result in zip(PICTURES, engine.segment(PICTURES), strict=True):
        assert result.label_map.shape == picture.shape[:2]
        assert not result.label_map.any()
        assert not len(result.kept)
    [(_, proposals)] = engine.propose_all(engine.gather(PICTURES[:1]))
    [again] = raise_first(engine.finish(engine.proposals_of_rows(proposals.to_rows())))
    assert not again.label_map.any()


def test_pictures_smaller_than_a_window_get_one_window() -> None:
    config = replace(tiny_config(), windows=WindowConfig(size=64, stride=32, short_side=40, long_side=160))
    engine = _engine(config)
    [wave] = engine.gather([random_picture(20, 20)])
    proposals = engine.propose(wave).wait()
    assert proposals.layouts[0].image_size == (40, 40)
    assert proposals.maps.shape[::2] == (1, 25)
    _assert_sound(raise_first(engine.finish(proposals))[0], (20, 20), engine.text.vocabulary.names)


def test_prepared_pictures_give_what_pictures_give() -> None:
    engine = _engine()
    prepared = [engine.prepare(picture) for picture in PICTURES]
    for first, second in zip(engine.segment(prepared), engine.segment(PICTURES), strict=True):
        assert np.array_equal(first.label_map, second.label_map)


def test_nothing_in_nothing_out() -> None:
    engine = _engine()
    assert engine.segment([]) == []
    assert list(engine.gather([])) == []


def test_timings_name_the_stages_and_start_anew_when_taken() -> None:
    engine = _engine()
    engine.segment(PICTURES[:2])
    taken = engine.take_timings()
    stages = {"resize", "windows", "encoder", "dense_head", "purification", "crops", "finish"}
    assert set(taken) == stages
    assert all(seconds >= 0 for seconds in taken.values())
    assert sum(taken.values()) > 0
    assert engine.take_timings() == {}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["none", "image distractors"])
def test_low_precision_labels_most_pixels_alike(precision: str, method: str) -> None:
    config = tiny_config("clearclip", METHODS[method])
    low = SegmenterConfig.from_dict(
        {**config.to_dict(), "model": {**config.to_dict()["model"], "precision": precision}}
    )
    for result, expected in zip(
        _engine(low).segment(PICTURES), _engine(config).segment(PICTURES), strict=True
    ):
        assert result.label_map.shape == expected.label_map.shape
        assert all(np.isfinite(entry.confidence) for entry in result.present)
        if method == "none":
            assert (result.label_map == expected.label_map).mean() > 0.8


@pytest.mark.parametrize(
    ("config", "lines", "message"),
    [
        (tiny_config("unknown"), WORDS, "unknown host 'unknown'"),
        (
            tiny_config(labels=LabelConfig(background="residual")),
            WORDS,
            'vocabulary has no class "background"',
        ),
        (tiny_config(labels=LabelConfig(background="first_class")), WORDS, 'set labels.background to "none"'),
        (
            tiny_config(purification=PurificationConfig("none"), labels=LabelConfig(background="residual")),
            WITH_BACKGROUND,
            "needs purification",
        ),
        (tiny_config(labels=LabelConfig(background="none")), ["background: sky"], "no other class"),
        (
            replace(tiny_config(), windows=WindowConfig(size=7, stride=4)),
            WORDS,
            "smaller than the model's patches",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_engine_is_built(
    config: SegmenterConfig, lines: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _engine(config, lines)


def test_a_resnet_is_refused_when_the_engine_is_built_from_its_name() -> None:
    config = tiny_config()
    with pytest.raises(ModelError, match="ResNet"):
        SegmentationEngine(config, load_clip(replace(config.model, name="RN50")), tiny_text(WORDS))


def test_an_engine_for_another_vocabulary_refuses_what_needs_a_tower_of_its_own() -> None:
    engine = _engine()
    with pytest.raises(ConfigError, match="build an engine of its own"):
        engine.with_vocabulary(engine.text, tiny_config(purification=PurificationConfig("none")))
    with pytest.raises(ConfigError, match="build an engine of its own"):
        engine.with_vocabulary(engine.text, tiny_config("clearclip"))
    looser = replace(engine.config, purification=replace(engine.config.purification, redundancy=False))
    assert engine.with_vocabulary(engine.text, looser).segment(PICTURES[:1])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
@pytest.mark.parametrize("room", [Room(), Room(classes=1, groups=1, boxes=1, regions=1)])
def test_fixed_room_labels_as_counting_does_and_too_little_is_made_good(method: str, room: Room) -> None:
    engine = _engine(tiny_config(purification=METHODS[method]), WITH_BACKGROUND)
    for wave in engine.gather(PICTURES):
        encoded = engine.encode(wave)
        fixed, counted = (
            engine.propose_encoded(wave, encoded, given_room).wait() for given_room in (room, None)
        )
        for first, second in zip(
            *(raise_first(engine.finish(found)) for found in (fixed, counted)), strict=True
        ):
            assert np.array_equal(first.label_map, second.label_map)
            assert first.groups == second.groups
            assert [entry.index for entry in first.kept] == [entry.index for entry in second.kept]


@pytest.mark.parametrize(("host", "resampling"), [("gem", "antialias"), ("sfp", "scale"), ("clip", "scale")])
def test_crops_are_encoded_with_the_heads_own_positions(host: str, resampling: Resampling) -> None:
    engine = _engine(tiny_config(host, PurificationConfig(crop_size=16)))
    crops = torch.from_numpy(np.stack([random_picture(16, 16, seed) for seed in range(60)]))
    descriptions = engine.text.description_embeddings
    other: Resampling = "scale" if resampling == "antialias" else "antialias"
    nearest = {}
    for rule in (resampling, other):
        features = torch.nn.functional.normalize(
            engine.encoder.class_features(normalize(crops), rule), dim=-1
        )
        nearest[rule] = (features @ descriptions.T).argmax(1).tolist()
    count, words = len(crops), np.arange(len(WORDS))
    regions = AmbiguousRegions(
        np.zeros(count, np.int64),
        np.full(count, -1),
        np.arange(count),
        np.array([[0, 0, 16, 16]] * count),
        np.tile(words, (count, 1)),
    )
    layout = WindowLayout.of(32, 32, engine.config.windows)
    decisions = Decisions(np.zeros((1, len(words)), np.float32), words[None], regions)
    proposals = Proposals(
        ((32, 32),), (layout,), torch.zeros(1, len(words), 16), decisions=decisions, crops=crops
    )
    winners, _ = engine.finisher.winners(proposals)
    assert winners.tolist() == nearest[resampling]
    assert nearest[resampling] != nearest[other]


def _poison(engine: SegmentationEngine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Let the image tower fail on white windows."""
    trace = engine.encoder.trace

    def poisoned(windows: torch.Tensor, request: TraceRequest) -> EncoderTrace:
        found = trace(windows, request)
        found.tokens[windows.amin((1, 2, 3)) > 1.7] = value
        return found

    monkeypatch.setattr(engine.encoder, "trace", poisoned)


@pytest.mark.parametrize("method", ["none", "image distractors", "released fixed"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_cost_their_own_image_alone(
    method: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tiny_config("clip", METHODS[method]))
    white = np.full((60, 80, 3), 255, np.uint8)
    pictures = [PICTURES[4], white, PICTURES[5], white]
    expected = engine.segment([PICTURES[4], PICTURES[5]])
    _poison(engine, monkeypatch, value)
    outcomes = engine.segment_each(pictures)
    assert [isinstance(outcome, ImageError) for outcome in outcomes] == [False, True, False, True]
    assert "features of its windows are not finite" in str(outcomes[1])
    for result, other in zip(outcomes[::2], expected, strict=True):
        assert isinstance(result, Segmentation)
        _assert_alike(result, other)
    with pytest.raises(ImageError, match="not finite"):
        engine.segment(pictures)
    assert all(isinstance(outcome, ImageError) for outcome in engine.segment_each([white, white]))


@pytest.mark.parametrize("method", ["none", "image distractors"])
def test_features_of_zeros_are_no_features(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(tiny_config("clip", METHODS[method]))
    monkeypatch.setattr(
        engine.heads[0], "features", lambda encoder, trace: torch.full((len(trace.tokens), 16, 24), 1e30)
    )
    with pytest.raises(ImageError, match="not finite"):
        engine.segment([PICTURES[4]])


def test_crops_and_scores_that_are_not_finite_cost_their_own_image_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = _engine(tiny_config(purification=METHODS["image fixed"], window_batch=64))
    pictures = [random_picture(60, 80, seed) for seed in range(12)]
    [wave] = engine.gather(pictures)
    proposals = engine.propose(wave).wait()
    expected = engine.finish(proposals)
    assert proposals.decisions is not None
    regions = proposals.decisions.regions
    with_crops = regions.image[regions.has_area].tolist()
    first = with_crops[0]
    second = next(place for place in range(len(pictures)) if place not in with_crops)
    encode = engine.encoder.class_features

    def poisoned(windows: torch.Tensor, resampling: Resampling) -> torch.Tensor:
        features = encode(windows, resampling)
        features[0] = torch.nan
        return features

    monkeypatch.setattr(engine.encoder, "class_features", poisoned)
    maps = proposals.maps.clone()
    maps[proposals.windows_of(slice(second, second + 1))] = torch.nan
    results = engine.finish(replace(proposals, maps=maps))
    assert "features of its ambiguous regions are not finite" in str(results[first])
    assert "scores are not finite" in str(results[second])
    for place in range(len(pictures)):
        if place not in (first, second):
            result, other = results[place], expected[place]
            assert isinstance(result, Segmentation)
            assert isinstance(other, Segmentation)
            np.testing.assert_array_equal(result.label_map, other.label_map)
