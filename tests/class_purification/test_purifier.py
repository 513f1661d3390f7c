from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from ovss_core.class_purification.class_maps import WindowBatch
from ovss_core.class_purification.placement import Placement
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.class_purification.room import Room
from ovss_core.config import BackgroundPolicy, Consistency, PurificationConfig, PurificationVariant
from tests import oracles_freecp as oracle
from tests.class_purification.scenes import (
    PATCH,
    Found,
    Scene,
    Texts,
    by_image,
    make_scene,
    make_texts,
    placed_anew,
    single,
)

SYNONYMS = ["sky, cloud", "cat", "dog, puppy, hound", "tree", "car, auto", "boat", "lamp", "chair"]
VARIANTS: list[PurificationVariant] = ["image", "released", "paper"]


def scene_of(lines: list[str], images: int = 3, windows: int = 2, seed: int = 0, noise: float = 0.9) -> Scene:
    texts = make_texts(lines, torch.Generator().manual_seed(seed))
    return make_scene(texts, images, windows, (5, 6), objects=min(3, len(lines)), noise=noise, seed=seed)


def config(variant: PurificationVariant = "image", **changes: object) -> PurificationConfig:
    base = PurificationConfig(
        variant=variant,
        thresholds="fixed",
        redundancy_threshold=0.1,
        ambiguity_threshold=0.7,
        score_scale=20.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def purify(
    scene: Scene,
    settings: PurificationConfig,
    background: BackgroundPolicy = "none",
    batch: WindowBatch | None = None,
) -> list[Found]:
    chosen = batch or scene.batch
    return by_image(ClassPurifier(settings, scene.texts, background).purify(chosen), chosen)


def purify_slowly(scene: Scene, windows: list[int], settings: PurificationConfig) -> oracle.Purified:
    numbers = settings.numbers(len(scene.texts.vocabulary), scene.texts.logit_scale)
    return oracle.purify_unit(
        scene.batch.features[windows].double().numpy(),
        scene.batch.attention[windows].double().numpy(),
        scene.texts.phrase_embeddings.double().numpy(),
        scene.texts.phrase_class.tolist(),
        len(scene.texts.vocabulary),
        scene.batch.placement.grid,
        scale=numbers.score_scale,
        redundancy=numbers.redundancy if settings.redundancy else 0.0,
        ambiguity=numbers.ambiguity,
        box_threshold=settings.box_threshold,
        consistency=settings.consistency if settings.variant == "paper" else None,
    )


def assert_same(found: Found, expected: Found) -> None:
    assert torch.equal(found.kept, expected.kept)
    assert found.groups == expected.groups
    torch.testing.assert_close(found.scores, expected.scores, equal_nan=True, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.maps, expected.maps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2])
def test_an_image_is_purified_as_the_formulas_say(seed: int, threshold: float) -> None:
    scene = scene_of(SYNONYMS, seed=seed)
    settings = config(redundancy_threshold=threshold, ambiguity_threshold=0.3)
    for image, found in enumerate(purify(scene, settings)):
        windows = [2 * image, 2 * image + 1]
        expected = purify_slowly(scene, windows, settings)
        assert found.kept.tolist() == expected.kept
        assert_allclose(found.scores[found.kept], expected.scores[expected.kept], atol=1e-5)
        maps = expected.refined[:, expected.kept].swapaxes(0, 1).reshape(found.maps.shape)
        assert_allclose(found.maps, maps, atol=2e-5)
        assert [group.classes for group in found.groups] == expected.groups
        assert (found.scores.numpy() >= expected.scores - 1e-5).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("variant", "consistency", "threshold"),
    [("released", "probability", 0.1), ("paper", "probability", 0.1), ("paper", "normalized", 0.5)],
)
def test_every_window_is_purified_by_itself_as_the_formulas_say(
    seed: int, variant: PurificationVariant, consistency: Consistency, threshold: float
) -> None:
    scene = scene_of(SYNONYMS, seed=seed)
    settings = config(
        variant, consistency=consistency, redundancy_threshold=threshold, ambiguity_threshold=0.3
    )
    for image, found in enumerate(purify(scene, settings)):
        groups = []
        for window in range(2):
            expected = purify_slowly(scene, [2 * image + window], settings)
            alive = found.maps[:, window].flatten(1).any(1)
            assert found.kept[alive].tolist() == expected.kept
            assert_allclose(
                found.maps[alive, window].flatten(1), expected.refined[0, expected.kept], atol=2e-5
            )
            groups += [(group, window, _pixel_boxes(expected, group, variant)) for group in expected.groups]
        assert [(group.classes, group.window, set(group.boxes)) for group in found.groups] == groups


