"""What is known of an open_clip architecture before it is built: its patches, its depth, what its text tower needs.

Everything is read from the descriptions that open_clip keeps as JSON files beside its code, because importing
open_clip brings torch, which takes longer than a mistyped name should have to wait for its answer.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ovss_core.clip.demo import DEMO_ARCHITECTURE, demo_architecture_path
from ovss_core.errors import ModelError, nearest

DEMO = "demo"
LOCAL_FOLDER, HUB = "local-dir:", "hf-hub:"
_ADVICE = "choose a ViT such as ViT-B-16, ViT-B-32 or ViT-L-14, or demo"
_CUSTOM_BLOCKS = (
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)
_TEXT_PACKAGE = "transformers"
_TIMM_DEPTHS = {
    "tiny": 12,
    "small": 12,
    "base": 12,
    "large": 24,
    "so400m": 27,
    "giant": 40,
    "giantopt": 40,
    "gigantic": 50,
}
"""Blocks of timm's ViTs by the word for their size."""
_TIMM_FAMILIES = re.compile(
    r"vit_(?P<size>\w+?)_(?:patch(?P<patch>\d+)_siglip|mci)"
    r"|vit_pe_core_(?P<pe_size>[a-z]+)_patch(?P<pe_patch>\d+)"
    r"|vit_(?P<clip_size>[a-z]+)_patch(?P<clip_patch>\d+)_clip"
    r"|eva(?:02)?_(?P<eva_size>base|large|giant)_patch(?P<eva_patch>\d+)"
)
"""Families of timm's towers that `timm_tower` takes apart: SigLIP, MobileCLIP-B, PE-Core, CLIP and EVA."""
_NO_CLASS_TOKEN = re.compile(r"siglip|vit_pe_core_gigantic")
_STEM_PATCH = 16
"""Pixels of a patch of MobileCLIP-B, whose name does not tell."""


@dataclass(frozen=True)
class Architecture:
    """A CLIP whose image tower is a ViT that ovss can take apart.

    Attributes:
        name: As open_clip calls it.
        patch_size: Side of a patch, pixels.
        depth: Blocks of the image tower.
        context_length: Tokens that the text tower reads.
        class_token: Whether the image tower has one.
    """

    name: str
    patch_size: int
    depth: int
    context_length: int
    class_token: bool = True


def open_clip_name(name: str) -> str:
    """Return the name under which open_clip keeps an architecture; "demo" and slashes are ours to translate."""
    if name == DEMO:
        return DEMO_ARCHITECTURE
    return name if is_place(name) else name.replace("/", "-")


def is_place(name: str) -> bool:
    """Say whether a model is named by where its files lie, a folder or the hub: they may change, and no name of open_clip's is one."""
    return name.startswith((LOCAL_FOLDER, HUB))


def architecture_names() -> list[str]:
    """Return every architecture that open_clip knows, whether ovss can take it apart or not, and the demo's."""
    return sorted({*_known(), DEMO})


def find_architecture(name: str) -> Architecture | None:
    """Look an architecture up without building it.

    Returns:
        What is known of it, or None for one that only a hub describes (``hf-hub:``).

    Raises:
        ModelError: It is unknown, its image tower is no plain ViT, or its text tower needs a missing package.
    """
    if name.startswith(HUB):
        return None
    described = _local_folder(name) if name.startswith(LOCAL_FOLDER) else _registered(open_clip_name(name))
    if described is None:
        raise ModelError(
            f"unknown architecture {name!r}{nearest(name, architecture_names())}; give an open_clip ViT such as "
            "ViT-B-16, ViT-B-32 or ViT-L-14, or demo"
        )
    vision, text = described["vision_cfg"], described["text_cfg"]
    if "timm_model_name" in vision:
        found = _timm_architecture(name, vision["timm_model_name"], text)
        _require_text_package(name, text)
        return found
    _require_vit(name, vision)
    _require_text_package(name, text)
    return Architecture(
        open_clip_name(name),
        int(vision.get("patch_size", 16)),
        int(vision.get("layers", 12)),
        int(text.get("context_length", 77)),
    )


