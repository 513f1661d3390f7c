"""What `--proxy-pretrained` may be; nothing here imports torch."""

from pathlib import Path

from ovss_core.clip.weight_sources import RANDOM, require_weight_file
from ovss_core.config import ProxyConfig
from ovss_core.errors import WeightsError

HUB_WEIGHTS = "hub"


def require_proxy_weights(config: ProxyConfig) -> None:
    """Refuse what is neither the hub's weights, nor a file of weights, nor random ones.

    Raises:
        WeightsError: Saying what to give.
    """
    if config.pretrained in (RANDOM, HUB_WEIGHTS):
        return
    path = Path(config.pretrained)
    if not path.is_file():
        raise WeightsError(
            f"--proxy-pretrained {config.pretrained!r} is no file; give {HUB_WEIGHTS} for the weights that timm downloads, "
            "or the path of a state dict or safetensors file"
        )
    require_weight_file(path)