def _pixel_boxes(expected: oracle.Purified, group: tuple[int, ...], variant: str) -> set[oracle.Box]:
    mean = np.mean([expected.refined[0, k] for k in group], axis=0).reshape(5, 6)
    boxes = oracle.boxes(oracle.region(mean, 0.4), holes=variant == "released")
    return {(x0 * PATCH, y0 * PATCH, x1 * PATCH, y1 * PATCH) for x0, y0, x1, y1 in boxes}


def test_an_images_boxes_lie_on_its_own_lattice_and_reach_its_edge() -> None:
    scene = scene_of(SYNONYMS, seed=1)
    settings = config(redundancy_threshold=0.0, ambiguity_threshold=0.05)
    found = purify(scene, settings)[0]
    expected = purify_slowly(scene, [0, 1], settings)
    assert found.groups
    origins = list(scene.origins[:2])
    for group in found.groups:
        mean = expected.refined[:, list(group.classes)].mean(1).reshape(2, 5, 6)
        lattice = oracle.lattice_mean(
            mean, origins, scene.batch.placement.window_size, scene.batch.placement.image_sizes[0], PATCH
        )
        boxes = oracle.boxes(oracle.region(lattice, 0.4), exclude_last=False)
        assert set(group.boxes) == {(x * 16, y * 16, u * 16, v * 16) for x, y, u, v in boxes}


@pytest.mark.parametrize("seed", range(3))
def test_an_image_of_one_window_keeps_what_the_released_form_keeps(seed: int) -> None:
    scene = scene_of(SYNONYMS, windows=1, seed=seed)
    image = purify(scene, config("image", ambiguity_threshold=0.3))
    released = purify(scene, config("released", ambiguity_threshold=0.3))
    for ours, theirs in zip(image, released, strict=True):
        assert torch.equal(ours.kept, theirs.kept)
        torch.testing.assert_close(ours.scores, theirs.scores)
        torch.testing.assert_close(ours.maps, theirs.maps)
        assert [group.classes for group in ours.groups] == [group.classes for group in theirs.groups]


