"""naclip: keys with keys, drawn to the patch's own neighborhood (NACLIP, Hajimiri et al. 2025)."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.blocks import TransformerBlock
from ovss_core.clip.trace import EncoderTrace
from ovss_core.dense_heads.base import LastBlockHead
from ovss_core.dense_heads.region_scope import token_scope

NEIGHBORHOOD_DEVIATION = 5.0


class NaClipHead(LastBlockHead):
    """softmax(s k k^T + exp(-d^2 / (2 * 5^2))) v, projected; the class token gets no neighborhood."""

    name = "naclip"
    can_scope = True
    classless = True

    def attend(self, block: TransformerBlock, trace: EncoderTrace) -> Tensor:
        """Attend from keys to keys with the Gaussian of the patch distance d added to the logits."""
        _, key, value = block.query_key_value(trace.tokens)
        bias = neighborhood_bias_on(value.device, value.dtype, *trace.grid, prefix=trace.prefix)
        if (visible := token_scope(trace)) is not None:
            bias = bias.masked_fill(~visible, -torch.inf)
        return block.output(
            F.scaled_dot_product_attention(key, key, value, attn_mask=bias, scale=block.scale)
        )


@lru_cache(maxsize=32)
def neighborhood_bias_on(
    device: torch.device, dtype: torch.dtype, rows: int, columns: int, prefix: int = 1
) -> Tensor:
    """Keep the table where it is used: bringing it there makes the CPU wait."""
    with torch.inference_mode(False):
        return neighborhood_bias(rows, columns)[1 - prefix :, 1 - prefix :].to(device, dtype)


@lru_cache(maxsize=32)
def neighborhood_bias(rows: int, columns: int) -> Float[Tensor, "tokens tokens"]:
    """Return exp(-d^2 / (2 * 5^2)) between patches, 0 in the class token's row and column; float32."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([row.flatten(), column.flatten()], 1).float()
    squared = (places[:, None] - places[None]).square().sum(-1)
    bias = torch.zeros(rows * columns + 1, rows * columns + 1)
    bias[1:, 1:] = torch.exp(-squared / (2 * NEIGHBORHOOD_DEVIATION**2))
    return bias
