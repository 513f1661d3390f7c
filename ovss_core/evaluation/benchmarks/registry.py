"""The eight benchmarks: where their files lie, how their labels are read, and which vocabulary they offer.

Layouts are those that mmsegmentation's data preparation documents, and plain folders of pairs.
"""

from dataclasses import dataclass

from ovss_core.errors import ConfigError
from ovss_core.evaluation.benchmarks.conversions import (
    LabelConversion,
    cityscapes_ids,
    class_indices,
    reduce_zero_label,
    stuff_ids,
)
from ovss_core.evaluation.benchmarks.layouts import (
    FileTree,
    FoundSamples,
    Layout,
    find_samples,
    look_for_samples,
)


@dataclass(frozen=True)
class Benchmark:
    """One data set with one set of classes.

    Attributes:
        classes: Number of classes, the background included where there is one.
        layouts: Ways in which the files may lie; the first that is there counts.
        images: Images of the validation split, which published figures are measured on.
        origin: Where people get the files, and what makes mmsegmentation's layout of them.
        prefixes: Folders below the given root that may hold the layout.
    """

    name: str
    classes: int
    layouts: tuple[Layout, ...]
    images: int
    origin: str
    prefixes: tuple[str, ...] = ("",)

    @property
    def ignores_zero(self) -> bool:
        """Whether 0 in the data set's own masks is no class but a pixel that does not count."""
        return any(layout.conversion is reduce_zero_label for layout in self.layouts)

    def find(self, tree: FileTree) -> FoundSamples:
        """Find the pairs below a root; see `find_samples`."""
        return find_samples(self.name, self.layouts, self.prefixes, tree)

    def look_for(self, tree: FileTree) -> FoundSamples | None:
        """Find the pairs below a root, or return None where they do not lie there; see `look_for_samples`."""
        return look_for_samples(self.layouts, self.prefixes, tree)


def _voc(conversion: LabelConversion) -> tuple[Layout, ...]:
    split = "ImageSets/Segmentation/val.txt"
    return (Layout("JPEGImages", "SegmentationClass", ".jpg", ".png", conversion, split),)


def _context(conversion: LabelConversion) -> tuple[Layout, ...]:
    split = "ImageSets/SegmentationContext/val.txt"
    return (Layout("JPEGImages", "SegmentationClassContext", ".jpg", ".png", conversion, split),)


_COCO_OBJECT = (
    Layout("images/val2017", "annotations/val2017", ".jpg", "_instanceTrainIds.png", class_indices),
    Layout("images", "labels", ".jpg", ".png", class_indices),
)
_COCO_STUFF = (
    Layout("images/val2017", "annotations/val2017", ".jpg", "_labelTrainIds.png", class_indices),
    Layout("images/val2017", "annotations/val2017", ".jpg", ".png", stuff_ids),
)
_ADE20K = (Layout("images/validation", "annotations/validation", ".jpg", ".png", reduce_zero_label),)
_CITYSCAPES = tuple(
    Layout("leftImg8bit/val", "gtFine/val", "_leftImg8bit.png", f"_gtFine_{kind}.png", conversion)
    for kind, conversion in (("labelTrainIds", class_indices), ("labelIds", cityscapes_ids))
)
_CONVERTERS = "mmsegmentation's tools/dataset_converters"
_FROM_VOC_2012 = (
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, unpacked as it is"
)
_FROM_CONTEXT = (
    "VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/, and trainval_merged.json of PASCAL "
    f"Context, which {_CONVERTERS}/pascal_context.py turns into SegmentationClassContext"
)
_FROM_COCO_OBJECT = (
    "val2017.zip and annotations_trainval2017.zip from https://cocodataset.org/#download, whose instances are drawn into "
    "*_instanceTrainIds.png (0 background, 1 to 80); NACLIP's repository has a converter, datasets/cvt_coco_object.py"
)
_FROM_COCO_STUFF = (
    "val2017.zip from https://cocodataset.org/#download and stuffthingmaps_trainval2017.zip from "
    f"https://github.com/nightrome/cocostuff, which {_CONVERTERS}/coco_stuff164k.py converts (plain stuff maps are read too)"
)
_FROM_ADE20K = "ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu/, unpacked as it is"
_FROM_CITYSCAPES = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com (with an account), "
    f"unpacked as they are; {_CONVERTERS}/cityscapes.py may add labelTrainIds"
)
_VOC_2012 = ("", "VOC2012", "VOCdevkit/VOC2012")
_VOC_2010 = ("", "VOC2010", "VOCdevkit/VOC2010")

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("voc21", 21, _voc(class_indices), 1449, _FROM_VOC_2012, _VOC_2012),
        Benchmark("context60", 60, _context(class_indices), 5104, _FROM_CONTEXT, _VOC_2010),
        Benchmark("coco_object", 81, _COCO_OBJECT, 5000, _FROM_COCO_OBJECT, ("", "coco_object", "coco")),
        Benchmark("voc20", 20, _voc(reduce_zero_label), 1449, _FROM_VOC_2012, _VOC_2012),
        Benchmark("context59", 59, _context(reduce_zero_label), 5104, _FROM_CONTEXT, _VOC_2010),
        Benchmark("coco_stuff164k", 171, _COCO_STUFF, 5000, _FROM_COCO_STUFF, ("", "coco_stuff164k")),
        Benchmark(
            "ade20k",
            150,
            _ADE20K,
            2000,
            _FROM_ADE20K,
            ("", "ADEChallengeData2016", "ade/ADEChallengeData2016"),
        ),
        Benchmark("cityscapes", 19, _CITYSCAPES, 500, _FROM_CITYSCAPES, ("", "cityscapes")),
    )
}
"""By name, in the order of the papers' tables."""


def get_benchmark(name: str) -> Benchmark:
    """Look a benchmark up.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; give one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
