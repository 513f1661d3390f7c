"""proxyclip: CLIP's values gathered by the similarity of a second tower's patches (ProxyCLIP, Lan et al. 2024)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import ProxyClipConfig
from ovss_core.dense_heads.base import DenseHead, HeadOptions
from ovss_core.dense_heads.proxy_attention import gather_values, parts, softmax_of_allowed
from ovss_core.dense_heads.region_scope import keep_visible, patch_scope


class ProxyClipHead(DenseHead):
    """softmax over the entries of gamma (S - beta mean(S)) that are not negative; no residual, no feed-forward."""

    name = "proxyclip"
    needs_proxy = True
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        given = options.settings
        self.settings = given if isinstance(given, ProxyClipConfig) else ProxyClipConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for the second tower's tokens."""
        return TraceRequest(proxy=frozenset({"tokens"}))

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Attend by the second tower's similarity, on its grid, and project."""
        proxy = trace.proxy_features()
        vectors, grids = proxy.vectors["tokens"], (trace.grid, proxy.grid)
        gathered = [
            gather_values(
                encoder.blocks[-1],
                trace.tokens[part],
                keep_visible(
                    proxy_attention(vectors[part], self.settings.beta, self.settings.gamma),
                    patch_scope(trace, part),
                ),
                grids,
                trace.prefix,
            )
            for part in parts(*vectors.shape[:2])
        ]
        return encoder.project(torch.cat(gathered))


def proxy_attention(
    vectors: Float[Tensor, "windows patches width"], beta: float, gamma: float
) -> Float[Tensor, "windows patches patches"]:
    """Turn a second tower's vectors into attention, at least in float32 (ProxyCLIP, eq. 5 to 7).

    The mean is over a window's whole map. The released code leaves rows empty, and the window NaN, where mean(S) is
    above 1 / beta; here a row keeps its own patch, whose cosine is the largest.

    Returns:
        Rows that sum to 1, the same for all heads.
    """
    unit = F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)
    similarity = unit @ unit.mT
    logits = gamma * (similarity - beta * similarity.mean((1, 2), keepdim=True))
    return softmax_of_allowed(logits, logits < 0)
