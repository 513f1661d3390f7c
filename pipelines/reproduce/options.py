"""What a user may set about repeating the papers' tables; light, for the command line asks before torch and Ray are there."""

import math
from dataclasses import dataclass
from typing import Literal

from ovss_core.clip.architectures import open_clip_name
from ovss_core.clip.weight_sources import resolve_weights
from ovss_core.config import ModelConfig
from ovss_core.errors import ConfigError

Tables = Literal["all", "main", "ablations"]
PAPERS_TOWER = "ViT-B-16"
OTHER_TOWERS = ("ViT-B-32", "ViT-L-14")
"""Towers of SFP's Table 4, with OpenAI's weights as the papers' own."""
PAPERS_WEIGHTS = "openai"
_ACTIVATION = "-quickgelu"


@dataclass(frozen=True)
class ReproduceOptions:
    """Which tables are repeated on which files, and when a figure is off.

    Attributes:
        data: Folder of the data sets, each as mmsegmentation lays it out (VOCdevkit/VOC2012, VOCdevkit/VOC2010,
            coco_object, coco_stuff164k, ade/ADEChallengeData2016, cityscapes), or in a folder directly below; path or URI.
        tables: "main" has SFP's Table 1 and FreeCP's main table, "ablations" SFP's Tables 2 to 4 and FreeCP's ablations.
        tolerance: Points of mIoU that a measured figure may lie off the published one, up or down; beyond, the exit
            status is 1.
        limit: Measure only so many images of each data set, evenly spread; nothing is compared then.
    """

    data: str
    tables: Tables = "all"
    tolerance: float = 0.5
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or math.isinf(self.tolerance):
            raise ConfigError(f"tolerance is {self.tolerance}; give at least 0 points of mIoU")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; give at least 1")


def is_papers_tower(model: ModelConfig) -> bool:
    """Say whether a model is the one that the papers' figures are for: ViT-B/16 with OpenAI's weights.

    A file of weights is taken at its word, since nothing in it says whose it is; the hash on the page does.

    Raises:
        WeightsError: The weights are neither a file nor a tag.
    """
    if open_clip_name(model.name).removesuffix(_ACTIVATION) != PAPERS_TOWER:
        return False
    kind, found = resolve_weights(model.name, model.pretrained)
    return kind == "file" or (kind == "tag" and found == PAPERS_WEIGHTS)
