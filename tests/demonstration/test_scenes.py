import hashlib
import random

import numpy as np
import pytest

from ovss_core.vocabulary import Vocabulary
from pipelines.demonstration.scenes import describe, render_scene
from pipelines.demonstration.scenes.captions import class_shares
from pipelines.demonstration.words import ABSENT_WORDS, CLASS_NAMES, DISTRACTORS, SYNONYMS

SEEDS = range(900, 912)


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("size", [64, 336])
def test_the_same_seed_draws_the_same_bytes(size: int) -> None:
    first, again, other = render_scene(7, size), render_scene(7, size), render_scene(8, size)
    assert digest(first.image, first.labels) == digest(again.image, again.labels)
    assert first.caption == again.caption
    assert digest(first.image) != digest(other.image)


def test_drawing_one_scene_does_not_change_the_next() -> None:
    alone = render_scene(21, 96)
    for seed in SEEDS:
        render_scene(seed, 96)
    assert digest(render_scene(21, 96).image) == digest(alone.image)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_pixel_has_a_class_of_the_vocabulary_and_the_caption_names_exactly_those(seed: int) -> None:
    scene = render_scene(seed, 224)
    assert scene.image.shape == (224, 224, 3)
    assert scene.image.dtype == scene.labels.dtype == np.uint8
    assert scene.labels.max() < len(CLASS_NAMES)
    drawn = {CLASS_NAMES[index] for index in np.unique(scene.labels)}
    assert set(scene.classes) == drawn
    words = set(scene.caption.replace(",", " ").split())
    assert drawn <= words
    assert not (set(CLASS_NAMES) - drawn) & words


def test_classes_are_listed_from_the_largest_to_the_smallest() -> None:
    scene = render_scene(3, 224)
    areas = [int((scene.labels == CLASS_NAMES.index(name)).sum()) for name in scene.classes]
    assert areas == sorted(areas, reverse=True)


def test_every_class_is_drawn_within_a_few_hundred_scenes() -> None:
    seen: set[int] = set()
    for seed in range(200):
        seen |= set(np.unique(render_scene(seed, 64).labels).tolist())
    assert seen == set(range(len(CLASS_NAMES)))


def test_color_alone_does_not_tell_the_waters_apart() -> None:
    """The mean colors of sea, river and lake overlap: no class lies outside the others' range."""
    colors: dict[str, list[np.ndarray]] = {"sea": [], "river": [], "lake": []}
    for seed in range(120):
        scene = render_scene(seed, 64)
        for name, found in colors.items():
            inside = scene.labels == CLASS_NAMES.index(name)
            if inside.sum() > 100:
                found.append(scene.image[inside].mean(0))
    for found in colors.values():
        others = np.concatenate([np.stack(rest) for rest in colors.values() if rest is not found])
        inside = (np.stack(found) >= others.min(0)) & (np.stack(found) <= others.max(0))
        assert inside.all(1).mean() > 0.7


def test_impossible_sizes_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        render_scene(0, 16)
    with pytest.raises(ValueError, match="at least 0"):
        render_scene(-1)


def test_a_caption_names_the_largest_class_first_and_leaves_small_ones_out() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:6], labels[9, 9] = CLASS_NAMES.index("sea"), CLASS_NAMES.index("boat")
    caption = describe(class_shares(labels), random.Random(0), least_share=0.02, synonyms=False)
    assert "sea and sky" in caption
    assert "boat" not in caption


def test_the_shipped_vocabulary_is_the_list_of_classes() -> None:
    assert tuple(Vocabulary.load("demo").names) == CLASS_NAMES
    assert len(CLASS_NAMES) >= 40


def test_absent_words_are_as_many_as_classes_and_never_read_in_training() -> None:
    trained = {*CLASS_NAMES, *DISTRACTORS, *(phrase for phrases in SYNONYMS.values() for phrase in phrases)}
    assert len(set(ABSENT_WORDS)) == len(CLASS_NAMES)
    assert not trained & set(ABSENT_WORDS)
    assert len(trained) == len(CLASS_NAMES) + len(DISTRACTORS) + sum(map(len, SYNONYMS.values()))
