"""The readers of untrusted files, each with its limits set low and with what must hold of all it returns."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast
from unittest import mock

import numpy as np

from ovss_core.clip.weights import check_weight_file, load_clip, load_tokenizer
from ovss_core.config import ModelConfig
from ovss_core.evaluation import decode_labels
from ovss_core.images.decode import decode_image
from ovss_core.vocabulary import Vocabulary
from pipelines.preflight import read_descriptions
from pipelines.sources.tar_stream import ImageFields, TarEnd, TarImage, stream_tar
from tests.fuzz import seeds
from tests.fuzz.campaign import Target
from tests.fuzz.checksums import mend_png, mend_tar
from tests.fuzz.runs import MAX_BYTES, MAX_PIXELS, require, run_targets
from tests.pipelines.test_tar_stream import pipe
from tests.tiny import register_tiny_models

_MODEL = "minute-ViT-8"


def load_targets(folder: Path) -> list[Target]:
    """Build all targets.

    Args:
        folder: An empty one, where damaged files are put for readers that want a path.
    """
    return [
        Target("images", seeds.image_files(), _check_image, mend_png),
        Target("masks", seeds.mask_files(), _check_mask, mend_png),
        Target("tar", seeds.tar_files(), _check_tar, mend_tar),
        *_word_targets(folder),
        _weights(folder),
        *run_targets(folder),
    ]


def load_for_campaign(folder: Path) -> Sequence[Target]:
    """Build all targets in a process that does nothing else: what is written need not outlast a power cut there."""
    warnings.simplefilter("ignore")
    mock.patch("pipelines.transport.local._sync", return_value=None).start()
    return load_targets(folder)


def _check_image(name: str, data: bytes) -> None:
    pixels = decode_image(data, MAX_PIXELS)
    require(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, f"pixels {pixels.shape}")
    require(0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS, f"{pixels.shape} is beyond the limit")


def _check_mask(name: str, data: bytes) -> None:
    values = decode_labels(data, MAX_PIXELS)
    require(values.ndim == 2 and 0 < values.size <= MAX_PIXELS, f"labels {values.shape}")
    require(values.dtype in (np.uint8, np.uint16), f"labels of {values.dtype}")


def _check_tar(name: str, data: bytes) -> None:
    """Read a shard thrice: its images and their order depend neither on what is wanted nor on seeking."""
    items = _items(data)
    *images, end = items
    require(isinstance(end, TarEnd) and end.images == len(images), "the end does not count the images")
    for image in images:
        require(isinstance(image, TarImage), "an end before the end")
        if isinstance(image, TarImage) and image.data is not None:
            require(len(image.data) == image.length <= MAX_BYTES, f"{image.key} has other bytes than it says")
    keys = [_key(item) for item in items]
    require(len(set(keys)) == len(keys), "a key comes twice")
    require(keys == [_key(item) for item in _items(data, lambda key: False)], "keys depend on what is wanted")
    piped = list(stream_tar(pipe(data), ImageFields(), MAX_BYTES))
    require(keys == [_key(item) for item in piped], "keys depend on whether the shard can be sought in")


def _items(data: bytes, wanted: Callable[[str], bool] = lambda key: True) -> list[TarImage | TarEnd]:
    return list(stream_tar(io.BytesIO(data), ImageFields(), MAX_BYTES, wanted))


def _key(item: TarImage | TarEnd) -> str | None:
    return item.key if isinstance(item, TarImage) else None


def _word_targets(folder: Path) -> list[Target]:
    """Build the targets whose words must be stored, hashed and turned into tokens."""
    tokenizer = load_tokenizer(ModelConfig("demo"))

    def check_vocabulary(name: str, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        vocabulary = Vocabulary.from_file(path)
        stored = json.dumps(vocabulary.to_dict(), ensure_ascii=False).encode()
        require(Vocabulary.from_dict(json.loads(stored)) == vocabulary, "the vocabulary is stored as another")
        require(len(vocabulary.content_hash) == 64, "no hash")
        tokenizer(vocabulary.phrases)

    def check_descriptions(name: str, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        sentences = cast(dict[str, list[str]], read_descriptions(str(path)))
        json.dumps(sentences, ensure_ascii=False).encode()
        tokenizer([sentence for group in sentences.values() for sentence in group] or [""])

    return [
        Target("vocabularies", seeds.vocabulary_files(), check_vocabulary),
        Target("descriptions", seeds.description_files(), check_descriptions),
    ]


def _weights(folder: Path) -> Target:
    """Build the target of weight files, read for a model that is as small as one can be."""
    register_tiny_models()
    state = load_clip(ModelConfig(_MODEL, "random")).model.state_dict()

    def check(name: str, data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        check_weight_file(ModelConfig(_MODEL, str(path)))

    return Target("weights", seeds.weight_files(state), check)