def architectures_like(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Name the architectures whose towers have the sizes of given weights.

    Args:
        shapes: Of tensors under open_clip's names.
    """
    blocks = {key.split(".")[3] for key in shapes if key.startswith("visual.transformer.resblocks.")}
    try:
        width, _, patch, _ = shapes["visual.conv1.weight"]
        sizes = width, patch, len(blocks), shapes["visual.proj"][1], shapes["token_embedding.weight"][1]
        side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5) * patch
    except (KeyError, IndexError, ValueError):
        return []
    found = []
    for name, described in _known().items():
        vision, text = described["vision_cfg"], described["text_cfg"]
        own = (vision.get("width"), vision.get("patch_size"), vision.get("layers"), described["embed_dim"])
        if (*own, text.get("width", 512)) == sizes and vision["image_size"] // patch * patch == side:
            found.append(name)
    return found


def weight_tags(name: str) -> list[str]:
    """Return the tags under which open_clip can download weights of an architecture; none where it knows none."""
    return list(_tags_by_architecture().get(open_clip_name(name), ()))


def _require_vit(name: str, vision: dict[str, Any]) -> None:
    if isinstance(vision.get("layers"), list):
        raise ModelError(
            f"{name} has a ResNet image tower, which has no class token and no attention blocks to purify; {_ADVICE}"
        )
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        pooling = "attention" if vision.get("attentional_pool") else vision["pool_type"]
        raise ModelError(f"the image tower of {name} pools by {pooling!r}, not by its class token; {_ADVICE}")
    if any(vision.get(key) not in (None, False, "default") for key in _CUSTOM_BLOCKS):
        raise ModelError(f"the blocks of the image tower of {name} differ from CLIP's; {_ADVICE}")
    if isinstance(vision.get("patch_size", 16), list):
        raise ModelError(f"the patches of {name} are not square; {_ADVICE}")
    if vision.get("layers", 12) < 2:
        raise ModelError(
            f"the image tower of {name} has a single block; dense heads need one below the last: {_ADVICE}"
        )


def _timm_architecture(name: str, tower: str, text: dict[str, Any]) -> Architecture:
    """Read patches, blocks and the class token out of the name of a timm tower.

    Raises:
        ModelError: It is of no family that can be taken apart.
    """
    found = _TIMM_FAMILIES.match(tower)
    parts = {
        key.rpartition("_")[2]: value for key, value in (found.groupdict() if found else {}).items() if value
    }
    depth = _TIMM_DEPTHS.get(parts.get("size", ""))
    if depth is None:
        raise ModelError(
            f"{name} has a timm image tower ({tower}) that ovss cannot take apart; choose a plain ViT such as ViT-B-16, or "
            "ViT-B-16-SigLIP2, PE-Core-B-16, EVA02-B-16 or MobileCLIP-B"
        )
    patch = int(parts.get("patch", _STEM_PATCH))
    has_class_token = _NO_CLASS_TOKEN.search(tower) is None
    return Architecture(
        open_clip_name(name), patch, depth, int(text.get("context_length", 77)), has_class_token
    )


def _require_text_package(name: str, text: dict[str, Any]) -> None:
    """Refuse a text tower or tokenizer of Hugging Face's where the package that reads it is not installed."""
    wanted = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if wanted and find_spec(_TEXT_PACKAGE) is None:
        raise ModelError(
            f"the text side of {name} ({wanted}) needs the package {_TEXT_PACKAGE}, which is not installed; "
            f"pip install {_TEXT_PACKAGE}, or choose a model with CLIP's own text tower such as ViT-B-16 or ViT-L-14"
        )


def _local_folder(name: str) -> dict[str, Any]:
    """Read the description in a folder given as ``local-dir:PATH``."""
    path = Path(name.removeprefix(LOCAL_FOLDER)) / "open_clip_config.json"
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} describes no architecture ({type(error).__name__}); give a folder as open_clip saves it, with "
            "open_clip_config.json"
        ) from error
    if not all(isinstance(described.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise ModelError(f"{path} lacks vision_cfg or text_cfg; give a folder as open_clip saves it")
    return described


def _known() -> dict[str, dict[str, Any]]:
    """Return the descriptions by name; a loaded open_clip is asked, for it may have been told of more."""
    if "open_clip" in sys.modules:
        factory = sys.modules["open_clip.factory"]
        registered = {name: factory.get_model_config(name) for name in factory.list_models()}
        return {DEMO_ARCHITECTURE: _read_json(demo_architecture_path()), **registered}
    return _shipped()


def _registered(name: str) -> dict[str, Any] | None:
    """Return one of `_known`: open_clip copies each description that it is asked for."""
    if "open_clip" not in sys.modules:
        return _shipped().get(name)
    if name == DEMO_ARCHITECTURE:
        return _read_json(demo_architecture_path())
    factory = sys.modules["open_clip.factory"]
    return factory.get_model_config(name) if name in factory.list_models() else None


@lru_cache(maxsize=1)
def _shipped() -> dict[str, dict[str, Any]]:
    files = sorted((_open_clip_folder() / "model_configs").glob("*.json"))
    return {path.stem: _read_json(path) for path in (demo_architecture_path(), *files)}


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _open_clip_folder() -> Path:
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ModelError("the package open_clip_torch is not installed; pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


def _tags_by_architecture() -> dict[str, list[str]]:
    if "open_clip" not in sys.modules and (listed := _listed_tags()):
        return listed
    import open_clip

    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return tags


@lru_cache(maxsize=1)
def _listed_tags() -> dict[str, list[str]]:
    """Read the tags out of the source of open_clip's table; empty where it is written in another way.

    The table is a dictionary of ``dict(tag=_pcfg(...))`` calls or of names of such. A tag with ``quick_gelu=True``
    also counts for the architecture whose name ends in -quickgelu.
    """
    try:
        body = ast.parse((_open_clip_folder() / "pretrained.py").read_text(encoding="utf-8")).body
        values = {
            target.id: node.value
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        table = values["_PRETRAINED"]
        assert isinstance(table, ast.Dict)
        tags: dict[str, list[str]] = {}
        for key, value in zip(table.keys, table.values, strict=True):
            call = values[value.id] if isinstance(value, ast.Name) else value
            assert isinstance(key, ast.Constant)
            assert isinstance(key.value, str)
            assert isinstance(call, ast.Call)
            tags[key.value] = [entry.arg for entry in call.keywords if entry.arg]
            quick = [entry.arg for entry in call.keywords if entry.arg and _is_quick(entry.value)]
            if quick:
                tags[f"{key.value}-quickgelu"] = quick
    except (OSError, SyntaxError, AssertionError, KeyError):
        return {}
    return tags


def _is_quick(settings: ast.expr) -> bool:
    return isinstance(settings, ast.Call) and any(
        entry.arg == "quick_gelu" and isinstance(entry.value, ast.Constant) and entry.value.value is True
        for entry in settings.keywords
    )
