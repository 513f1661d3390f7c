"""Labels by hand values, layouts on disk, and the constants of both protocols."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from ovss_core.config import PurificationConfig, SegmenterConfig
from ovss_core.errors import ConfigError, StorageError
from ovss_core.evaluation.benchmarks import (
    BENCHMARKS,
    get_benchmark,
    protocol_config,
    published_miou,
)
from ovss_core.evaluation.benchmarks.conversions import (
    UNUSED_STUFF_IDS,
    cityscapes_ids,
    class_indices,
    indices_below,
    reduce_zero_label,
    stuff_ids,
)
from ovss_core.evaluation.benchmarks.protocols import Purify

SHARED = Path(__file__).parents[2].parent / "shared"
I = -1  # noqa: E741


def config_of(host: str, purify: Purify) -> SegmenterConfig:
    return SegmenterConfig(host=host, purification=PurificationConfig(method=purify))


def _values(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array([values], dtype)


def test_class_indices_ignore_the_largest_value_of_the_type() -> None:
    assert class_indices(_values(0, 20, 254, 255)).tolist() == [[0, 20, 254, I]]
    assert class_indices(_values(255, 65_535, dtype=np.uint16)).tolist() == [[255, I]]


def test_255_is_a_class_only_where_the_vocabulary_is_that_large() -> None:
    values = _values(3, 255, 65_535, dtype=np.uint16)

    assert indices_below(255)(values).tolist() == [[3, I, I]]
    assert indices_below(256)(values).tolist() == [[3, 255, I]]


def test_reducing_the_zero_label_ignores_zero_and_shifts_the_rest() -> None:
    assert reduce_zero_label(_values(0, 1, 2, 150, 255)).tolist() == [[I, 0, 1, 149, I]]


def test_coco_stuff_ids_skip_the_unused_categories() -> None:
    raw = _values(0, 10, 12, 24, 26, 27, 30, 43, 45, 64, 66, 69, 71, 81, 83, 89, 91, 181, 255, 11, 90, 182)

    expected = [0, 10, 11, 23, 24, 25, 26, 39, 40, 59, 60, 61, 62, 72, 73, 79, 80, 170, I, I, I, I]
    assert stuff_ids(raw).tolist() == [expected]


def test_coco_stuff_keeps_171_of_182_ids() -> None:
    labels = stuff_ids(np.arange(182, dtype=np.uint8)[None])

    assert sorted(set(labels.ravel().tolist()) - {I}) == list(range(171))
    assert np.flatnonzero(labels == I).tolist() == list(UNUSED_STUFF_IDS)


def test_cityscapes_ids_become_the_nineteen_train_ids() -> None:
    raw = _values(7, 8, 11, 17, 24, 26, 33, 0, 6, 9, 29, 34, 255)

    assert cityscapes_ids(raw).tolist() == [[0, 1, 2, 5, 11, 13, 18, I, I, I, I, I, I]]


@dataclass(frozen=True)
class LocalTree:
    """A folder of this machine, as the core finds pairs in it; runs have `pipelines.evaluate.pairs.StorageTree`."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def files(self, folder: str) -> list[str]:
        top = self.root / folder
        return [path.relative_to(self.root).as_posix() for path in top.rglob("*") if path.is_file()]

    def read_text(self, path: str) -> str | None:
        return (self.root / path).read_text() if (self.root / path).is_file() else None


def _fill(root: Path, names: list[str]) -> LocalTree:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\nb 1\n\n" if name.endswith(".txt") else "")
    return LocalTree(root)


