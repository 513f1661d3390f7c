import pytest
import torch

from ovss_core.class_purification.null import keep_one, load_distractors, most_likely, null_threshold
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.config import PurificationConfig
from tests.class_purification.scenes import by_image, make_scene, make_texts


def test_at_least_a_hundred_distractors_are_shipped_once_each() -> None:
    nouns = load_distractors()
    assert len(nouns) >= 100
    assert len(set(nouns)) == len(nouns)
    assert all(noun == noun.lower().strip() for noun in nouns)


def test_a_distractor_that_shares_a_word_with_the_vocabulary_is_left_out() -> None:
    every = load_distractors()
    left = load_distractors(["a submarine", "Harpoons", "weather"])
    assert {"submarine", "harpoon", "weather vane"} == set(every) - set(left)


def test_without_distractors_the_floor_is_the_threshold() -> None:
    assert null_threshold(torch.zeros(3, 0, dtype=torch.float64), 20, 0.5, 0.15).tolist() == [0.15] * 3


def test_the_threshold_rises_with_the_vocabulary_and_the_null() -> None:
    null = torch.rand(1, 150, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2 * 0.2
    null = torch.cat([null, 1.5 * null])
    by_size = torch.stack([null_threshold(null, classes, 0.5, 0.0) for classes in (5, 20, 60, 150, 1200)])
    assert (by_size.diff(dim=0) >= 0).all()
    assert (by_size[:, 1] > by_size[:, 0]).all()
    assert (by_size < 0.5).all()


@pytest.mark.parametrize("classes", [20, 60, 150, 1200])
@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_about_one_class_an_image_passes_where_all_are_as_foreign_as_the_distractors(
    classes: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(classes)
    normal = torch.randn(300, 150 + classes, dtype=torch.float64, generator=generator)
    scores = torch.sigmoid(spread * normal - 3) / 2
    threshold = null_threshold(scores[:, :150], classes, 0.5, 0.0)
    assert 0.5 < (scores[:, 150:] > threshold[:, None]).sum(1).double().mean().item() < 2


def test_a_few_distractors_that_are_in_the_image_raise_the_threshold_little() -> None:
    normal = torch.randn(1, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    null = torch.sigmoid(normal - 3) / 2
    contaminated = null.clone()
    contaminated[:, :2] = 0.45
    clean, dirty = (null_threshold(scores, 60, 0.5, 0.0).item() for scores in (null, contaminated))
    assert clean < dirty < 1.3 * clean


def test_few_distractors_with_a_score_raise_the_threshold_and_never_lower_it() -> None:
    null = torch.zeros(1, 149, dtype=torch.float64)
    thresholds: list[float] = []
    for score in (0.0, 0.3, 0.25, 0.2, 0.15):
        null[:, len(thresholds)] = score
        thresholds.append(null_threshold(null, 1200, 0.5, 0.05).item())
    assert thresholds[0] == 0.05
    assert thresholds[1:] == [0.3] * 4
    by_size = [null_threshold(null, classes, 0.5, 0.02).item() for classes in (20, 44, 60, 100, 1044)]
    assert by_size == [0.02, 0.15, 0.2, 0.25, 0.3]


def test_no_more_distractors_pass_than_the_vocabulary_allows_where_few_have_a_score() -> None:
    generator = torch.Generator().manual_seed(0)
    null = torch.rand(20, 149, dtype=torch.float64, generator=generator) * 0.4
    null[:, 15:] = 0
    for classes in (20, 60, 1200):
        threshold = null_threshold(null, classes, 0.5, 0.0)
        assert ((null > threshold[:, None]).sum(1) <= 149 / classes).all()


@pytest.mark.parametrize("distractors", [1, 2, 5, 30])
def test_few_distractors_still_give_a_finite_threshold(distractors: int) -> None:
    null = torch.linspace(0.01, 0.1, distractors, dtype=torch.float64)[None]
    assert 0 < null_threshold(null, 20, 0.5, 0.05).item() < 0.5


def test_an_image_that_lost_all_classes_gets_its_most_likely_one_back() -> None:
    peaks = torch.tensor([[0.2, 0.5, 0.0], [0.9, 0.1, 0.0]])
    images = Units.of((1, 1))
    likely = most_likely(peaks, images)
    assert likely.tolist() == [[False, True, False], [True, False, False]]
    kept = torch.tensor([[False, False, True], [False, False, False]])
    assert keep_one(kept, likely, images).tolist() == [[False, False, True], [True, False, False]]
    assert keep_one(kept, likely, Units.of((2,))).tolist() == kept.tolist()


@pytest.mark.parametrize("classes", [20, 60, 150, 1200])
def test_one_rule_finds_the_classes_of_an_image_in_vocabularies_of_every_size(classes: int) -> None:
    texts = make_texts(
        [f"class {k}" for k in range(classes)], torch.Generator().manual_seed(0), 256, nulls=140, spread=0.8
    )
    scene = make_scene(texts, images=6, windows=2, grid=(10, 10), objects=4, noise=0.8, seed=classes)
    found = ClassPurifier(PurificationConfig(thresholds="distractors"), texts, "none").purify(scene.batch)
    kept = [set(image.kept.tolist()) for image in by_image(found, scene.batch)]
    right = sum(len(ours & truth) for ours, truth in zip(kept, scene.present, strict=True))
    assert right / sum(map(len, scene.present)) > 0.75
    assert right / sum(map(len, kept)) > 0.6
