"""Load a CLIP: build the architecture, fill it from a tag, a file, the demo model or seeded random numbers.

Weights are data here: none of the formats runs code when it is read (`weight_files`).
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ovss_core.clip.architectures import architectures_like, find_architecture, is_place, open_clip_name
from ovss_core.clip.demo import demo_weights_path, register_demo_model
from ovss_core.clip.torchscript import is_torchscript
from ovss_core.clip.weight_files import (
    choose_wanted,
    describe_names,
    digest_tensors,
    foreign_names,
    plain_names,
    read_tensors,
    require_finite,
)
from ovss_core.clip.weight_sources import WeightSource, resolve_weights
from ovss_core.config import ModelConfig
from ovss_core.errors import WeightsError

RANDOM_SEED = 0


@dataclass(frozen=True)
class ClipModel:
    """A loaded CLIP.

    Attributes:
        model: The open_clip model, float32, evaluation mode, without gradients, on the CPU.
        tokenizer: Turns phrases into token ids.
        image_mean: Channel means of the pixel normalization, RGB, for pixels in [0, 1].
        image_std: Channel standard deviations.
        config: What was asked for.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    config: ModelConfig

    @property
    def context_length(self) -> int:
        """Tokens that the text tower reads."""
        return int(getattr(self.model, "context_length", 77))

    def weights_hash(self) -> str:
        """Return the SHA-256 over all weights by name, type and bytes; the file format does not count."""
        return digest_tensors(self.model.state_dict())


def load_clip(config: ModelConfig) -> ClipModel:
    """Load both towers of the CLIP that `config` names.

    Raises:
        ModelError: The architecture is unknown, its image tower is no plain ViT, or its text tower needs a package.
        WeightsError: The weights cannot be found, downloaded or read, do not fit the architecture, or are not finite.
    """
    name, source, place = _resolve(config)
    if source == "random":
        model = _create_random(name, config.quick_gelu)
    elif source == "file":
        model = _create_from_file(name, Path(place), config.quick_gelu)
    else:
        model = _create_from_tag(name, None if source == "folder" else place, config.quick_gelu)
    visual = model.visual
    return ClipModel(
        model=model.eval().requires_grad_(False),
        tokenizer=load_tokenizer(config),
        image_mean=_triple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN),
        image_std=_triple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD),
        config=config,
    )


def load_tokenizer(config: ModelConfig) -> Callable[[list[str]], Tensor]:
    """Return what turns phrases into the token ids of a model's text tower.

    Raises:
        WeightsError: It is one of Hugging Face's, and cannot be downloaded.
    """
    register_demo_model()
    name = open_clip_name(config.name)
    try:
        tokenizer = _make_tokenizer(name) if is_place(name) else _kept_tokenizer(name)
    except Exception as error:  # the hub's client raises what it likes
        raise WeightsError(
            f"cannot download the tokenizer of {config.name} ({_first_line(error)}); connect to the internet once, or "
            "choose a model with CLIP's own text tower such as ViT-B-16"
        ) from error
    return tokenizer


def _make_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(name)
    return tokenizer


_kept_tokenizer = lru_cache(maxsize=4)(_make_tokenizer)
"""The merges of 49,000 tokens take longer to read than a small tower to load; what a folder or the hub holds may change."""


def check_weight_file(config: ModelConfig) -> None:
    """Read the weights that a user gave as a file, and throw them away again: `load_clip` would take them.

    Tags, random weights and those that ship with ovss are not looked at. The architecture's tensors are only
    described, not made, so that this costs one reading of the file.

    Raises:
        ModelError, WeightsError: As `load_clip`.
    """
    name, source, place = _resolve(config)
    if source == "file" and Path(place) != demo_weights_path():
        with torch.device("meta"):
            wanted = _create_quietly(name, False, "meta").state_dict()
        _fitting_tensors(name, Path(place), wanted)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _resolve(config: ModelConfig) -> tuple[str, WeightSource, str]:
    """Return the architecture as open_clip calls it and where its weights are, or refuse before any download."""
    register_demo_model()
    find_architecture(config.name)
    return open_clip_name(config.name), *resolve_weights(config.name, config.pretrained)


def _create(name: str, quick_gelu: bool, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_clip.create_model(name, force_quick_gelu=quick_gelu, **options)


def _create_quietly(name: str, quick_gelu: bool, device: str = "cpu") -> Any:
    """Create a model without open_clip's warning that it has no weights."""
    level = logging.root.level
    logging.disable(logging.WARNING)
    try:
        return _create(name, quick_gelu, device=device)
    finally:
        logging.disable(logging.NOTSET)
        logging.root.setLevel(level)


def _create_random(name: str, quick_gelu: bool | None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return _create_quietly(name, bool(quick_gelu))


def _create_from_tag(name: str, tag: str | None, quick_gelu: bool | None) -> Any:
    """Download weights by their tag, or, where it is None, those that belong to a hub's or a folder's model."""
    settings = (open_clip.get_pretrained_cfg(name, tag) if tag else None) or {}
    quick = settings.get("quick_gelu", False) if quick_gelu is None else quick_gelu
    try:
        path = Path(open_clip.download_pretrained(settings)) if tag else None
        if path is not None and is_torchscript(
            path
        ):  # OpenAI's own files, where the hub's copies are out of reach
            return _create_from_file(name, path, quick)
        model = _create(name, quick, pretrained=tag, require_pretrained=True)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"cannot download the weights {tag or 'that belong to it'!r} of {name} ({_first_line(error)}); connect to "
            "the internet once, or copy the file here and give --pretrained PATH, or try the small model that ships "
            "with ovss: --model demo"
        ) from error
    require_finite(f"{name} {tag or ''}".strip(), model.state_dict())
    return model


class _Undrawn(TorchFunctionMode):
    """Make modules without drawing random numbers for them: the file has every tensor, and to draw takes longer than to read."""

    _DRAWING = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _create_from_file(name: str, path: Path, quick_gelu: bool | None) -> Any:
    quick = is_torchscript(path) if quick_gelu is None else quick_gelu  # OpenAI's models have that activation
    with torch.random.fork_rng(devices=[]), _Undrawn():
        model = _create_quietly(name, quick)
    model.load_state_dict(_fitting_tensors(name, path, model.state_dict()))
    return model


def _fitting_tensors(name: str, path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a file's tensors under the architecture's names; all are there, of its shapes, and finite."""
    tensors = plain_names(read_tensors(path), wanted)
    chosen = choose_wanted(tensors, wanted)
    wrong = [key for key in wanted if key not in chosen or chosen[key].shape != wanted[key].shape]
    if wrong:
        raise WeightsError(
            f"{path} does not hold the weights of {name}: {len(wrong)} of {len(wanted)} tensors are missing or of "
            f"another shape, first {wrong[0]!r}; {_what_they_are(tensors, len(chosen) / len(wanted))}"
        )
    require_finite(path, chosen)
    return chosen


def _what_they_are(tensors: Mapping[str, Tensor], known: float) -> str:
    """Advise on tensors that do not fill an architecture, of whose names they have the share `known`."""
    foreign = foreign_names(list(tensors))
    if foreign:
        return f"its tensors have {foreign}"
    if known < 0.5:
        return describe_names(list(tensors))
    like = architectures_like({key: tuple(value.shape) for key, value in tensors.items()})
    advice = "give the architecture of these weights as --model"
    return f"{advice}, such as {like[0]}" if like else advice


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
