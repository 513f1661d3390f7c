"""Every format, opened by what people open it with; the masks read back are those that were labelled."""

import io
import json
import shutil
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import cli
from ovss_core.errors import ConfigError
from ovss_core.results import PresentClass, Segmentation
from pipelines.derive.export import FORMATS, Export
from pipelines.derive.formats.base import safe_name, upright
from pipelines.derive.formats.folders import polygons
from pipelines.derive.formats.tools import run_lengths
from pipelines.derive.options import ExportFormat, ExportOptions
from tests.derive.plain import run_here, write_labels
from tests.pipelines.faulty_storage import use_faulty_storage
from tests.pipelines.test_crash_points import Clock, Killed
from tests.pipelines.test_dataset_card import VOCABULARY

SIZE = (60, 80)


def scene(seed: int) -> np.ndarray:
    """Blobs with holes, bars, single pixels, background and places without a label."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    for _ in range(6):
        y, x, radius = generator.integers(0, 60), generator.integers(0, 80), int(generator.integers(3, 18))
        cv2.circle(mask, (int(x), int(y)), radius, int(generator.integers(0, 4)), -1)
    cv2.circle(mask, (30, 30), 12, 2, 5)
    mask[5:7, :20] = 3
    mask[generator.integers(0, 60, 4), generator.integers(0, 80, 4)] = 1
    mask[-4:] = 255
    return mask


def picture(seed: int, turned: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    stream = io.BytesIO()
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels)).save(stream, "JPEG", exif=exif)
    else:
        Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


NAMES = [f"a b/{number}.png" for number in range(9)] + ["turned.jpg"]
MASKS = {name: scene(number) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of ten images and one whose file is gone."""
    root = tmp_path_factory.mktemp("exports")
    results, addresses = {}, {}
    for number, name in enumerate([*NAMES, "gone.png"]):
        mask = MASKS.get(name, MASKS[NAMES[0]])
        present = tuple(
            PresentClass(int(index), VOCABULARY.names[index], int((mask == index).sum()), 0.1, 0.5)
            for index in np.unique(mask)
            if index != 255
        )
        results[name] = Segmentation(mask, present)
        path = root / f"in/{number}.bin"
        path.parent.mkdir(exist_ok=True)
        if name != "gone.png":
            path.write_bytes(picture(number, name == "turned.jpg"))
        addresses[name] = str(path)
    write_labels(root / "labels", results, addresses=addresses)
    return root / "labels"


def export(labels: Path, form: Any, output: Path, **options: Any) -> dict[str, Any]:
    return run_here(labels, Export(ExportOptions(form, **options)), output)


