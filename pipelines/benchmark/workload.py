"""What is measured: pictures, a model, and vocabularies of any size."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import ClipModel, load_clip
from ovss_core.config import PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import StorageError
from ovss_core.images.decode import decode_image
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from pipelines.benchmark.options import BenchmarkConfig
from pipelines.demonstration.scenes import render_scene
from pipelines.run.compute import pick_device, use_threads

SCENE_SIZE = (375, 500)
NULL_PHRASES = 150
PRESENT_CLASSES = 24
WINDOWS = {
    "sfp": WindowConfig(size=224, stride=112, short_side=336),
    "freecp": WindowConfig(size=384, stride=112, short_side=448),
}


@dataclass(frozen=True)
class Workload:
    """Pictures and a model, loaded once for all measurements.

    Attributes:
        files: The pictures as JPEG bytes.
        pictures: The same, decoded.
        embeddings: Class vectors [1200 or more, features]; any prefix is a vocabulary.
        null: Distractor vectors.
    """

    config: BenchmarkConfig
    clip: ClipModel
    files: list[bytes]
    pictures: list[np.ndarray]
    embeddings: torch.Tensor
    null: torch.Tensor

    @property
    def device(self) -> str:
        """Where to compute."""
        return pick_device(self.config.device or "auto")

    def text(self, classes: int) -> EncodedVocabulary:
        """Return a vocabulary of the first `classes` vectors."""
        names = tuple(VocabularyClass(f"class {index}", (f"class {index}",)) for index in range(classes))
        rows = self.embeddings[:classes]
        return EncodedVocabulary(Vocabulary(names), rows, rows, self.null, "benchmark")

    def engine(self, host: str, purify: str, classes: int, windows: str = "sfp") -> SegmentationEngine:
        """Build an engine of the given host, purification, vocabulary size and window protocol."""
        config = SegmenterConfig(
            model=self.config.model,
            host=host,
            windows=WINDOWS[windows],
            purification=PurificationConfig(method="freecp" if purify == "freecp" else "none"),
            window_batch=self.config.window_batch,
        )
        return SegmentationEngine(config, self.clip, self.text(classes), self.device)


def load_workload(config: BenchmarkConfig) -> Workload:
    """Load the model and the pictures.

    Class vectors lie near mean-removed dense features of the pictures for the first classes, so that maps have
    shape and classes are kept, and are random for the rest, which are absent.

    Raises:
        StorageError: The folder holds no picture.
    """
    use_threads(config.threads)
    files = picture_files(config.images, config.image_count)
    clip = load_clip(config.model)
    width = int(clip.model.visual.output_dim)
    generator = torch.Generator().manual_seed(0)
    count = max(*config.vocabularies, 1200)
    vectors = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    null = F.normalize(torch.randn(NULL_PHRASES, width, generator=generator), dim=-1)
    bare = Workload(config, clip, files, decode_pictures(files), vectors, null)
    engine = bare.engine("clearclip", "none", 21)
    encoded = [engine.encode(wave).features.flatten(0, 1) for wave in engine.gather(bare.pictures[:2])]
    features = torch.cat(encoded).cpu()
    chosen = features[torch.randint(len(features), (PRESENT_CLASSES,), generator=generator)]
    present = F.normalize(chosen - features.mean(0), dim=-1)
    near = F.normalize(present + 0.3 * vectors[:PRESENT_CLASSES], dim=-1)
    return replace(bare, embeddings=torch.cat([near, vectors[PRESENT_CLASSES:]]))


def decode_pictures(files: Sequence[bytes]) -> list[np.ndarray]:
    """Decode pictures one after the other."""
    return [decode_image(data, SegmenterConfig.max_pixels) for data in files]


def picture_files(folder: Path | None, count: int) -> list[bytes]:
    """Return `count` pictures as file bytes, repeated in order if the folder holds fewer."""
    if folder is None:
        return [_scene_file(seed) for seed in range(count)]
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise StorageError(
            f"{folder} holds no .jpg or .png picture; give a folder of photographs as --images"
        )
    return [paths[index % len(paths)].read_bytes() for index in range(count)]


def _scene_file(seed: int) -> bytes:
    height, width = SCENE_SIZE
    pixels = render_scene(seed, width).image
    top = random.Random(seed).randrange(width - height + 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels[top : top + height]).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
