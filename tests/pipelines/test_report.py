import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import cli
from ovss_core.vocabulary import Vocabulary
from pipelines.label.palette import LEAST_DISTANCE, class_colors, distinct_colors
from pipelines.label.reader import open_labels
from pipelines.label.report.figures import read_figures
from pipelines.label.report.gallery import MOST_BYTES, place_names
from pipelines.label.report.page import report_afterwards, write_report
from pipelines.label.table import label_table
from pipelines.run.fragments import write_fragment
from pipelines.run.manifest import prepare_manifest
from pipelines.run.manifest_files import read_part
from pipelines.run.publish import publish
from pipelines.run.record import write_run
from pipelines.run.schema import FAILURES
from pipelines.run.sink import FAILED, merge_part
from pipelines.sources import FolderSource
from pipelines.storage import Folder
from tests.derive.plain import write_labels
from tests.label_rows import label_row
from tests.pipelines.test_dataset_card import VOCABULARY, segmentation

ImageFolder = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def finished(images: Path, failed: int = 2) -> Folder:
    """Leave behind what a run does whose last images could not be labelled."""
    output, source = Folder(str(images.parent / "out")), FolderSource(str(images))
    manifest = prepare_manifest(output, source, 4)
    table, rows = label_table(VOCABULARY, "pixel"), 0
    write_run(output, {"config": {"host": "sfp"}, "vocabulary": []}, {})
    for number, part in enumerate(manifest.parts):
        good, bad = [], []
        for row in read_part(output, part).to_pylist():
            names = {"image_id": row["image_id"], "uri": row["uri"]}
            if rows < manifest.images - failed:
                good.append(names | label_row(segmentation(rows)))
            else:
                reason = f"line {rows} of '<i>{rows}</i>' is broken"
                bad.append(names | {"stage": "decode", "error_type": "ImageError", "reason": reason})
            rows += 1
        tables = {
            "labels": pa.Table.from_pylist(good, table.schemas["labels"]),
            FAILED: pa.Table.from_pylist(bad, FAILURES),
        }
        write_fragment(output, part, tables, {})
        merge_part(output.uri, part, table)
        if good:
            publish(output.uri, "labels", table.schema, number, {part: len(good)})
    return output


def page_of(output: Folder) -> str:
    return output.read("_report/index.html").decode()


@pytest.fixture
def report(image_folder: ImageFolder) -> tuple[Folder, str]:
    output = finished(image_folder(10))
    write_report(output, images=3)
    return output, page_of(output)


def test_the_page_says_what_the_rows_say(report: tuple[Folder, str]) -> None:
    output, page = report
    rows = pq.read_table(Path(output.path) / "labels").to_pylist()
    for name in VOCABULARY.names:
        images = sum(name in row["words"] for row in rows)
        if images:
            assert re.search(
                rf"</span>{re.escape(escape(name))}</td><td class=\"number\">{images}</td>", page
            )
    assert not re.search(r"margin (\d\.\d\d)<br>\s*margin", page), "said once"
    assert page.count("&lt;i&gt;") > 0
    assert "<i>8</i>" not in page, "what comes from outside is text"
    groups = re.findall(r'<td class="number">(\d+)</td><td>decode</td>', page)
    assert groups == ["2"], "reasons that differ in numbers and names alone are one"


def test_the_numbers_of_markers_and_of_all_rows_are_the_same(report: tuple[Folder, str]) -> None:
    output, _ = report
    labels = open_labels(output.uri)
    marked, sample = read_figures(output, labels, 1000)
    assert len(sample.places) == marked.counted == 8
    output.remove_folder("_done")
    read, _ = read_figures(output, labels, 1000)
    assert read.statistics == marked.statistics
    assert (read.counted, marked.parts != {}, read.parts) == (8, True, {})


def test_pictures_are_inside_the_page_and_small(report: tuple[Folder, str]) -> None:
    _, page = report
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    assert len(found) == page.count("<img ") > 0
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs nothing beside itself"
    for kind, text in found:
        data = base64.b64decode(text)
        assert len(data) <= MOST_BYTES
        assert Image.open(io.BytesIO(data)).format == kind.upper()


