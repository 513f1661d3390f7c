"""Find, read and check CLIP weights: open_clip tags, state dicts, safetensors, OpenAI archives, the demo model.

Weights are data here: state dicts are read with `weights_only`, safetensors hold no code, and a TorchScript
archive is opened only where the user named its path.
"""

import hashlib
import logging
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovss_core.config import ModelConfig
from ovss_core.demonstration import DEMO_ARCHITECTURE, demo_weights_path, register_demo_model
from ovss_core.errors import ModelError, WeightsError

RANDOM = "random"
RANDOM_SEED = 0
_ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class ClipModel:
    """A loaded CLIP.

    Attributes:
        model: The open_clip model, float32, evaluation mode, without gradients, on the CPU.
        tokenizer: Turns phrases into token ids.
        image_mean: Channel means of the pixel normalisation, RGB, for pixels in [0, 1].
        image_std: Channel standard deviations.
        config: What was asked for.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    config: ModelConfig

    def weights_hash(self) -> str:
        """Return the SHA-256 over all weights by name, type and bytes; the file format does not count."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_clip(config: ModelConfig) -> ClipModel:
    """Load both towers of the CLIP that `config` names.

    Raises:
        ModelError: The architecture is unknown, or its image tower is no plain ViT.
        WeightsError: The weights cannot be found, downloaded or read, or do not fit the architecture.
    """
    name, pretrained = _resolve_demo(config)
    _require_vit(name)
    archive = Path(pretrained)
    if pretrained == RANDOM:
        model = _create_random(name, config.quick_gelu)
    elif archive.is_file():
        model = _create_from_file(name, archive, config.quick_gelu)
    else:
        model = _create_from_tag(name, pretrained, config.quick_gelu)
    visual = model.visual
    return ClipModel(
        model=model.eval().requires_grad_(False),
        tokenizer=open_clip.get_tokenizer(name),
        image_mean=_triple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN),
        image_std=_triple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD),
        config=config,
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _resolve_demo(config: ModelConfig) -> tuple[str, str]:
    """Return architecture and weights, with the demonstration model's in place of its short name."""
    if config.name not in ("demo", DEMO_ARCHITECTURE):
        return config.name, config.pretrained
    register_demo_model()
    keeps_own = config.pretrained == RANDOM or Path(config.pretrained).is_file()
    return DEMO_ARCHITECTURE, config.pretrained if keeps_own else str(demo_weights_path())


def _require_vit(name: str) -> None:
    """Refuse, before anything is downloaded, an architecture that is unknown or not a plain ViT."""
    if ":" in name:
        return
    architecture = open_clip.get_model_config(name.replace("/", "-"))
    if architecture is None:
        raise ModelError(
            f"unknown architecture {name!r}; give an open_clip ViT such as ViT-B-16, ViT-B-32 or ViT-L-14, or demo"
        )
    vision = architecture["vision_cfg"]
    if "timm_model_name" in vision:
        raise ModelError(
            f"{name} has a timm image tower ({vision['timm_model_name']}); choose a plain ViT such as ViT-B-16"
        )
    if isinstance(vision.get("layers"), list):
        raise ModelError(
            f"{name} has a ResNet image tower, which has no class token and no attention blocks to purify; "
            "choose a ViT such as ViT-B-16, ViT-B-32 or ViT-L-14"
        )


def _create(name: str, quick_gelu: bool, pretrained: str | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick_gelu)


def _create_random(name: str, quick_gelu: bool | None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        level = logging.root.level
        logging.disable(logging.WARNING)
        try:
            return _create(name, bool(quick_gelu))
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)


def _create_from_tag(name: str, tag: str, quick_gelu: bool | None) -> Any:
    tags = [] if ":" in name else open_clip.list_pretrained_tags_by_model(name)
    if ":" not in name and tag not in tags:
        raise WeightsError(
            f"--pretrained {tag!r} is neither a file nor a weight tag of {name}; give the path of a state dict, "
            f"a safetensors file or an OpenAI archive, or one of: {', '.join(tags) or 'no tag is known for it'}"
        )
    settings = (None if ":" in name else open_clip.get_pretrained_cfg(name, tag)) or {}
    try:
        return _create(name, settings.get("quick_gelu", False) if quick_gelu is None else quick_gelu, tag)
    except Exception as error:
        raise WeightsError(
            f"cannot download the weights {tag!r} of {name} ({_first_line(error)}); connect to the internet once, or "
            "copy the file here and give --pretrained PATH, or try the small model that ships with ovss: --model demo"
        ) from error


def _create_from_file(name: str, path: Path, quick_gelu: bool | None) -> Any:
    state, is_archive = _read_state(path)
    model = _create_random(name, is_archive if quick_gelu is None else quick_gelu)
    wanted = model.state_dict()
    for key, value in state.items():
        if key in wanted and wanted[key].ndim != value.ndim and wanted[key].numel() == value.numel():
            state[key] = value.reshape(wanted[key].shape)
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if wrong:
        raise WeightsError(
            f"{path} does not hold the weights of {name}: {len(wrong)} of {len(wanted)} tensors are missing or of "
            f"another shape, first {wrong[0]!r}; give the architecture of these weights as --model"
        )
    model.load_state_dict({key: state[key] for key in wanted})
    return model


def _read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors of a weight file by name, and whether it is a TorchScript archive."""
    try:
        if path.suffix == ".safetensors":
            return _strip_prefix(load_file(path)), False
        if _is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
            return {key: value for key, value in state.items() if key not in _ARCHIVE_EXTRAS}, True
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(_unreadable(path, error)) from error
    except Exception as error:  # torch raises pickle's own error for a file that is more than tensors
        raise WeightsError(_unreadable(path, error)) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), PATH)")
    return _strip_prefix(state), False


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"cannot read weights from {path}: {_first_line(error)}; give a state dict (tensors only), a .safetensors "
        "file or an OpenAI TorchScript archive"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.split("/")[1:2] == ["constants.pkl"] for entry in archive.namelist())


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the "module." that data-parallel training leaves in front of names."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
