"""Weight files read as data, and their names brought to those of the architecture that is to be filled.

State dicts are read with torch's `weights_only`, safetensors hold no code, and TorchScript archives are taken apart
without executing them (`torchscript`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovss_core.clip.torchscript import ArchiveError, is_torchscript, read_torchscript
from ovss_core.clip.weight_sources import is_safetensors, require_weight_file, unreadable
from ovss_core.errors import WeightsError

_LONGEST_REASON = 300
_ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_WRAPPERS = ("module", "_orig_mod")
"""Components that data-parallel training and torch.compile put into names, at any depth."""
_NEUTRAL = frozenset(
    {"state_dict", "model_state_dict", "model", "module", "net", "network", "clip", "clip_model"}
)
"""Words of prefixes that mean the model itself, not a copy such as an average or a teacher."""
_FOREIGN = (
    (
        r"(^|\.)(vision_model|text_model)\.",
        "the names of Hugging Face transformers; take the file that open_clip wrote "
        "(open_clip_model.safetensors, open_clip_pytorch_model.bin), which most repositories hold beside it",
    ),
    (
        r"lora_[AB]\b|\blora_(up|down)\b",
        "the names of a LoRA adapter, which changes a model and is none; merge it into "
        "its model and save that",
    ),
    (
        r"^(visual\.)?(trunk\.)?blocks\.\d+\.attn\.qkv\.",
        "the names of a timm image tower; choose a plain CLIP ViT",
    ),
    (r"^(visual\.)?layer4\.", "the names of a ResNet; choose a plain CLIP ViT"),
    (
        r"^(class_embedding|conv1\.weight|ln_pre\.)",
        "the names of an image tower alone; save the whole CLIP, with its text tower",
    ),
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.", "the names of a diffusion model"),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file by name.

    Dictionaries within dictionaries give dotted names, so that ``{"state_dict": {"logit_scale": ...}}`` reads as
    ``state_dict.logit_scale``; values that are no tensors are left out.

    Raises:
        WeightsError: The file cannot be read, would run code, or holds no tensor.
    """
    require_weight_file(path)
    with path.open("rb") as file:
        start = file.read(16)
    try:
        if is_safetensors(start):
            return load_file(path)
        if is_torchscript(path):
            tensors = read_torchscript(path)
            return {key: value for key, value in tensors.items() if key not in _ARCHIVE_EXTRAS}
    except (SafetensorError, ArchiveError, OSError, RuntimeError) as error:
        raise WeightsError(unreadable(path, _first_line(error))) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's own errors for a file that is more than tensors
        raise WeightsError(unreadable(path, _why_not_loaded(error))) from error
    tensors = dict(_flatten("", loaded)) if isinstance(loaded, dict) else {}
    if not tensors:
        raise WeightsError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), PATH)")
    return tensors


def plain_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the prefixes of wrappers (data-parallel, compiled, Lightning, ``{"model": ...}``) off tensors' names.

    Args:
        tensors: As read from a file.
        wanted: An architecture's own tensors; what stands before the most of their names is a prefix.

    Raises:
        WeightsError: The file holds several models of this architecture, and nothing says which one is meant.
    """
    plain = {_without_wrappers(key): value for key, value in tensors.items()}
    prefix = _choose_prefix(plain, wanted)
    return {key[len(prefix) :]: value for key, value in plain.items() if key.startswith(prefix)}


def choose_wanted(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choose the tensors that an architecture asks for, as many as there are.

    Numbers that are folded otherwise (a scalar as a vector of one) get the wanted axes.
    """
    chosen = {}
    for key, target in wanted.items():
        if key in tensors:
            value = tensors[key]
            folded = value.ndim != target.ndim and value.numel() == target.numel()
            chosen[key] = value.reshape(target.shape) if folded else value
    return chosen


def foreign_names(names: list[str]) -> str | None:
    """Say whose names a file's tensors have, or None where they are not known to be another library's."""
    return next(
        (meaning for pattern, meaning in _FOREIGN if any(re.search(pattern, name) for name in names)), None
    )


def describe_names(names: list[str]) -> str:
    """Describe the names of tensors that fit nothing."""
    heads = list(dict.fromkeys(name.split(".")[0] for name in names))
    return (
        f"its {len(names)} tensors have names such as {', '.join(map(repr, names[:2]))} (they begin with "
        f"{', '.join(heads[:4])}); give a CLIP as open_clip or OpenAI saves it"
    )


def require_finite(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        WeightsError: Naming the first such tensor.
    """
    spoiled = [
        key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if spoiled:
        more = f" and {len(spoiled) - 1} more tensors" if len(spoiled) > 1 else ""
        raise WeightsError(
            f"{path} holds NaN or infinity in {spoiled[0]!r}{more}, so that every mask would be wrong; take weights "
            "from before the training diverged"
        )


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over tensors by name, type and bytes; the file that held them does not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(f"{name}.{key}" if name else str(key), entry)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _choose_prefix(names: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Find what stands before the wanted names: of several copies the most complete, then the plainest."""
    found: Counter[str] = Counter()
    for name in names:
        for cut in _cuts(name):
            if name[cut:] in wanted:
                found[name[:cut]] += 1
    if not found:
        return ""
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    plain = [prefix for prefix in best if set(prefix.split(".")[:-1]) <= _NEUTRAL] or best
    if len(plain) > 1 and "" not in plain:
        raise WeightsError(
            f"the file holds several models ({', '.join(sorted(prefix.rstrip('.') for prefix in plain)[:4])}); save the "
            "one that is meant with torch.save(model.state_dict(), PATH)"
        )
    return "" if "" in plain else plain[0]


def _cuts(name: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _why_not_loaded(error: Exception) -> str:
    """Say in own words why torch could not load a file; its own text is a page with color codes."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]{1,80})", text)
    if named:
        return (
            f"it is a pickled object ({named[1]}), which would run code, not a state dict; save the weights alone with "
            "torch.save(model.state_dict(), PATH)"
        )
    if (
        isinstance(error, EOFError | UnicodeDecodeError)
        or "PytorchStreamReader" in text
        or "unexpected EOF" in text
    ):
        return "it is damaged, or its end is missing; copy or download it again"
    if "Weights only load failed" in text or "Invalid magic number" in text or "invalid load key" in text:
        return "it is no file of PyTorch's, or it is damaged"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:_LONGEST_REASON] if text else type(error).__name__
