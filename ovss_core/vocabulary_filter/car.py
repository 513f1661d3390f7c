"""CaR's rounds: a mask and a picture for each word, until no word leaves.

"CLIP as RNN: Segment Countless Visual Concepts without Training Endeavor" (CVPR 2024). Its masks, pictures, scores and
rounds are built. What is not, or is otherwise:

- a second, larger CLIP as judge: this tower judges as well, with its last block, unless the settings leave that out as
  the released code does;
- the dense CRF and CaR's own labels: the host's scores of the words that are left make the masks;
- the list of background words: the phrases of the vocabulary's background class compete in their place;
- two passes, over things and over stuff: there is one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.config import CarConfig
from ovss_core.images.resize import normalize, resize_bilinear
from ovss_core.vocabulary_filter.activation import Sight, activation_maps, masks_of_words, spread_boxes
from ovss_core.vocabulary_filter.judging import encode_pictures, score_words, those_that_stay
from ovss_core.vocabulary_filter.visual_prompts import prompt_picture

MASKS_AT_ONCE = 32
"""Masks of a picture's size that are held at once."""


@dataclass(frozen=True)
class FilterWords:
    """The words of a vocabulary as CaR reads them; unit vectors, float32.

    Attributes:
        classes: Class of each word, ascending, without the background.
        words: Each class in each of `ovss_core.clip.text.CAR_PROMPTS`, the mean of its phrases: the first, the bare name,
            for the maps of the first round, the second for later ones, and all but the first for the judge.
        background: The phrases of the background class in the same prompts.
    """

    classes: tuple[int, ...]
    words: Float[Tensor, "prompts words features"]
    background: Float[Tensor, "prompts others features"]

    @classmethod
    def of(
        cls,
        phrases: Float[Tensor, "prompts phrases features"],
        phrase_class: np.ndarray,
        background: int | None,
    ) -> "FilterWords":
        """Average the phrases of each class.

        Args:
            phrases: Unit vectors of all phrases in each prompt.
            phrase_class: Class of each phrase.
            background: Class that is none of the words.
        """
        classes = tuple(index for index in np.unique(phrase_class).tolist() if index != background)
        means = [phrases[:, phrase_class == index].mean(1) for index in classes]
        words = torch.stack(means, 1) if means else phrases[:, :0]
        return cls(classes, F.normalize(words, dim=-1), phrases[:, phrase_class == background])


@dataclass(frozen=True)
class FilteredWords:
    """What became of the words of one image.

    Attributes:
        kept: Classes that stay, ascending.
        scores: The last score of every class: of the round it left in, or of the last one; nan for the background.
        history: Classes that each round judged, and their scores.
    """

    kept: tuple[int, ...]
    scores: Float[np.ndarray, " classes"]
    history: tuple[tuple[tuple[int, ...], Float[np.ndarray, "_words"]], ...]

    @property
    def rounds(self) -> int:
        """Rounds until no word left."""
        return len(self.history)

    @property
    def finite(self) -> bool:
        """Whether all scores were numbers."""
        return all(np.isfinite(scores).all() for _, scores in self.history)


@dataclass
class _Image:
    """An image on its way through the rounds: what is seen of it, its words that are left, what was decided."""

    sight: Sight
    picture: UInt8[np.ndarray, "height width 3"]
    left: list[int]
    history: list[tuple[tuple[int, ...], Float[np.ndarray, "_words"]]] = field(default_factory=list)