VOC = [
    f"{folder}/{key}"
    for folder, keys in (
        ("JPEGImages", ("a.jpg", "b.jpg", "c.jpg")),
        ("SegmentationClass", ("a.png", "b.png")),
        ("ImageSets/Segmentation", ("val.txt",)),
    )
    for key in keys
]
LAYOUTS = {
    "voc21": VOC,
    "voc20": [f"VOCdevkit/VOC2012/{name}" for name in VOC],
    "context60": [
        "VOC2010/JPEGImages/a.jpg",
        "VOC2010/JPEGImages/b.jpg",
        "VOC2010/SegmentationClassContext/a.png",
        "VOC2010/SegmentationClassContext/b.png",
        "VOC2010/ImageSets/SegmentationContext/val.txt",
    ],
    "coco_object": ["images/a.jpg", "images/b.jpg", "labels/a.png", "labels/b.png"],
    "coco_stuff164k": [
        "images/val2017/a.jpg",
        "images/val2017/b.jpg",
        "annotations/val2017/a.png",
        "annotations/val2017/b.png",
        "annotations/val2017/a_labelTrainIds.png",
        "annotations/val2017/b_labelTrainIds.png",
    ],
    "ade20k": [
        "ADEChallengeData2016/images/validation/a.jpg",
        "ADEChallengeData2016/images/validation/b.jpg",
        "ADEChallengeData2016/annotations/validation/a.png",
        "ADEChallengeData2016/annotations/validation/b.png",
    ],
    "cityscapes": [
        "leftImg8bit/val/ulm/a_leftImg8bit.png",
        "leftImg8bit/val/bonn/b_leftImg8bit.png",
        "gtFine/val/ulm/a_gtFine_labelIds.png",
        "gtFine/val/bonn/b_gtFine_labelIds.png",
        "gtFine/val/bonn/b_gtFine_color.png",
    ],
}
LAYOUTS["context59"] = [name.removeprefix("VOC2010/") for name in LAYOUTS["context60"]]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_pairs_of_a_documented_layout_are_found(name: str, tmp_path: Path) -> None:
    tree = _fill(tmp_path, LAYOUTS[name])

    found = get_benchmark(name).find(tree)

    assert len(found.pairs) == 2
    assert all((tmp_path / pair.image).is_file() and (tmp_path / pair.mask).is_file() for pair in found.pairs)
    assert {Path(pair.image).name[0] for pair in found.pairs} == {"a", "b"}


def test_raw_stuff_ids_are_not_taken_for_objects(tmp_path: Path) -> None:
    raw = [name for name in LAYOUTS["coco_stuff164k"] if "TrainIds" not in name]

    with pytest.raises(StorageError, match=r"_instanceTrainIds\.png"):
        get_benchmark("coco_object").find(_fill(tmp_path, raw))


def test_train_ids_are_preferred_to_raw_ids_where_both_are_there(tmp_path: Path) -> None:
    found = get_benchmark("coco_stuff164k").find(_fill(tmp_path, LAYOUTS["coco_stuff164k"]))

    assert found.layout.conversion is class_indices
    assert found.pairs[0].mask == "annotations/val2017/a_labelTrainIds.png"


def test_raw_ids_are_taken_where_there_are_no_train_ids(tmp_path: Path) -> None:
    raw = [name for name in LAYOUTS["coco_stuff164k"] if "TrainIds" not in name]

    assert get_benchmark("coco_stuff164k").find(_fill(tmp_path, raw)).layout.conversion is stuff_ids


def test_a_wrong_root_is_answered_with_the_layout_that_was_expected(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"SegmentationClass/\*\.png of the ids in ImageSets") as caught:
        get_benchmark("voc21").find(LocalTree(tmp_path))

    assert "VOCdevkit/VOC2012" in str(caught.value)
    assert "--root" in str(caught.value)


def test_an_image_without_its_mask_is_named(tmp_path: Path) -> None:
    tree = _fill(tmp_path, [name for name in VOC if name != "SegmentationClass/b.png"])

    with pytest.raises(StorageError, match=r"1 of 2 images have no mask, such as SegmentationClass/b\.png"):
        get_benchmark("voc21").find(tree)


def test_an_unknown_benchmark_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="voc21, context60"):
        get_benchmark("voc22")