@pytest.mark.parametrize("thresholds", ["fixed", "distractors"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_images_is_purified_as_each_image_alone(
    variant: PurificationVariant, thresholds: str
) -> None:
    scene = scene_of(SYNONYMS, images=4, windows=3)
    settings = config(variant, thresholds=thresholds, ambiguity_threshold=0.3)
    for image, found in enumerate(purify(scene, settings)):
        (alone,) = purify(scene, settings, batch=single(scene.batch, image, scene.origins))
        assert_same(found, alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_of_different_size_share_a_batch(variant: PurificationVariant) -> None:
    scene = scene_of(SYNONYMS, images=1, windows=4)
    origins = ((0, 0), (0, 0), (0, 48), (3, 90))
    place = Placement.of((1, 3), origins, ((80, 96), (83, 186)), (5, 6), PATCH, (80, 96))
    batch = replace(scene.batch, placement=place)
    settings = config(variant, ambiguity_threshold=0.2)
    for image, found in enumerate(purify(scene, settings, batch=batch)):
        (alone,) = purify(scene, settings, batch=single(batch, image, origins))
        assert_same(found, alone)
        assert found.maps.shape[1] == [1, 3][image]


@pytest.mark.parametrize("thresholds", ["fixed", "distractors"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_another_order_of_classes_only_reorders_the_result(
    variant: PurificationVariant, thresholds: str
) -> None:
    scene = scene_of(SYNONYMS)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    phrases = np.concatenate([np.flatnonzero(scene.texts.phrase_class == k) for k in order])
    vocabulary = type(scene.texts.vocabulary).from_names([SYNONYMS[k] for k in order])
    shuffled = Texts(
        vocabulary,
        scene.texts.phrase_embeddings[phrases],
        vocabulary.phrase_class,
        scene.texts.null_embeddings,
    )
    settings = config(variant, thresholds=thresholds, ambiguity_threshold=0.3)
    for plain, moved in zip(
        purify(scene, settings), purify(replace(scene, texts=shuffled), settings), strict=True
    ):
        torch.testing.assert_close(moved.scores, plain.scores[order], atol=1e-6, rtol=1e-4)
        back = [order[k] for k in moved.kept.tolist()]
        assert sorted(back) == plain.kept.tolist()
        torch.testing.assert_close(moved.maps[np.argsort(back)], plain.maps, atol=1e-5, rtol=1e-4)
        named = {
            (tuple(sorted(order[k] for k in g.classes)), g.window, frozenset(g.boxes)) for g in moved.groups
        }
        assert named == {(g.classes, g.window, frozenset(g.boxes)) for g in plain.groups}


@pytest.mark.parametrize("thresholds", ["fixed", "distractors"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_phrases_scored_in_chunks_decide_the_same(
    variant: PurificationVariant, thresholds: str, chunk: int
) -> None:
    lines = [f"thing {k}, item {k}" if k % 3 == 0 else f"thing {k}" for k in range(60)]
    scene = scene_of(lines, images=2)
    whole = purify(scene, config(variant, thresholds=thresholds, ambiguity_threshold=0.3))
    parts = purify(scene, config(variant, thresholds=thresholds, ambiguity_threshold=0.3, phrase_chunk=chunk))
    for ours, theirs in zip(parts, whole, strict=True):
        assert_same(ours, theirs)


def test_without_redundancy_every_class_with_a_region_is_kept() -> None:
    scene = scene_of(SYNONYMS)
    for found in purify(scene, config(redundancy=False, redundancy_threshold=0.4)):
        assert found.kept.tolist() == (found.scores > 0).nonzero()[:, 0].tolist()
        assert found.maps.flatten(1).any(1).all()


def test_without_ambiguity_there_are_no_groups() -> None:
    scene = scene_of(SYNONYMS)
    assert any(found.groups for found in purify(scene, config(ambiguity_threshold=0.05)))
    assert not any(found.groups for found in purify(scene, config(ambiguity_threshold=0.05, ambiguity=False)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vocabulary_of_one_class_gives_no_nan(variant: PurificationVariant) -> None:
    for found in purify(scene_of(["cat"]), config(variant)):
        assert found.kept.tolist() == [0]
        assert found.maps.isfinite().all()
        assert found.scores.isfinite().all()


@pytest.mark.parametrize("thresholds", ["fixed", "distractors"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_that_is_zero_everywhere_or_in_a_column_gives_no_nan(
    variant: PurificationVariant, thresholds: str
) -> None:
    scene = scene_of(SYNONYMS)
    attention = scene.batch.attention.clone()
    attention[0] = 0
    attention[1:, :, 4] = 0
    for found in purify(
        scene, config(variant, thresholds=thresholds), batch=replace(scene.batch, attention=attention)
    ):
        assert found.maps.isfinite().all()
        assert found.scores.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_may_be_removed(variant: PurificationVariant) -> None:
    scene = scene_of(SYNONYMS)
    for found in purify(scene, config(variant, redundancy_threshold=1.0)):
        assert found.kept.tolist() == []
        assert found.maps.shape == (0, 2, 5, 6)
        assert found.groups == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_automatic_thresholds_leave_every_image_a_class(variant: PurificationVariant) -> None:
    texts = make_texts(SYNONYMS, torch.Generator().manual_seed(0))
    strong = replace(texts, null_embeddings=texts.phrase_embeddings[[1, 3, 5, 6]])
    scene = make_scene(strong, 4, 2, (5, 6), noise=1.5)
    for found in purify(scene, config(variant, thresholds="distractors")):
        assert len(found.kept) >= 1


def test_background_phrases_compete_but_are_not_kept() -> None:
    lines = ["background: sky, wall", *SYNONYMS[1:]]
    scene = scene_of(lines)
    for policy in ("none", "residual"):
        for found in purify(scene, config(redundancy=False), policy):
            assert 0 not in found.kept.tolist()
            assert found.scores[0].isnan()
    without = replace(
        scene,
        texts=Texts(
            scene.texts.vocabulary,
            scene.texts.phrase_embeddings[2:],
            scene.texts.phrase_class[2:],
            scene.texts.null_embeddings,
        ),
    )
    with_background = torch.stack([found.scores[1:] for found in purify(scene, config(redundancy=False))])
    alone = torch.stack([found.scores[1:] for found in purify(without, config(redundancy=False))])
    assert not torch.allclose(with_background, alone)


def test_a_background_without_phrases_is_fine() -> None:
    scene = scene_of(["background:", *SYNONYMS[1:]])
    for policy in ("none", "residual", "first_class"):
        for found in purify(scene, config(), policy):
            assert 0 not in found.kept.tolist()
            assert found.scores[0].isnan()


def test_a_first_class_background_is_always_kept_and_never_ambiguous() -> None:
    scene = scene_of(["background: sky, wall", *SYNONYMS[1:]])
    found = purify(scene, config(redundancy_threshold=1.0, ambiguity_threshold=0.0), "first_class")
    assert any(0 in image.kept.tolist() for image in found)
    assert all(set(image.kept.tolist()) <= {0} for image in found)
    loose = purify(scene, config(redundancy_threshold=0.0, ambiguity_threshold=0.0), "first_class")
    assert any(image.groups for image in loose)
    assert all(0 not in group.classes for image in loose for group in image.groups)


def test_removed_classes_report_at_most_the_threshold() -> None:
    scene = scene_of(SYNONYMS)
    for found in purify(scene, config(redundancy_threshold=0.15)):
        removed = torch.ones(8, dtype=torch.bool).index_fill_(0, found.kept, False)
        assert (found.scores[removed] <= 0.15).all()
        assert (found.scores[found.kept] > 0.15).all()


def test_features_in_half_precision_are_scored_in_float32() -> None:
    scene = scene_of(SYNONYMS)
    half = replace(
        scene.batch, features=scene.batch.features.bfloat16(), attention=scene.batch.attention.half()
    )
    for found in purify(scene, config(), batch=half):
        assert found.maps.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize("thresholds", ["fixed", "distractors"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [5, 512])
def test_fixed_room_gives_what_counting_gives(
    variant: PurificationVariant, thresholds: str, chunk: int
) -> None:
    scene = scene_of(SYNONYMS, images=3, windows=2, seed=2)
    batch = placed_anew(scene.batch, (1, 3, 2), ((80, 96), (94, 110), (87, 103)))
    settings = config(variant, thresholds=thresholds, ambiguity_threshold=0.2, phrase_chunk=chunk)
    purifier = ClassPurifier(settings, scene.texts, "none")
    counted, fixed = purifier.purify(batch), purifier.purify(batch, Room(classes=8, groups=4, boxes=30))
    assert counted.complete
    assert fixed.complete
    assert fixed.kept.places == 8
    for ours, theirs in zip(by_image(fixed, batch), by_image(counted, batch), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [3, 512])
def test_too_little_room_is_said(variant: PurificationVariant, chunk: int) -> None:
    scene = scene_of(SYNONYMS)
    settings = config(variant, redundancy_threshold=0.0, ambiguity_threshold=0.05, phrase_chunk=chunk)
    purifier = ClassPurifier(settings, scene.texts, "none")
    assert purifier.purify(scene.batch, Room(8, 8, 30)).complete
    assert not purifier.purify(scene.batch, Room(1, 8, 30)).complete
    most_boxes = int(purifier.purify(scene.batch).groups.used.sum(2).max())
    assert bool(purifier.purify(scene.batch, Room(8, 8, 1)).complete) is (most_boxes == 1)
    assert most_boxes > 1 or variant == "image"