class WordFilter:
    """Filters the words of many images, round by round; the pictures of a round are encoded in full batches.

    Args:
        config: Thresholds and prompts.
        words: The vocabulary.
        count: Its classes, the background among them.
        encoder: Draws the masks and judges the pictures.
        normalization: Mean and standard deviation of the tower's pixels.
        scale: Factor on cosines.
        box_threshold: Share of a map's peak above which a patch belongs to a part.
        batch: Pictures encoded at once.
    """

    def __init__(
        self,
        config: CarConfig,
        words: FilterWords,
        count: int,
        encoder: ImageEncoder,
        normalization: tuple[Sequence[float], Sequence[float]],
        scale: float,
        box_threshold: float,
        batch: int,
    ) -> None:
        self._config = config
        self._words = words
        self._count = count
        self._encoder = encoder
        self._normalization = tuple(normalization[0]), tuple(normalization[1])
        self._scale = scale
        self._box_threshold = box_threshold
        self._batch = batch

    def filter(self, pictures: Sequence[UInt8[Tensor, "_height _width 3"]]) -> list[FilteredWords]:
        """Decide which words each image keeps.

        Args:
            pictures: RGB, of any sizes of at least one pixel.
        """
        arrays = [picture.cpu().numpy() for picture in pictures]
        every = list(range(len(self._words.classes)))
        images = [_Image(self.look(picture), picture, list(every)) for picture in arrays]
        running = images if every else []
        while running:
            drawn = (shown for image in running for shown in self._pictures_of(image))
            features = self._encode(drawn).split([len(image.left) for image in running])
            running = [image for image, own in zip(running, features, strict=True) if self._judge(image, own)]
        return [self._outcome(image) for image in images]

    def _pictures_of(self, image: "_Image") -> Iterator[UInt8[np.ndarray, "side _side 3"]]:
        return self.pictures(image.sight, image.picture, image.left, len(image.history))

    def _judge(self, image: "_Image", features: Float[Tensor, "words features"]) -> bool:
        """Let the words of an image leave by their pictures; returns whether another round follows."""
        texts = self._words.words[1:, image.left]
        scores = score_words(features, texts, self._scale, self._config.gain)
        image.history.append((self._classes(image.left), scores.double().cpu().numpy()))
        stays = those_that_stay(scores, self._config.threshold).tolist()
        before = len(image.left)
        image.left = [word for word, kept in zip(image.left, stays, strict=True) if kept]
        return bool(scores.isfinite().all()) and len(image.left) < before

    def _outcome(self, image: "_Image") -> FilteredWords:
        table = np.full(self._count, np.nan)
        for classes, scores in image.history:
            table[list(classes)] = scores
        return FilteredWords(self._classes(image.left), table, tuple(image.history))

    def look(self, picture: UInt8[np.ndarray, "height width 3"]) -> Sight:
        """Run the tower over a whole picture, its sides rounded up to whole patches."""
        patch = self._encoder.patch_size
        height, width = (-(-side // patch) * patch for side in picture.shape[:2])
        fitted = torch.from_numpy(resize_bilinear(picture, (height, width)).copy()).to(self._encoder.device)
        return Sight.of(self._encoder, normalize(fitted[None], *self._normalization))

    def maps(self, sight: Sight, words: Sequence[int], done: int) -> Float[Tensor, "words patches"]:
        """Draw the maps of some words after so many rounds, cut to their boxes and spread."""
        prompt = min(done, 1)
        given, scale = self._words, self._scale
        own = given.words[prompt, list(words)]
        maps = activation_maps(self._encoder, sight, own, given.background[prompt], scale)
        return spread_boxes(maps, sight, self._box_threshold)

    def pictures(
        self, sight: Sight, picture: np.ndarray, words: Sequence[int], done: int
    ) -> Iterator[UInt8[np.ndarray, "side _side 3"]]:
        """Yield the picture of each word, squeezed to what the tower was trained on."""
        rows, columns = self._encoder.base_grid
        size = rows * self._encoder.patch_size, columns * self._encoder.patch_size
        for maps in self.maps(sight, words, done).split(MASKS_AT_ONCE):
            masks = masks_of_words(maps, sight.grid, (picture.shape[0], picture.shape[1]))
            there = (masks > self._config.mask_threshold).cpu().numpy()
            for shown in prompt_picture(picture, there, self._config.prompt):
                yield resize_bilinear(shown, size)

    def _encode(self, pictures: Iterator[np.ndarray]) -> Float[Tensor, "pictures features"]:
        """Encode the pictures of all images of a round in full batches, while they are drawn."""
        found, waiting = [], []
        for picture in pictures:
            waiting.append(torch.from_numpy(picture))
            if len(waiting) == self._batch:
                found.append(self._features(waiting))
                waiting = []
        if waiting:
            found.append(self._features(waiting))
        return torch.cat(found)

    def _features(self, pictures: Sequence[Tensor]) -> Float[Tensor, "pictures features"]:
        given = torch.stack(tuple(pictures))
        return encode_pictures(self._encoder, given, self._normalization, self._config.last_block)

    def _classes(self, words: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._words.classes[word] for word in words)
