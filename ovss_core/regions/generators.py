"""Regions of an image out of a mask generator: SAM 2, prompted by a grid of points, or EoMT's panoptic segments.

Both come through transformers (the extra `ovss[regions]`), from a folder as it saves them or by their name on the hub.
Weights are read as safetensors alone.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from ovss_core.config import GeneratorConfig, OnTop
from ovss_core.errors import ModelError
from ovss_core.regions.region_map import RegionMap

_SAM = ("sam2", "sam2_video")
_EOMT = ("eomt", "eomt_dinov3")


class RegionGenerator(Protocol):
    """Finds the regions of images."""

    def generate(self, image: np.ndarray) -> RegionMap:
        """Return the regions of an image, uint8 RGB [height, width, 3], at its own size."""


def load_generator(config: GeneratorConfig, device: str | torch.device = "cpu") -> RegionGenerator:
    """Load the mask generator that a configuration names.

    Raises:
        ModelError: transformers is not installed, nothing can be loaded from there, or it is neither SAM 2 nor EoMT.
    """
    if find_spec("transformers") is None:
        raise ModelError("mask generators need the package transformers; pip install 'ovss[regions]'")
    from transformers import AutoConfig

    try:
        kind = str(AutoConfig.from_pretrained(config.generator).model_type)
        if kind in _SAM:
            return SamGenerator(config, device)
        if kind in _EOMT:
            return EomtGenerator(config, device)
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().split("\n")[0]
        raise ModelError(
            f"the mask generator {config.generator} cannot be loaded ({cause}); give a folder that transformers saved, with "
            "config.json, preprocessor_config.json and model.safetensors, or a name on the hub"
        ) from error
    raise ModelError(f"{config.generator} holds a model of type {kind!r}; give SAM 2 ({_SAM[0]}) or EoMT")


class SamGenerator:
    """SAM 2 or 2.1, asked at every point of a grid; duplicates fall to non-maximum suppression."""

    def __init__(self, config: GeneratorConfig, device: str | torch.device) -> None:
        from transformers import MaskGenerationPipeline, Sam2ImageProcessor, Sam2Model

        self._config = config
        model = Sam2Model.from_pretrained(config.generator, use_safetensors=True).eval()
        processor = Sam2ImageProcessor.from_pretrained(config.generator)
        self._pipeline = MaskGenerationPipeline(model=model, image_processor=processor, device=device)

    def generate(self, image: np.ndarray) -> RegionMap:
        """Ask at every point and lay what is kept over each other."""
        config = self._config
        found = self._pipeline(
            Image.fromarray(image),
            points_per_batch=config.points_at_once,
            points_per_crop=config.points,
            pred_iou_thresh=config.min_quality,
            stability_score_thresh=config.min_stability,
        )
        return lay_over(found["masks"], (image.shape[0], image.shape[1]), config.on_top)


class EomtGenerator:
    """EoMT's panoptic segments, disjoint as they come; the words that it was trained on are not read."""

    def __init__(self, config: GeneratorConfig, device: str | torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        self._config, self._device = config, device
        model = AutoModelForUniversalSegmentation.from_pretrained(config.generator, use_safetensors=True)
        self._model = model.eval().to(device)
        self._processor = AutoImageProcessor.from_pretrained(config.generator)

    @torch.inference_mode()
    def generate(self, image: np.ndarray) -> RegionMap:
        """Number the segments from 1; pixels of none are 0."""
        inputs = self._processor(images=Image.fromarray(image), return_tensors="pt")
        outputs = self._model(pixel_values=inputs["pixel_values"].to(self._device))
        (found,) = self._processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[(image.shape[0], image.shape[1])], threshold=self._config.min_quality
        )
        segments: Any = found["segmentation"].cpu().numpy()
        return RegionMap.of_array(_from_one(segments.astype(np.int32) + 1))


def lay_over(
    masks: Sequence[Bool[np.ndarray, "height width"]], size: tuple[int, int], on_top: OnTop
) -> RegionMap:
    """Make overlapping masks disjoint: a pixel belongs to the smallest (or largest) mask that holds it.

    Args:
        masks: In any order; of equal areas the later one lies on top.
        size: Height and width of the image.
        on_top: Which masks keep their pixels.

    Returns:
        Regions numbered from 1; masks that are hidden as a whole have no number.
    """
    order = sorted(range(len(masks)), key=lambda place: int(np.count_nonzero(masks[place])))
    if on_top == "small":
        order.reverse()
    ids = np.zeros(size, np.int32)
    for number, place in enumerate(order, 1):
        ids[np.asarray(masks[place], bool)] = number
    return RegionMap.of_array(_from_one(ids))


def _from_one(ids: np.ndarray) -> np.ndarray:
    """Number the regions that have pixels 1, 2, ... in the order of their numbers; 0 stays."""
    numbers = np.unique(ids)
    numbers = numbers[numbers > 0]
    found: np.ndarray = np.where(ids > 0, np.searchsorted(numbers, ids) + 1, 0).astype(np.int32)
    return found
