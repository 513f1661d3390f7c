import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import (
    compare_refiners,
    label_folder,
    label_one_image,
    own_ray_data,
    train_on_masks,
    train_student,
)
from ovss_core.images.decode import decode_image
from pipelines.run.options import PoolOptions
from tests.conftest import encode_image

WORDS = "background,tree,house"
ONE_POOL = PoolOptions(actors=1, finish_actors=0, batch_size=4, torch_threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one of them in a folder below, and a file that is none."""
    folder = tmp_path_factory.mktemp("examples") / "images"
    (folder / "below").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encode_image(0))
    (folder / "below/b.jpg").write_bytes(encode_image(1, 40, 30))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def output(ray_session: None, images: Path) -> Path:
    """What the folder's script leaves behind."""
    place = images.parent / "out"
    summary = label_folder.main(str(images), WORDS, str(place), "demo", pools=ONE_POOL)
    assert (summary["images"], summary["labelled"], summary["failed"]) == (3, 2, 1)
    return place


def test_one_image_is_labelled_at_its_own_size_and_its_classes_are_printed(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = label_one_image.main(str(images / "a.jpg"), WORDS, "demo")
    assert result.label_map.shape == (24, 32)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("a.jpg: 32 x 24 pixels")
    assert len(printed) == 1 + len(np.unique(result.label_map))


def test_an_image_lies_beside_its_labels_with_each_refiner(images: Path, tmp_path: Path) -> None:
    sheet = np.asarray(
        compare_refiners.main(str(images / "a.jpg"), WORDS, str(tmp_path / "sheet.png"), "demo")
    )
    panels = np.split(sheet[compare_refiners.HEADING :], 4, 1)
    np.testing.assert_array_equal(panels[0], decode_image((images / "a.jpg").read_bytes(), 10_000))
    assert [panel.shape for panel in panels] == [(24, 32, 3)] * 4
    assert not np.array_equal(panels[1], panels[2])


def test_a_folder_is_labelled_by_the_python_call_of_the_job(output: Path) -> None:
    assert {path.name for path in output.iterdir()} >= {"labels", "_failures", "run.json", "summary.json"}
    [start] = json.loads((output / "run.json").read_text())["starts"]
    assert start["weights_license"] == {"name": "Apache-2.0", "commercial_use": True}


def test_both_stages_and_one_between_them_label_inside_somebody_elses_pipeline_and_no_row_is_lost(
    ray_session: None, images: Path
) -> None:
    rows = {
        Path(row["path"]).name: row["classes"]
        for row in own_ray_data.main(str(images), WORDS, "tree,house", "demo")
    }
    assert rows.keys() == {"a.jpg", "b.jpg", "broken.jpg"}
    assert set(rows["a.jpg"].split(", ")) <= set(WORDS.split(","))
    assert "image" in rows["broken.jpg"]


def test_masks_are_read_beside_their_images_and_unsure_classes_are_ignored(
    output: Path, images: Path
) -> None:
    pairs = list(train_on_masks.LabelledImages(str(images), str(output)))
    assert sorted(tuple(pixels.shape[1:]) for pixels, _ in pairs) == [(24, 32), (40, 30)]
    assert all(pixels.shape[1:] == classes.shape for pixels, classes in pairs)
    assert all(classes.min() >= 0 and classes.max() < 3 for _, classes in pairs)
    unsure = train_on_masks.LabelledImages(str(images), str(output), least_confidence=2.0)
    assert all(torch.all(classes == train_on_masks.IGNORED) for _, classes in unsure)
    assert train_on_masks.main(str(images), str(output)) == 2


def test_the_students_measure_sums_counts_over_images_and_passes_over_what_has_no_label() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]], [[1, 1, 1, 255]]])
    labels = torch.tensor([[[0, 1, 1, 1]], [[1, 1, 0, 0]]])
    # class 0: 1 of 3 pixels, class 1: 4 of 6; class 2 occurs nowhere
    assert train_student.mean_iou(labels, truth, 3) == pytest.approx(100 * (1 / 3 + 4 / 6) / 2)


def test_a_student_learns_from_the_labelled_pixels_alone() -> None:
    pixels = torch.randint(0, 256, (8, 3, 1, 1), dtype=torch.uint8).expand(8, 3, 16, 16).clone()
    labels = (pixels[:, 0] > 127).long()
    labels[:, :8] = 255  # half of each picture teaches nothing, and is not taken for a class
    student = train_student.train(pixels, labels, 2, 255, steps=60)
    predicted = train_student.predict(student, pixels)
    assert (predicted == (pixels[:, 0] > 127)).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four labelling runs, seven selections and eight students
def test_a_student_of_pseudo_labels_beats_one_class_everywhere_and_the_table_is_printed(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = train_student.main(str(tmp_path / "student"), "48", "16", "100")
    floor = table.pop("one class everywhere")
    students, teachers = (
        [name for name in table if name.startswith(kind)] for kind in ("student", "teacher")
    )
    assert (len(students), len(teachers)) == (8, 2)
    assert all(value > floor for value in table.values())
    printed = capsys.readouterr().out
    assert all(f"| {name} | {value:.1f} |" in printed for name, value in table.items())
    shares = dict(re.findall(r"^(student.*): .* images, (\d+)% of their pixels$", printed, re.MULTILINE))
    assert shares.keys() == set(students)
    assert (
        int(shares["student of sfp,naclip, both"]) < int(shares["student of sfp,naclip, hosts agree"]) == 100
    )
