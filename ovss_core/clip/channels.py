"""Which channels of a checkpoint's image tower are over-activated, where that is known."""

from ovss_core.clip.demo import DEMO_ARCHITECTURE
from ovss_core.config import ModelConfig
from ovss_core.errors import ConfigError

_OPENAI = "openai"
_KNOWN: dict[tuple[str, str], tuple[int, ...]] = {
    ("ViT-B-16", _OPENAI): (4, 162, 189, 326, 429, 474, 633, 713),
    ("ViT-L-14", _OPENAI): (250, 261, 437, 650, 720, 779, 936, 1005),
    ("demo", _OPENAI): (),
}
"""RF-CLIP's lists, by architecture and weights; the demonstration model has none (`ovss channels --model demo`)."""


def known_channels(model: ModelConfig) -> tuple[int, ...] | None:
    """Return the over-activated channels of a checkpoint, or None where nobody has measured them."""
    name = model.name.replace("/", "-").removesuffix("-quickgelu")
    return _KNOWN.get(("demo" if name == DEMO_ARCHITECTURE else name, model.pretrained))


def require_channels(model: ModelConfig | None, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the channels that were given, or else the checkpoint's.

    Raises:
        ConfigError: None were given, and those of the checkpoint are not known.
    """
    if given is not None:
        return given
    known = None if model is None else known_channels(model)
    if known is None:
        which = "this model" if model is None else f"{model.name} with the weights {model.pretrained!r}"
        names = ", ".join(" ".join(key) for key in _KNOWN)
        raise ConfigError(
            f"the over-activated channels of {which} are not known (they are of {names}); find them with "
            "ovss channels and give them as --rfclip.channels [1,2,3], or [] to repair nothing"
        )
    return known
