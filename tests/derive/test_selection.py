import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import cli
from ovss_core.errors import ConfigError, OutputMismatchError, StorageError
from ovss_core.results import Confidence
from pipelines.derive.options import DeriveOptions, SelectOptions
from pipelines.derive.selection import Selection, balanced, best_floors
from pipelines.derive.units import run_task, stable_share
from pipelines.label.masks import decode_mask
from pipelines.label.reader import open_labels
from pipelines.run.record import write_run
from pipelines.storage import Folder
from tests.derive.plain import run_here, ten_labels, write_labels
from tests.pipelines.faulty_storage import use_faulty_storage
from tests.pipelines.test_crash_points import Clock, Killed
from tests.pipelines.test_dataset_card import VOCABULARY, segmentation


def select(tmp_path: Path, **wanted: object) -> dict[str, np.ndarray]:
    """Select of `tmp_path`/labels, and return the masks by id."""
    output = tmp_path / "out"
    shutil.rmtree(output, ignore_errors=True)
    summary = run_here(tmp_path / "labels", Selection(SelectOptions(**wanted)), output)  # type: ignore[arg-type]
    assert summary["rows"] == summary["written"] + summary["left_out"] == 10
    if not summary["written"]:
        return {}
    masks = {row["image_id"]: decode_mask(row["mask"]) for row in open_labels(str(output)).rows()}
    assert len(masks) == summary["written"]
    return masks


def test_unsure_pixels_lose_their_label_and_the_classes_are_counted_anew(tmp_path: Path) -> None:
    _, results = ten_labels(tmp_path / "labels")
    masks = select(tmp_path, min_confidence=0.5)
    for row in open_labels(str(tmp_path / "out")).rows():
        result = results[row["image_id"]]
        assert result.confidence is not None
        assert result.confidence.margins is not None
        expected = np.where(result.confidence.margins < 127.5, 255, result.label_map)
        assert np.array_equal(masks[row["image_id"]], expected)
        assert {entry["index"]: entry["pixels"] for entry in row["present"]} == {
            index: int((expected == index).sum()) for index in np.unique(expected) if index != 255
        }
        assert row["ignored"] == pytest.approx(float((expected == 255).mean()))
        assert row["words"] == [entry["name"] for entry in row["present"]]


def test_the_best_share_of_each_class_keeps_its_labels(tmp_path: Path) -> None:
    _, results = ten_labels(tmp_path / "labels")
    masks = select(tmp_path, best_share=0.25)
    every = np.stack([result.label_map for result in results.values()])
    margins = np.stack([result.confidence.margins for result in results.values()])  # type: ignore[misc, union-attr]
    kept = np.stack(list(masks.values()))
    for index in (1, 2):
        mine = every == index
        floor = margins[kept == index].min()
        assert (kept == index).sum() >= 0.25 * mine.sum() > (mine & (margins > floor)).sum()
        assert np.array_equal(kept == index, mine & (margins >= floor))


def test_a_floor_of_a_class_that_never_occurs_takes_nothing() -> None:
    counts = np.zeros((2, 256), np.int64)
    counts[1, 10], counts[1, 200] = 3, 1
    assert best_floors(counts, 0.25) == [0, 200]
    assert best_floors(counts, 0.26) == [0, 10]
    assert best_floors(counts, 1.0) == [0, 10]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, range(10)),
        ({"words": ("sky",)}, ()),
        ({"words": ("sky", "<b>grass</b>")}, range(10)),
        ({"words": ("Zebra-Größe",), "min_share": 0.6}, ()),
        ({"without": ("<b>grass</b>",)}, ()),
        ({"min_words": 3}, ()),
        ({"max_words": 1}, ()),
        ({"min_margin": 0.5, "min_score": 0.75, "min_sure": 0.25}, range(10)),
        ({"min_sure": 0.26}, ()),
        ({"max_ignored": 0.1}, ()),
        ({"max_ignored": 0.125}, range(10)),
    ],
)
def test_images_are_chosen_by_what_their_rows_say(
    tmp_path: Path, wanted: dict[str, object], names: range
) -> None:
    ten_labels(tmp_path / "labels")
    assert set(select(tmp_path, **wanted)) == {f"{number:02d}.jpg" for number in names}


def test_images_are_chosen_by_how_far_hosts_agree(tmp_path: Path) -> None:
    results = {
        f"{number:02d}.jpg": replace(segmentation(number), facts={"disagreement": number / 10})
        for number in range(10)
    }
    results["09.jpg"] = segmentation(9)  # of a run that began before there was such a column
    write_labels(tmp_path / "labels", results)
    assert set(select(tmp_path, max_disagreement=0.25)) == {"00.jpg", "01.jpg", "02.jpg"}
    assert len(select(tmp_path, max_disagreement=1.0, count=5)) == 5
    (tmp_path / "labels/run.json").write_text(json.dumps({"identity": {"config": {"host": "sfp"}}}))
    with pytest.raises(ConfigError, match="was labelled by one host, so that nothing disagrees"):
        select(tmp_path, max_disagreement=0.5)


