import resource
import time

import pytest
import torch

from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.config import PurificationConfig
from tests import oracles_freecp as oracle
from tests.class_purification.scenes import Scene, make_scene, make_texts


def large_scene(classes: int) -> Scene:
    names = [f"class {k}" for k in range(classes)]
    texts = make_texts(names, torch.Generator().manual_seed(0), 512, nulls=150, spread=1.0)
    return make_scene(texts, images=8, windows=4, grid=(14, 14), objects=4, noise=0.7)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [150, 1200])
def test_a_batch_takes_a_tenth_of_the_processor_time_of_one_window_at_a_time(classes: int) -> None:
    scene = large_scene(classes)
    config = PurificationConfig(thresholds="fixed", variant="released", ambiguity=False)
    purifier = ClassPurifier(config, scene.texts, "none")
    numbers = config.numbers(classes, scene.texts.logit_scale)
    batched = []
    for _ in range(4):
        start = time.process_time()
        purifier.purify(scene.batch)
        batched.append((time.process_time() - start) / 32)
    start = time.process_time()
    for window in range(3):
        oracle.purify_unit(
            scene.batch.features[[window]].double().numpy(),
            scene.batch.attention[[window]].double().numpy(),
            scene.texts.phrase_embeddings.double().numpy(),
            scene.texts.phrase_class.tolist(),
            classes,
            scene.batch.placement.grid,
            scale=numbers.score_scale,
            redundancy=numbers.redundancy,
            ambiguity=numbers.ambiguity,
        )
    looped = (time.process_time() - start) / 3
    print(f"{classes} classes: loop {1e3 * looped:.1f} ms, batch {1e3 * min(batched):.2f} ms a window")
    assert looped > 10 * min(batched)


@pytest.mark.slow
def test_five_thousand_phrases_do_not_need_their_full_score_maps() -> None:
    scene = large_scene(5000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = ClassPurifier(PurificationConfig(), scene.texts, "none").purify(scene.batch)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"5000 phrases: {grown:.0f} MiB more")
    assert found.kept.places < 200
    assert grown < 2 * 32 * 5000 * 196 * 4 / 2**20
