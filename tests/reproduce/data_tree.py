"""Data sets of two drawn images each, in the layouts that mmsegmentation documents."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
ADE, STUFF, OBJECT, CITY = "ade/ADEChallengeData2016", "coco_stuff164k", "coco_object", "cityscapes"
EVERYTHING = (VOC, CONTEXT, OBJECT, STUFF, ADE, CITY)
_SHAPES = {
    VOC: ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", (0, 1, 20, 255)),
    CONTEXT: ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", (0, 1, 59)),
    OBJECT: ("images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png", (0, 1, 80)),
    STUFF: ("images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png", (0, 170, 255)),
    ADE: ("images/validation/{}.jpg", "annotations/validation/{}.png", (0, 1, 150)),
    CITY: (
        "leftImg8bit/val/ulm/{}_leftImg8bit.png",
        "gtFine/val/ulm/{}_gtFine_labelTrainIds.png",
        (0, 18, 255),
    ),
}
_SPLITS = {VOC: "ImageSets/Segmentation/val.txt", CONTEXT: "ImageSets/SegmentationContext/val.txt"}


def draw_data(root: Path, folders: Iterable[str] = EVERYTHING) -> Path:
    """Draw data sets below a root, each with images a and b of 32 x 24 pixels."""
    rng = np.random.default_rng(7)
    for folder in folders:
        image, mask, values = _SHAPES[folder]
        for name in ("a", "b"):
            _save(root / folder / image.format(name), rng.integers(0, 255, (3, 4, 3), np.uint8))
            _save(root / folder / mask.format(name), np.resize(np.array(values, np.uint8), (3, 4)))
        if folder in _SPLITS:
            split = root / folder / _SPLITS[folder]
            split.parent.mkdir(parents=True, exist_ok=True)
            split.write_text("a\nb\n")
    return root


def _save(path: Path, blocks: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path)
