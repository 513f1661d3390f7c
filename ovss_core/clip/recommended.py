"""Settings that a model's card recommends: they fill what the user did not set.

They lie beside the weights, as JSON with the fields of `SegmenterConfig` that the model's maker advises to change. Read
without torch, for a command line knows its defaults before anything is loaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovss_core.clip.architectures import DEMO
from ovss_core.clip.demo import demo_weights_path
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.errors import ConfigError

SUFFIX = ".settings.json"


def recommended_settings(model: ModelConfig) -> dict[str, Any]:
    """Return what the card of a model recommends, as nested fields of `SegmenterConfig`; empty for most models.

    For weights in a local file that is the file of the same name with `.settings.json` added.

    Raises:
        ConfigError: The file holds anything else.
    """
    default = ModelConfig.pretrained
    shipped = model.name == DEMO and model.pretrained == default
    weights = demo_weights_path() if shipped else Path(model.pretrained)
    file = weights.with_name(f"{weights.name}{SUFFIX}") if weights.name else None
    if file is None or "://" in model.pretrained or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        filled(found)
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(f"the recommended settings in {file.name} cannot be used: {error}") from error
    if "model" in found:
        raise ConfigError(
            f"the recommended settings in {file.name} cannot be used: they name a model; leave it out"
        )
    return dict(found)


def filled(recommended: Mapping[str, Any]) -> SegmenterConfig:
    """Return the default configuration with the recommended settings in place.

    Raises:
        ConfigError: There is no such setting, or it cannot have that value.
    """
    values = SegmenterConfig().to_dict()
    for name, value in recommended.items():
        values[name] = values[name] | value if isinstance(values.get(name), dict) else value
    return SegmenterConfig.from_dict(values)