def masks_with(regions: dict[str, list[tuple[int, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Put regions together; what none covers is background."""
    found = {}
    for name, entries in regions.items():
        found[name] = np.zeros(SIZE, np.uint8)
        for index, region in entries:
            found[name][region] = index
    return found


def assert_foreground(found: dict[str, np.ndarray]) -> None:
    for name, mask in MASKS.items():
        assert np.array_equal(found[name], np.where(mask == 255, 0, mask)), name


def test_coco_instances_give_every_region_back_to_pycocotools(labels: Path, tmp_path: Path) -> None:
    coco_api = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    summary = export(labels, "coco-instances", tmp_path / "out", val_share=0.4)
    assert summary["written"] == 11
    regions: dict[str, list[tuple[int, np.ndarray]]] = {}
    for split in ("train", "val"):
        coco = coco_api.COCO(str(tmp_path / f"out/annotations/instances_{split}.json"))
        assert len(coco.getImgIds()) == summary["statistics"]["splits"][split] > 0
        for image in coco.loadImgs(coco.getImgIds()):
            entries = regions.setdefault(image["file_name"], [])
            for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
                region = coco.annToMask(annotation).astype(bool)
                assert annotation["area"] == region.sum()
                x, y, width, height = annotation["bbox"]
                assert region[y : y + height, x : x + width].sum() == region.sum()
                entries.append((annotation["category_id"] - 1, region))
                assert coco.cats[annotation["category_id"]]["name"] == VOCABULARY.names[entries[-1][0]]
    assert_foreground(masks_with(regions))


def test_coco_panoptic_maps_hold_every_class_and_nothing_where_there_is_no_label(
    labels: Path, tmp_path: Path
) -> None:
    export(labels, "coco-panoptic", tmp_path / "out", images_per_file=4)
    files = sorted((tmp_path / "out/annotations").glob("*.json"))
    assert [path.name for path in files] == [f"panoptic_train-{n:05d}.json" for n in range(3)]
    seen = 0
    for path in files:
        content = json.loads(path.read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            path = tmp_path / "out/annotations/panoptic_train" / annotation["file_name"]
            colors = np.asarray(Image.open(path)).astype(int)
            ids = colors @ [1, 256, 65536]
            category = {0: 255} | {
                entry["id"]: entry["category_id"] - 1 for entry in annotation["segments_info"]
            }
            mask = np.vectorize(category.get)(ids)
            if names[annotation["image_id"]] in MASKS:
                assert np.array_equal(mask, MASKS[names[annotation["image_id"]]])
                seen += 1
    assert seen == 10


@pytest.mark.parametrize(
    ("form", "reader", "place"),
    [
        ("coco-instances", "coco_instances", "images/train"),
        ("coco-panoptic", "coco_panoptic", "images/train"),
        ("cvat", "cvat", "annotations/images"),
    ],
)
def test_datumaro_reads_the_regions_with_their_images_beside(
    labels: Path, tmp_path: Path, form: Any, reader: str, place: str
) -> None:
    datumaro = pytest.importorskip(
        "datumaro", reason="datumaro, which needs older pandas and Arrow, is not here"
    )
    export(labels, form, tmp_path / "out")
    for number, name in enumerate([*NAMES, "gone.png"]):
        image = tmp_path / "out" / place / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(picture(number, name == "turned.jpg"))
    data = datumaro.Dataset.import_from(str(tmp_path / "out"), reader)
    names = [entry.name for entry in data.categories()[datumaro.AnnotationType.label].items]
    assert names == list(VOCABULARY.names[form != "coco-panoptic" :])
    regions = {
        next(name for name in (*NAMES, "gone.png") if Path(name).with_suffix("").as_posix() == item.id): [
            (VOCABULARY.names.index(names[entry.label]), np.asarray(entry.image, bool))
            for entry in item.annotations
            if entry.type == datumaro.AnnotationType.mask
        ]
        for item in data
    }
    assert len(regions) == 11
    assert_foreground(masks_with(regions))


def test_mmsegmentations_folders_hold_upright_images_and_indices_behind_a_palette(
    labels: Path, tmp_path: Path
) -> None:
    summary = export(labels, "mmseg", tmp_path / "out", val_share=0.3)
    assert (summary["written"], summary["failed"]) == (10, 1)
    masks = {path.stem: path for path in (tmp_path / "out/ann_dir").rglob("*.png")}
    pictures = {path.stem: path for path in (tmp_path / "out/img_dir").rglob("*.*")}
    assert masks.keys() == pictures.keys() == {safe_name(name) for name in NAMES}
    for number, name in enumerate(NAMES):
        path = masks[safe_name(name)]
        with Image.open(path) as mask, Image.open(pictures[path.stem]) as image:
            assert mask.mode == "P"
            assert np.array_equal(np.asarray(mask), MASKS[name])
            assert (image.height, image.width) == SIZE
            assert image.getexif().get(0x0112, 1) == 1
            if name != "turned.jpg":
                assert pictures[path.stem].read_bytes() == picture(number)
        assert path.parent.name == pictures[path.stem].parent.name
    assert json.loads((tmp_path / "out/metainfo.json").read_text())["classes"] == list(VOCABULARY.names)


def fill(lines: list[str]) -> dict[int, list[np.ndarray]]:
    """Fill polygons as YOLO's readers do: corners in shares of the size, cut down to pixels."""
    found: dict[int, list[np.ndarray]] = {}
    for line in lines:
        index, *values = line.split()
        points = (np.array(values, float).reshape(-1, 2) * (SIZE[1], SIZE[0])).astype(np.int32)
        region = np.zeros(SIZE, np.uint8)
        cv2.fillPoly(region, [points], 1)
        found.setdefault(int(index), []).append(region.astype(bool))
    return found


def test_polygons_of_yolo_cover_their_regions_holes_left_out(labels: Path, tmp_path: Path) -> None:
    export(labels, "yolo-seg", tmp_path / "out", val_share=0.3)
    names = yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"]
    assert list(names.values()) == list(VOCABULARY.names[1:])
    compared = 0
    for name, mask in MASKS.items():
        [path] = (tmp_path / "out/labels").rglob(f"{safe_name(name)}.txt")
        for place, regions in fill(path.read_text().splitlines()).items():
            expected = mask == place + 1
            together = np.any(regions, 0)
            if expected.sum() > 100:
                assert (together & expected).sum() / (together | expected).sum() >= 0.98
                compared += 1
    assert compared > 10


def test_supervision_reads_the_folders_of_yolo(labels: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    export(labels, "yolo-seg", tmp_path / "out")
    data = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "out/images/train"),
        str(tmp_path / "out/labels/train"),
        str(tmp_path / "out/data.yaml"),
        force_masks=True,
    )
    assert len(data) == 10
    for path, _, detections in data:
        name = next(name for name in NAMES if safe_name(name) == Path(path).stem)
        for index in np.unique(detections.class_id):
            found = np.any(detections.mask[detections.class_id == index], 0)
            expected = MASKS[name] == index + 1
            if expected.sum() > 100:
                assert (found & expected).sum() / (found | expected).sum() >= 0.98


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_filled_again_is_its_region(seed: int) -> None:
    region = np.random.default_rng(seed).random((20, 30)) < 0.7
    region = cv2.dilate(cv2.erode(region.astype(np.uint8), np.ones((2, 2))), np.ones((3, 3))).astype(bool)
    found = np.zeros(region.shape, np.uint8)
    for polygon in polygons(region):
        one = np.zeros(region.shape, np.uint8)
        cv2.fillPoly(one, [polygon.astype(np.int32)], 1)
        found |= one
    assert (found.astype(bool) & region).sum() / (found.astype(bool) | region).sum() >= 0.98
    assert polygons(np.zeros((3, 3), bool)) == []


def test_the_datasets_library_decodes_image_and_label_of_both_splits(labels: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    export(labels, "huggingface", tmp_path / "out", val_share=0.4)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    rows = [*loaded["train"], *loaded["validation"]]
    assert {row["image_id"] for row in rows} == set(NAMES)
    for row in rows:
        assert np.array_equal(np.asarray(row["label"]), MASKS[row["image_id"]])
        assert (row["image"].height, row["image"].width) == SIZE


def test_webdataset_reads_its_shards(labels: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    export(labels, "webdataset", tmp_path / "out")
    shards = [str(path) for path in sorted((tmp_path / "out/train").iterdir())]
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        facts = json.loads(sample["json"])
        found[facts["image_id"]] = np.asarray(Image.open(io.BytesIO(sample["mask.png"])))
        with Image.open(io.BytesIO(sample["png"])) as image:
            assert (image.height, image.width) == SIZE
    assert found.keys() == MASKS.keys()
    assert all(np.array_equal(found[name], mask) for name, mask in MASKS.items())


def decode_brush(values: list[int]) -> np.ndarray:
    """Read Label Studio's packed runs bit by bit."""
    bits = "".join(f"{value:08b}" for value in values)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < total:
        run, size = take(1), sizes[take(2)]
        length = take(size) + 1
        found += [take(word)] * length if run else [take(word) for _ in range(length)]
    return np.array(found, np.uint8)


def test_label_studios_brushes_are_the_regions(labels: Path, tmp_path: Path) -> None:
    export(labels, "label-studio", tmp_path / "out")
    try:
        from label_studio_sdk.converter.brush import decode_rle
    except ImportError:
        decode_rle = decode_brush
    regions: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path in sorted((tmp_path / "out/tasks").iterdir()):
        for task in json.loads(path.read_text()):
            entries = regions.setdefault(task["data"]["image_id"], [])
            for result in task["predictions"][0]["result"]:
                assert (result["original_height"], result["original_width"]) == SIZE
                pixels = decode_rle(result["value"]["rle"]).reshape(*SIZE, 4)
                assert np.array_equal(pixels, decode_brush(result["value"]["rle"]).reshape(*SIZE, 4))
                index = VOCABULARY.names.index(result["value"]["brushlabels"][0])
                entries.append((index, pixels[..., 3] > 0))
    assert_foreground(masks_with(regions))
    config = ElementTree.parse(tmp_path / "out/label_config.xml")
    assert [entry.get("value") for entry in config.iter("Label")] == list(VOCABULARY.names[1:])


def test_label_studios_own_interface_takes_the_tasks_and_its_converter_draws_them(
    labels: Path, tmp_path: Path
) -> None:
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk, a tree of 40 packages, is not installed"
    )
    from label_studio_sdk.converter.brush import convert_task_dir

    export(labels, "label-studio", tmp_path / "out")
    taken = interface.LabelInterface((tmp_path / "out/label_config.xml").read_text())
    taken.validate()
    regions: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path in sorted((tmp_path / "out/tasks").iterdir()):
        for number, task in enumerate(json.loads(path.read_text())):
            assert taken.validate_task({"data": task["data"]})
            [prediction] = task["predictions"]
            assert taken.validate_prediction(prediction, return_errors=True) == []
            folder = tmp_path / f"drawn/{path.stem}-{number}"
            folder.mkdir(parents=True)
            results = [result | result["value"] for result in prediction["result"]]
            done = {"id": 1, "annotation_id": 1, "completed_by": "us", "output": {"label": results}}
            convert_task_dir([done], str(folder), out_format="png")
            regions[task["data"]["image_id"]] = [
                (VOCABULARY.names.index(name), np.asarray(Image.open(picture)) > 0)
                for picture in folder.iterdir()
                for name in VOCABULARY.names[1:]
                if f"-label-{name.replace('/', '-')}-0" in picture.name
            ]
            assert len(regions[task["data"]["image_id"]]) == len(results)
    assert_foreground(masks_with(regions))


def test_cvats_masks_are_the_regions_as_its_format_is_documented(labels: Path, tmp_path: Path) -> None:
    export(labels, "cvat", tmp_path / "out")
    root = ElementTree.parse(tmp_path / "out/annotations/annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [entry.text for entry in root.iterfind("meta/task/labels/label/name")] == list(
        VOCABULARY.names[1:]
    )
    regions: dict[str, list[tuple[int, np.ndarray]]] = {}
    for image in root.iterfind("image"):
        entries = regions.setdefault(str(image.get("name")), [])
        assert (image.get("height"), image.get("width")) == ("60", "80")
        for mask in image.iterfind("mask"):
            left, top, width, height = (
                int(mask.get(name, "")) for name in ("left", "top", "width", "height")
            )
            runs = [int(run) for run in mask.get("rle", "").split(", ")]
            values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
            region = np.zeros(SIZE, bool)
            region[top : top + height, left : left + width] = values
            entries.append((VOCABULARY.names.index(mask.get("label", "")), region))
    assert_foreground(masks_with(regions))


@pytest.mark.parametrize(
    ("region", "runs"),
    [([[0, 1, 1], [1, 0, 0]], [1, 3, 2]), ([[1, 1]], [0, 2]), ([[0, 0]], [2]), ([[1, 0, 1]], [0, 1, 1, 1])],
)
def test_runs_begin_with_what_is_not_there(region: list[list[int]], runs: list[int]) -> None:
    assert run_lengths(np.array(region, bool)) == runs


@pytest.mark.parametrize("form", ["coco-panoptic", "yolo-seg", "huggingface", "cvat"])
def test_an_export_that_dies_at_any_operation_is_ended_by_the_next_start(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)
    export(labels, form, tmp_path / "whole", val_share=0.4)
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file() and path.name != "run.json"]
    for deadly in (1, 2, 4, 7, 11, 16, 22, 29):
        output = tmp_path / f"{deadly}"
        with monkeypatch.context() as patch:
            use_faulty_storage(patch, output, Clock(deadly))
            with suppress(Killed):
                export(labels, form, output, val_share=0.4)
        export(labels, form, output, val_share=0.4)
        for path in files:
            assert (output / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path
        shutil.rmtree(output)


def test_names_of_files_are_unique_and_tell_of_their_ids() -> None:
    names = ["a/b.jpg", "a_b.jpg", "a/b.png", "shard.tar/0001", "t.parquet#3", "ä", "plain.jpg"]
    assert len({safe_name(name) for name in names}) == len(names)
    assert (safe_name("plain.jpg"), safe_name("0001")) == ("plain", "0001")
    assert safe_name("a/b.jpg").startswith("a_b-")


def test_an_image_is_kept_as_it_is_unless_readers_would_see_another_one() -> None:
    assert upright(picture(1)) == (picture(1), ".png")
    data, ending = upright(picture(1, turned=True))
    with Image.open(io.BytesIO(data)) as image:
        assert (ending, (image.height, image.width)) == (".png", SIZE)


def test_a_missing_library_is_named_and_the_options_are_those_there_are(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(get_args(ExportFormat)) == set(FORMATS)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"needs pycocotools; pip install 'ovss\[export\]'"):
        export(labels, "coco-instances", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_in_tasks_and_says_how_many(
    ray_session: None, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"export --labels {labels} --format mmseg --val-share 0.3 --output {tmp_path}/out"
    assert cli.main(flags.split()) == 0
    told = capsys.readouterr().out
    assert "11 images: 10 written (" in told
    assert f"why images failed: {tmp_path}/out/_failures" in told
