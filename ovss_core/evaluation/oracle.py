"""The upper bound of class purification: each image is offered the classes that it holds, and no others."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Integer

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import EncodedWave


@dataclass(frozen=True)
class Oracle:
    """Labels with perfect knowledge of which classes are present.

    Redundancy purification is off, as its decisions are given; everything else stays as the engine has it. A
    background class is always offered.

    Attributes:
        engine: The engine whose host, purification and label rules apply.
    """

    engine: SegmentationEngine

    def label_map(self, image: EncodedWave, present: Collection[int]) -> Integer[np.ndarray, "height width"]:
        """Label one image with the present classes only.

        Args:
            image: One image, encoded for the engine.
            present: Indices of its classes, the background apart.

        Returns:
            Class indices of the whole vocabulary. Without a present class all of it is background (or class 0,
            where the vocabulary has no background).
        """
        text, config = self.engine.text, self.engine.config
        background = text.vocabulary.background_index
        if not present:
            return np.full(image.wave.sizes[0], background or 0, text.vocabulary.mask_dtype)
        offered = sorted({*present} | ({background} if background is not None else set()))
        engine = self.engine.with_vocabulary(restrict(text, offered), without_redundancy(config))
        [result] = image.segment(engine)
        labels: np.ndarray = np.array(offered, text.vocabulary.mask_dtype)[result.label_map]
        return labels


def without_redundancy(config: SegmenterConfig) -> SegmenterConfig:
    """Return the settings with redundancy purification off."""
    return replace(config, purification=replace(config.purification, redundancy=False))


def restrict(text: EncodedVocabulary, classes: Collection[int]) -> EncodedVocabulary:
    """Return the text side of some of the classes, in their order; class indices start anew at 0."""
    return text.select(sorted(classes), f"{text.vocabulary.name} (present only)")