def test_noise_still_fits(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "00.png")
    result = segmentation(0)
    label_map = np.random.default_rng(0).integers(0, 3, (900, 1200)).astype(np.uint8)
    noisy = type(result)(label_map, result.present)
    write_labels(tmp_path / "out", {"00.png": noisy}, addresses={"00.png": str(tmp_path / "00.png")})
    write_report(Folder(str(tmp_path / "out")))
    found = re.findall(r";base64,([^\"]+)\"", page_of(Folder(str(tmp_path / "out"))))
    assert len(found) == 2 * 3, "among the least sure, the rarest and by chance"
    assert max(len(base64.b64decode(text)) for text in found) <= MOST_BYTES


def test_a_selection_and_images_that_are_gone_have_a_page_as_well(tmp_path: Path) -> None:
    write_labels(tmp_path / "out", {f"{number}.jpg": segmentation(number) for number in range(5)})
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    page = page_of(Folder(str(tmp_path / "out")))
    assert "The picture cannot be shown" in page
    assert "Least sure" in page


def test_a_run_without_labels_shows_its_failures(image_folder: ImageFolder) -> None:
    output = finished(image_folder(3), failed=3)
    assert write_report(output) == {"rows": 0, "read": 0, "pictures": 0}
    assert "No image has a label" in page_of(output)
    assert page_of(output).count("<div><b>") == 3


def test_there_is_no_report_on_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no labels under" in capsys.readouterr().err
    report_afterwards(Folder(str(tmp_path)))  # a run that is finished stays so


def test_classes_can_be_told_apart_by_their_colors() -> None:
    colors = distinct_colors()[:150].astype(float)
    apart = np.sqrt(((colors[:, None] - colors[None]) ** 2).sum(-1))
    assert apart[~np.eye(150, dtype=bool)].min() >= LEAST_DISTANCE
    many = class_colors(Vocabulary.from_names([f"class {number}" for number in range(700)]))
    assert many.shape == (700, 3)


def test_names_stand_inside_their_regions_and_not_on_one_another() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[:, 60:] = 1
    mask[30:40, 70:110] = 2
    mask[0, 0] = 2  # too small for a name
    present = [{"index": index, "name": name} for index, name in enumerate(("sky", "grass", "cat"))]
    names = place_names(mask, present, distinct_colors())
    assert [entry["name"] for entry in names] == ["sky", "grass", "cat"]
    for entry, index in zip(names, range(3), strict=True):
        assert mask[int(entry["top"] * 0.8), int(entry["left"] * 1.2)] == index
    edge = np.zeros((100, 100), np.uint8)
    edge[:2] = edge[:, -2:] = 1  # thin, so that the middle of its name lies outside
    [name] = [entry for entry in place_names(edge, present, distinct_colors()) if entry["name"] == "grass"]
    assert name["top"] >= 3
    assert name["left"] <= 100 - 5
    crowded = place_names(
        np.kron(np.eye(2, dtype=np.uint8), np.ones((8, 8), np.uint8)), present, distinct_colors()
    )
    assert len(crowded) < 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_the_page_out_without_a_sideways_scroll(
    report: tuple[Folder, str], width: int
) -> None:
    output, page = report
    probe = (
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, "
        "[...document.images].every(i => i.naturalWidth > 0)].join()</script>"
    )
    place = Path(output.path) / "probe.html"
    place.write_text(page.replace("</body>", f"{probe}</body>").replace('loading="lazy"', ""))
    run = subprocess.run(
        [
            *(
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--window-size={max(width, 500)},900",
            ),
            *(f"--user-data-dir={place.parent / 'profile'}", "--dump-dom", place.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(\d+),(\d+),(\w+)</title>", run.stdout)
    assert title is not None
    assert int(title[1]) <= int(title[2])
    assert title[3] == "true"