@pytest.mark.parametrize("purify", ["none", "freecp"])
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_protocol_offers_one_class_for_every_label_and_survives_json(name: str, purify: Purify) -> None:
    config, vocabulary = protocol_config(name, "sfp", purify)

    assert len(vocabulary) == BENCHMARKS[name].classes
    assert (vocabulary.background_index == 0) == (config.labels.background != "none")
    assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_voc21_has_the_constants_of_both_papers() -> None:
    plain, _ = protocol_config("voc21", "clearclip", "none")
    purified, _ = protocol_config("voc21", "clearclip", "freecp")

    assert (plain.windows.size, plain.windows.stride, plain.windows.short_side) == (224, 112, 336)
    assert plain.labels.logit_scale == 50
    assert (plain.labels.min_probability, plain.labels.min_area) == (0.15, 0.1)
    assert plain.host == purified.host == "clearclip"
    assert (purified.windows.size, purified.windows.stride, purified.windows.short_side) == (384, 112, 448)
    assert purified.purification.redundancy_threshold == 0.15
    assert purified.purification.ambiguity_threshold == 0.8
    assert purified.purification.thresholds == "fixed"


def test_hosts_with_a_second_tower_have_the_constants_of_their_codes() -> None:
    config, _ = protocol_config("voc21", "proxyclip", "none")
    assert (config.windows.size, config.windows.stride, config.windows.short_side) == (336, 112, 336)
    assert (config.labels.logit_scale, config.labels.min_probability) == (40, 0.2)
    assert config.labels.min_area is None
    config, _ = protocol_config("cityscapes", "corrclip", "none")
    assert (config.windows.size, config.windows.short_side) == (224, 448)
    assert config.labels.background == "none"
    assert published_miou("voc20", config_of("proxyclip", "none")) == 80.3


def test_published_figures_are_found_by_host_and_purification() -> None:
    assert published_miou("voc21", config_of("sfp", "none")) == 63.9
    assert published_miou("cityscapes", config_of("gem", "freecp")) == 35.7
    assert published_miou("voc21", config_of("sfp", "freecp")) is None


def _stated(protocols: dict[str, dict[str, object]], name: str) -> dict[str, object]:
    return {**protocols["defaults"], **protocols[name]}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/benchmarks/protocols.yaml")
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_constant_equals_the_protocol_sheet(name: str) -> None:
    sheet = yaml.safe_load((SHARED / "benchmarks" / "protocols.yaml").read_text())

    stated = _stated(sheet["sfp"], name)
    config, vocabulary = protocol_config(name, "sfp", "none")
    assert vocabulary.name == stated["vocabulary"]
    assert config.windows.size == stated["window"]
    assert config.windows.stride == stated["stride"]
    assert config.windows.short_side == stated["resize"]
    assert config.labels.logit_scale == stated["logit_scale"]
    assert config.labels.min_probability == stated["min_probability"]
    assert config.labels.min_area == stated["min_area"]
    assert config.labels.background == stated.get("background", "none")

    stated = _stated(sheet["freecp"], name)
    config, vocabulary = protocol_config(name, "sfp", "freecp")
    assert vocabulary.name == stated["vocabulary"]
    assert config.windows.size == stated["window"]
    assert config.windows.stride == stated["stride"]
    assert config.windows.short_side == stated["resize"]
    # The code multiplies by the weights' own scale, None here; the sheet's 100 is that of OpenAI's weights.
    assert config.purification.score_scale is None
    assert stated["score_scale"] == 100
    assert config.purification.redundancy_threshold == stated["redundancy_threshold"]
    assert config.purification.ambiguity_threshold == stated["ambiguity_threshold"]
    assert config.labels.background == stated["background"]

    order = list(BENCHMARKS)
    for row, figures in sheet["published_miou"].items():
        host, plus, _ = row.partition("+")
        config = config_of(host, "freecp" if plus else "none")
        assert published_miou(name, config) == figures[order.index(name)]


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the photographs of ../shared/data")
@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [
        ("voc21", "voc2012", 121),
        ("voc20", "voc2012", 121),
        ("coco_object", "coco_object", 35),
        ("ade20k", "ade20k", 9),
    ],
)
def test_the_local_photographs_are_found_and_their_labels_lie_in_the_vocabulary(
    name: str, folder: str, count: int
) -> None:
    from ovss_core.evaluation import decode_labels

    root = SHARED / "data" / folder
    found = get_benchmark(name).find(LocalTree(root))

    assert len(found.pairs) == count
    for pair in found.pairs[::5]:
        labels = found.layout.conversion(decode_labels((root / pair.mask).read_bytes()))
        assert -1 <= labels.min() <= labels.max() < BENCHMARKS[name].classes
