"""Load a second tower: timm builds it, a file in timm's names or the original's fills it.

Weights are data here, as CLIP's are: what the hub gives is a file like any other.
"""

import contextlib
import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ovss_core.clip.weight_files import (
    choose_wanted,
    describe_names,
    digest_tensors,
    plain_names,
    read_tensors,
    require_finite,
)
from ovss_core.clip.weight_sources import RANDOM
from ovss_core.config import ProxyConfig
from ovss_core.errors import ConfigError, WeightsError
from ovss_core.proxies.tower import ProxyTower
from ovss_core.proxy_families.registry import TowerChoice, find_tower
from ovss_core.proxy_families.weight_sources import HUB_WEIGHTS, require_proxy_weights

RANDOM_SEED = 0
_ORIGINALS = ("mask_token", "register_tokens", "storage_tokens", "radio_model.model.")
"""What stands in the names of the originals' files, and not in timm's."""


@dataclass(frozen=True)
class ProxyModel:
    """A loaded second tower.

    Attributes:
        model: timm's model without a classifier, float32, evaluation mode, on the CPU.
        choice: Which one it is.
        scale: As in `ProxyConfig`.
    """

    model: Any
    choice: TowerChoice
    scale: int = 1

    def weights_hash(self) -> str:
        """Return the SHA-256 over all weights by name, type and bytes; the file format does not count."""
        return digest_tensors(self.model.state_dict())

    def tower(self, device: torch.device | str, dtype: torch.dtype) -> ProxyTower:
        """Return the tower on a device, in a number format."""
        return ProxyTower(self.model, self.choice.family.positions, self.scale).to(
            torch.device(device), dtype
        )


def load_proxy(config: ProxyConfig) -> ProxyModel:
    """Load the second tower that `config` names.

    Raises:
        ConfigError: No tower is named, or none has that name.
        WeightsError: The weights cannot be found, downloaded or read, do not fit the tower, or are not finite.
    """
    if config.name is None:
        raise ConfigError("this host needs a second tower; give --proxy, such as vit_base_patch16_224.dino")
    choice = find_tower(config.name)
    require_proxy_weights(config)
    if config.pretrained == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = _create(choice)
    else:
        path = _download(choice) if config.pretrained == HUB_WEIGHTS else Path(config.pretrained)
        tensors, side = _fitting_tensors(choice, path)
        model = _create(choice, side)
        model.load_state_dict(tensors)
    return ProxyModel(model.eval().requires_grad_(False), choice, config.scale)


def check_proxy_file(config: ProxyConfig) -> None:
    """Read the weights that a user gave as a file, and throw them away again: `load_proxy` would take them.

    Raises:
        ConfigError, WeightsError: As `load_proxy`.
    """
    if config.name is not None and config.pretrained not in (RANDOM, HUB_WEIGHTS):
        require_proxy_weights(config)
        _fitting_tensors(find_tower(config.name), Path(config.pretrained))


def _create(choice: TowerChoice, table_side: int | None = None) -> Any:
    """Build a tower whose positional table has so many rows; None takes as many as the original's has."""
    side = table_side or choice.family.table_side
    options: dict[str, Any] = {} if side is None else {"img_size": side * choice.patch_size}
    return timm.create_model(choice.name, pretrained=False, num_classes=0, **options)


def _download(choice: TowerChoice) -> Path:
    from huggingface_hub import hf_hub_download  # timm brings it

    settings = timm.get_pretrained_cfg(choice.name)
    if settings is None or not settings.hf_hub_id:
        raise WeightsError(f"timm knows no weights of {choice.name}; give --proxy-pretrained FILE")
    try:
        return Path(hf_hub_download(settings.hf_hub_id, settings.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # the hub's client raises what it likes
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"cannot download the weights of {choice.name} ({reason[0] if reason else type(error).__name__}); connect to "
            "the internet once, or copy the file here and give --proxy-pretrained FILE"
        ) from error


def _fitting_tensors(choice: TowerChoice, path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Read a file's tensors in timm's names: all are there, of the tower's shapes, and finite.

    Returns:
        The tensors, and how many rows their positional table has (None: the tower has no table).
    """
    with torch.device("meta"):
        model = _create(choice)
    tensors = _in_timm_names(read_tensors(path), model)
    side = _table_side(tensors, model)
    with torch.device("meta"):
        wanted = _create(choice, side).state_dict()
    chosen = choose_wanted(tensors, wanted)
    wrong = [key for key in wanted if key not in chosen or chosen[key].shape != wanted[key].shape]
    if wrong:
        raise WeightsError(
            f"{path} does not hold the weights of {choice.name}: {len(wanted) - len(chosen)} of {len(wanted)} tensors are "
            f"missing, {len(wrong)} do not fit, first {wrong[0]!r}; {_advice(tensors, wanted)}"
        )
    require_finite(path, chosen)
    return chosen, side


def _advice(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    if not set(tensors) & set(wanted):
        return describe_names(list(tensors))
    return "give the tower of these weights as --proxy"


def _in_timm_names(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    if not any(mark in name for name in tensors for mark in _ORIGINALS):
        return plain_names(tensors, model.state_dict())
    from timm.models import eva, vision_transformer

    kind = eva if getattr(model, "rope", None) is not None else vision_transformer
    if kind is vision_transformer and any(name.startswith("radio_model.") for name in tensors):
        converted = vision_transformer._convert_radio(
            dict(tensors)
        )  # without a model it leaves the table as it is
    else:
        with _quiet():
            converted = kind.checkpoint_filter_fn(_with_prefix_cut(tensors), model)
    return dict(converted)


def _with_prefix_cut(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what stands before the names of all tensors, found at the class token, which all files have."""
    anchor = next((name for name in tensors if name.endswith("cls_token")), "cls_token")
    prefix = anchor.removesuffix("cls_token")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _table_side(tensors: Mapping[str, Tensor], model: Any) -> int | None:
    table = tensors.get("pos_embed")
    if model.pos_embed is None or table is None or table.ndim != 3:
        return None
    places: int = int(table.shape[1]) - (0 if model.no_embed_class else int(model.num_prefix_tokens))
    return math.isqrt(max(places, 1))


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep what timm prints and logs while it renames off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
