"""Three lines to label an image, without Ray.

segmenter = OpenVocabSegmenter.from_pretrained("ViT-B-16", "openai", vocabulary=["cat", "sofa"])
result = segmenter.segment(image)
result.label_map
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ovss_core.check import validate
from ovss_core.class_purification.null import load_distractors
from ovss_core.clip.recommended import filled, recommended_settings
from ovss_core.clip.text import CAR_PROMPTS, EncodedVocabulary, TextEncoder, cut_texts, encode_vocabulary
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.decode import decode_image, picture_to_rgb
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

ImageLike = Image.Image | np.ndarray | str | Path | bytes


class OpenVocabSegmenter:
    """Labels single images or small lists of them.

    Args:
        engine: Does the work; `from_pretrained` builds it.

    Examples:
        >>> segmenter = OpenVocabSegmenter.from_pretrained("demo", vocabulary=["sky", "grass", "dog"])
        >>> meadow = np.zeros((96, 128, 3), np.uint8)
        >>> meadow[:48], meadow[48:] = (150, 200, 240), (70, 150, 60)
        >>> result = segmenter.segment(meadow)
        >>> result.label_map.shape, result.label_map.dtype
        ((96, 128), dtype('uint8'))
        >>> [entry.name for entry in result.kept], [entry.name for entry in result.removed]
        (['sky', 'grass'], ['dog'])
    """

    def __init__(self, engine: SegmentationEngine) -> None:
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls,
        name: str = "ViT-B-16",
        pretrained: str = "openai",
        *,
        vocabulary: Sequence[str] | str | Path | Vocabulary,
        config: SegmenterConfig | None = None,
        descriptions: DescriptionChoice = "shipped",
        device: str | None = None,
    ) -> "OpenVocabSegmenter":
        """Load a model and encode a vocabulary.

        Args:
            name: open_clip architecture, or "demo" for the small model that ships with ovss.
            pretrained: Weight tag or path; see `ModelConfig`.
            vocabulary: A list of classes (synonyms of one separated by commas), words separated by commas, a
                shipped vocabulary's name, or a file.
            config: Everything else; its model is replaced by the one named here. None takes the defaults, or what
                the model's card recommends (`ovss_core.clip.recommended`).
            descriptions: Sentences by class name that settle ambiguous regions; "shipped" takes those of a shipped
                vocabulary, None takes the mean of each class's phrases.
            device: "cuda", "cpu", ...; None takes a GPU where there is one.

        Raises:
            OvssError: The model, its weights or the vocabulary cannot be used.
        """
        model = replace((config or SegmenterConfig()).model, name=name, pretrained=pretrained)
        settings = replace(config or filled(recommended_settings(model)), model=model)
        classes = as_vocabulary(vocabulary)
        sentences = choose_descriptions(descriptions, classes, settings)
        warnings = validate(settings, classes, sentences)
        chosen = _choose_device(device)
        clip = load_clip(settings.model)
        warnings += cut_texts(lambda: clip.tokenizer, clip.context_length, classes.phrases, sentences)
        for warning in warnings:
            logger.warning("%s", warning)
        text = encode_words(clip, settings, classes, sentences, chosen)
        return cls(trust_kernels(SegmentationEngine(settings, clip, text, chosen)))

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes; a label map holds their positions."""
        return self.engine.text.vocabulary

    def segment(self, image: ImageLike, regions: RegionMap | np.ndarray | None = None) -> Segmentation:
        """Label one image.

        Args:
            image: A path or the bytes of an image file; a PIL image, which gets the mask of its file (turned upright by
                its EXIF orientation, first frame, transparency on white); or uint8 RGB pixels [height, width, 3], which
                are taken as they are.
            regions: Its regions, whole numbers [height, width], 0 for none; used as the configuration's `regions` say.

        Raises:
            ImageError: The image cannot be decoded, the array is no RGB picture, or the regions do not fit it.
        """
        return self.segment_batch([image], None if regions is None else [regions])[0]

    def segment_batch(
        self, images: Sequence[ImageLike], regions: Sequence[RegionMap | np.ndarray | None] | None = None
    ) -> list[Segmentation]:
        """Label several images in one go, with their regions where there are any; each gets what it would get alone."""
        limit = self.engine.config.max_pixels
        maps = None if regions is None else [_as_regions(own) for own in regions]
        return self.engine.segment([_as_pixels(image, limit) for image in images], maps)


def _choose_device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; give cpu, or cuda where there is a GPU") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"the device is {device!r}, but torch finds no GPU here; leave it out, or give cpu")
    return device


def as_vocabulary(source: Sequence[str] | str | Path | Vocabulary) -> Vocabulary:
    """Return a vocabulary from one, or from what `Vocabulary.load` takes."""
    return source if isinstance(source, Vocabulary) else Vocabulary.load(source)


def encode_words(
    clip: ClipModel,
    config: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: Mapping[str, Sequence[str]] | None = None,
    device: str | torch.device = "cpu",
) -> EncodedVocabulary:
    """Encode the text side of a run: phrases, descriptions, and what purification reads beside them."""
    purification = config.purification
    distractors = load_distractors(vocabulary.phrases) if purification.needs_distractors else []
    prompts = CAR_PROMPTS if purification.in_rounds else ()
    encoder = TextEncoder(clip, device)
    return encode_vocabulary(encoder, vocabulary, descriptions, distractors, prompts)


def _as_regions(regions: RegionMap | np.ndarray | None) -> RegionMap | None:
    return RegionMap.of_array(regions) if isinstance(regions, np.ndarray) else regions


def _as_pixels(image: ImageLike, max_pixels: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ImageError(
                f"pixels of type {image.dtype} and shape {image.shape} are no picture; give uint8 RGB "
                "[height, width, 3]"
            )
        return image
    if isinstance(image, Image.Image):
        return picture_to_rgb(image, max_pixels)
    return decode_image(image if isinstance(image, bytes) else Path(image).read_bytes(), max_pixels)
