import base64
import io
import json
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
from ovss_core.results import Confidence, PresentClass, Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.label.card import write_card
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
                rf"<b>{re.escape(escape(name))}</b></div></td><td class=\"number\">{images}</td>", page
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


LONG = Vocabulary.from_names(
    ["background", "the inflatable swimming pool with a slide", "Donaudampfschifffahrtsgesellschaft"]
    + [f"{name}-other" for name in ("water", "solid", "furniture", "structural", "building", "mountain")]
)
PROBE = """<script>
const box = element => element.getBoundingClientRect();
const names = [...document.querySelectorAll(".named")], chips = [...document.querySelectorAll(".shot .words li")];
const beside = [...names, ...chips].every(name => {
  const swatch = box(name.querySelector(".swatch")), range = document.createRange();
  range.selectNodeContents(name.lastElementChild.className ? name.lastChild : name.lastElementChild);
  const text = box(range);
  return text.left >= swatch.right && text.top <= swatch.bottom && text.right <= box(name).right + 1;
});
const inside = [...document.querySelectorAll(".wide")].every(
  wide => box(wide).right <= box(wide.closest("section")).right);
const table = document.querySelector(".together"), scroller = table.parentElement;
scroller.scrollLeft = scroller.scrollWidth;
const [name, last] = [table.rows[2].cells[0], [...table.rows[2].cells].at(-1)].map(box);
parent.postMessage({
  width: innerWidth, wide: document.documentElement.scrollWidth, names: names.length, beside, inside,
  chips: chips.length, pictures: [...document.images].every(image => image.naturalWidth > 0),
  scrolls: scroller.scrollWidth > scroller.clientWidth,
  reached: last.right <= box(scroller).right + 1 && last.left >= name.right - 1,
  first: Math.abs(name.left - box(scroller).left) <= 1 && name.width <= 0.4 * innerWidth,
}, "*");
</script>"""
OUTER = """<iframe src="probe.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>onmessage = event => document.title = JSON.stringify(event.data)</script>"""


def with_long_names(folder: Path) -> Folder:
    """Write labels whose names are longer than a narrow screen has room for, with all classes in each image."""
    table, rows = label_table(LONG, "image"), []
    label_map = np.arange(len(LONG), dtype=np.uint8).repeat(10).reshape(-1, 10)
    present = tuple(PresentClass(index, name, 10, 0.5, 0.75) for index, name in enumerate(LONG.names))
    for number in range(3):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((*label_map.shape, 3), 50 * number, np.uint8)).save(path)
        result = Segmentation(label_map, present, confidence=Confidence(0.75, 0.5, 0.25, 0.0))
        rows.append({"image_id": path.name, "uri": str(path)} | label_row(result))
    (folder / "out/labels").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=table.schema), folder / "out/labels/labels-00000.parquet"
    )
    output = Folder(str(folder / "out"))
    write_card(output, table.schema, LONG)
    write_report(output)
    return output


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_lays_the_page_out_without_a_sideways_scroll(tmp_path: Path, width: int) -> None:
    page = page_of(with_long_names(tmp_path))
    (tmp_path / "probe.html").write_text(page.replace("</body>", f"{PROBE}</body>"))
    # a window of Chromium's has 500 pixels at least, a frame inside it as many as are asked for
    place = tmp_path / "outer.html"
    place.write_text(OUTER.format(width=width))
    run = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", place.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*)</title>", run.stdout)
    assert title is not None
    found = json.loads(title[1])
    assert (found["width"], found["wide"] <= width, found["names"]) == (width, True, len(LONG))
    assert found["pictures"]
    assert found["chips"] >= 3 * len(LONG)
    assert found["beside"], "a name stands beside its swatch, however long it is"
    assert found["inside"], "what is wider than its card scrolls inside it"
    assert found["scrolls"] == (width == 390)
    assert found["reached"], "the last column can be seen, and no name covers it"
    assert found["first"], "names of rows stay, and leave room for numbers"
