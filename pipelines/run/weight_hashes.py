"""The hashes of the models that decide a run's results, as its identity holds them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ovss_core.config import ModelConfig, ProxyConfig

if TYPE_CHECKING:
    from ovss_core.clip.weights import ClipModel

CLIP_HASH, PROXY_HASH = "weights_hash", "proxy_weights_hash"
"""Their names in a run's identity."""
WeightHashes = Mapping[str, str | None]


def hash_weights(model: "ModelConfig | ClipModel", proxy: ProxyConfig | None) -> WeightHashes:
    """Hash the weights of CLIP and, where there is one, of the second tower.

    Raises:
        ModelError, WeightsError: As `load_clip` and `load_proxy`.
    """
    from ovss_core.clip.weights import load_clip  # takes seconds, and jobs over labels load no model
    from ovss_core.proxies.loading import load_proxy

    clip = load_clip(model) if isinstance(model, ModelConfig) else model
    hashes = {CLIP_HASH: clip.weights_hash()}
    return hashes if proxy is None else hashes | {PROXY_HASH: load_proxy(proxy).weights_hash()}


UNKNOWN: WeightHashes = {CLIP_HASH: None}
"""What stands in an identity while nothing is loaded yet."""
