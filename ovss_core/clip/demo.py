"""The small CLIP that ships with ovss; `pipelines.demonstration` draws the scenes it learned from, and trains it."""

from functools import lru_cache
from importlib import resources
from pathlib import Path

DEMO_ARCHITECTURE = "ovss-demo"
"""The architecture's name in open_clip's registry, once registered."""

__all__ = ["DEMO_ARCHITECTURE", "demo_architecture_path", "demo_weights_path", "register_demo_model"]


def _model_folder() -> Path:
    return Path(str(resources.files("ovss_core").joinpath("clip", "demo_model")))


@lru_cache(maxsize=1)
def register_demo_model() -> None:
    """Make the demonstration architecture known to open_clip under `DEMO_ARCHITECTURE`."""
    import open_clip  # brings torch, which reading flags does not wait for

    open_clip.add_model_config(demo_architecture_path())


def demo_architecture_path() -> Path:
    """Return the path of the architecture's description, as open_clip writes its own."""
    return _model_folder() / f"{DEMO_ARCHITECTURE}.json"


def demo_weights_path() -> Path:
    """Return the path of the shipped weights, float16 safetensors under open_clip's parameter names."""
    return _model_folder() / "ovss_demo.safetensors"