def test_images_are_drawn_by_a_chance_that_follows_from_their_ids(tmp_path: Path) -> None:
    ten_labels(tmp_path / "labels")
    four, seven = set(select(tmp_path, count=4)), set(select(tmp_path, count=7))
    assert (len(four), len(seven)) == (4, 7)
    assert four < seven
    assert set(select(tmp_path, count=4, seed=1)) != four == set(select(tmp_path, count=4))
    shares = [stable_share(f"image {number}") for number in range(4000)]
    assert np.histogram(shares, 4, (0, 1))[0].min() > 900


def test_drawing_by_class_takes_rare_classes_first_come_first_served(tmp_path: Path) -> None:
    assert balanced([["a"], ["a"], ["a", "b"], ["b"], ["a"]], [4, 0, 1, 2, 3], 2) == [4, 0, 2, 3]
    ten_labels(tmp_path / "labels")
    assert len(select(tmp_path, per_class=3)) == 3


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_selection_that_dies_at_any_operation_is_ended_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)
    ten_labels(tmp_path / "labels")
    wanted = Selection(SelectOptions(best_share=0.5, count=9))
    expected = run_here(tmp_path / "labels", wanted, tmp_path / "whole")
    deadly = 1
    while True:
        output = tmp_path / f"{deadly}"
        with monkeypatch.context() as patch:
            use_faulty_storage(patch, output, clock := Clock(deadly))
            with suppress(Killed):
                run_here(tmp_path / "labels", wanted, output)
        if not clock.dead:
            break
        assert run_here(tmp_path / "labels", wanted, output) == expected
        for path in (tmp_path / "whole").rglob("*.parquet"):
            assert (output / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
        deadly += step
    assert deadly > 10


def test_a_file_that_is_gone_is_written_again_and_another_choice_is_refused(tmp_path: Path) -> None:
    ten_labels(tmp_path / "labels")
    wanted = Selection(SelectOptions(min_confidence=0.5))
    first = run_here(tmp_path / "labels", wanted, tmp_path / "out")
    path = tmp_path / "out/labels/labels-00001.parquet"
    whole = path.read_bytes()
    path.unlink()
    assert run_here(tmp_path / "labels", wanted, tmp_path / "out") == first
    assert path.read_bytes() == whole
    other = Selection(SelectOptions(min_confidence=0.6))
    with pytest.raises(OutputMismatchError, match=r"selection\.min_confidence was 0\.5, is now 0\.6"):
        run_here(tmp_path / "labels", other, tmp_path / "out")
    run_here(tmp_path / "labels", other, tmp_path / "out", overwrite=True)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["identity"]["selection"]["min_confidence"] == 0.6


def test_a_broken_mask_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    result = segmentation(1)
    small = replace(result, confidence=Confidence(0.5, 0.5, 0.5, 0.0, np.zeros((2, 2), np.uint8)))
    write_labels(tmp_path / "labels", {"good.jpg": result, "bad.jpg": small})
    summary = run_here(tmp_path / "labels", Selection(SelectOptions(min_confidence=0.1)), tmp_path / "out")
    assert (summary["written"], summary["failed"]) == (1, 1)


def test_what_the_labels_cannot_give_is_refused_in_one_line(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels", {"a.jpg": segmentation(1)}, confidence="image")
    for wanted, message in (
        ({"min_confidence": 0.1}, "no confidence for each pixel; label with --confidence pixel"),
        ({"words": ("dog",)}, "no class 'dog' in"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_here(tmp_path / "labels", Selection(SelectOptions(**wanted)), tmp_path / "out")
    typed = VOCABULARY.names[1] + "x"
    with pytest.raises(ConfigError, match=f"no class '{typed}' in .*; did you mean {VOCABULARY.names[1]}\\?"):
        run_here(tmp_path / "labels", Selection(SelectOptions(words=(typed,))), tmp_path / "out")
    with pytest.raises(ConfigError, match="--min-share is the share of --words"):
        SelectOptions(min_share=0.5)
    with pytest.raises(ConfigError, match="--best-share is 50; give a number from 0 to 1"):
        SelectOptions(best_share=50)


@pytest.mark.parametrize("overwrite", [False, True])
def test_labels_are_not_written_over_by_what_is_made_of_them(tmp_path: Path, overwrite: bool) -> None:
    labels, _ = ten_labels(tmp_path / "labels")
    for output in (tmp_path / "labels", tmp_path / "labels/sure", tmp_path):
        with pytest.raises(ConfigError, match="lies inside"):
            run_task(
                labels.folder.uri, Selection(SelectOptions()), DeriveOptions(str(output), overwrite=overwrite)
            )
    write_run(Folder(str(tmp_path / "other")), {"job": "label"}, {})
    with pytest.raises(OutputMismatchError, match="other holds what ovss label left; give another --output"):
        run_task(
            labels.folder.uri,
            Selection(SelectOptions()),
            DeriveOptions(str(tmp_path / "other"), overwrite=overwrite),
        )
    with pytest.raises(StorageError, match="labels/labels; give the folder above it"):
        open_labels(f"{labels.folder.uri}/labels")


def test_the_command_selects_in_tasks_and_says_how_many(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ten_labels(tmp_path / "labels")
    flags = f"select --labels {tmp_path}/labels --output {tmp_path}/out --words {VOCABULARY.names[1]},sky --count 6"
    assert cli.main(flags.split()) == 0
    assert "10 images: 6 selected, 4 left out, 0 failed" in capsys.readouterr().out
    assert len(open_labels(f"{tmp_path}/out")) == 6
