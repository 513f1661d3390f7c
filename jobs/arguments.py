"""Command-line flags out of the settings' dataclasses; their docstrings are the help."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from inspect import getdoc
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from ovss_core.config import (
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    SegmenterConfig,
    SfpConfig,
    WindowConfig,
)
from ovss_core.errors import ConfigError
from ovss_core.vocabulary import Vocabulary

Settings = TypeVar("Settings")
_GROUPS = {
    "windows": WindowConfig,
    "sfp": SfpConfig,
    "purification": PurificationConfig,
    "labels": LabelConfig,
}


def add_fields(parser: ArgumentParser, kind: type, prefix: str = "", skip: tuple[str, ...] = ()) -> None:
    """Add one flag for each field of a dataclass, ``--prefix.name`` or ``--name``."""
    hints, meanings = get_type_hints(kind), _meanings(kind)
    for entry in fields(kind):
        if entry.name in skip:
            continue
        flag = f"--{prefix}.{entry.name}" if prefix else f"--{entry.name.replace('_', '-')}"
        options: dict[str, Any] = {"help": meanings.get(entry.name, "")}
        if hints[entry.name] is bool and entry.default is False and not prefix:
            options["action"] = "store_true"
        else:
            options |= {"type": hints[entry.name], "required": entry.default is MISSING}
            if entry.default is not MISSING:
                options["default"] = entry.default
        parser.add_argument(flag, **options)


def take_fields(values: Namespace, kind: type[Settings]) -> Settings:
    """Build a dataclass from the flags that `add_fields` added without a prefix; skipped ones keep their default."""
    return kind(**{entry.name: values[entry.name] for entry in fields(kind) if entry.name in values})  # type: ignore[arg-type]


def add_segmenter(parser: ArgumentParser) -> None:
    """Add the flags of everything that decides a mask."""
    model, whole = _meanings(ModelConfig), _meanings(SegmenterConfig)
    hints = get_type_hints(ModelConfig)
    parser.add_argument("--model", type=str, default="ViT-B-16", help=model["name"])
    parser.add_argument("--pretrained", type=str, default="openai", help=model["pretrained"])
    for name in ("precision", "quick_gelu"):
        default = getattr(ModelConfig(), name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=hints[name], default=default, help=model[name]
        )
    parser.add_argument(
        "--host", type=get_type_hints(SegmenterConfig)["host"], default="sfp", help="Dense head."
    )
    for alias, field in (("purify", "method"), ("variant", "variant")):
        hint, meaning = get_type_hints(PurificationConfig)[field], _meanings(PurificationConfig)[field]
        default = getattr(PurificationConfig(), field)
        parser.add_argument(f"--{alias}", type=hint, default=default, help=meaning)
    for name in ("window_batch", "max_pixels"):
        default = getattr(SegmenterConfig(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=whole[name])
    for prefix, kind in _GROUPS.items():
        add_fields(parser, kind, prefix, skip=("method", "variant") if prefix == "purification" else ())


def take_segmenter(values: Namespace) -> SegmenterConfig:
    """Build the segmenter's configuration from the flags of `add_segmenter`."""
    groups = {prefix: {**vars(values[prefix])} for prefix in _GROUPS}
    groups["purification"] |= {"method": values.purify, "variant": values.variant}
    return SegmenterConfig(
        model=ModelConfig(values.model, values.pretrained, values.precision, values.quick_gelu),
        host=values.host,
        window_batch=values.window_batch,
        max_pixels=values.max_pixels,
        **{prefix: kind(**groups[prefix]) for prefix, kind in _GROUPS.items()},
    )


def parse_with_protocol(
    parser: ArgumentParser, arguments: Sequence[str] | None
) -> tuple[Namespace, Vocabulary]:
    """Parse flags; with ``--benchmark``, its constants take the place of the defaults.

    Raises:
        ConfigError: Neither a vocabulary nor a benchmark was given.
    """
    values = parser.parse_args(arguments)
    if not values.vocabulary and not values.benchmark:
        raise ConfigError("give --vocabulary (a shipped name such as voc21, or a file), or --benchmark")
    vocabulary = Vocabulary.load(values.vocabulary) if values.vocabulary else None
    if not values.benchmark:
        assert vocabulary is not None
        return values, vocabulary
    from ovss_core.evaluation.benchmarks.protocols import protocol_config  # brings torch

    config, offered = protocol_config(values.benchmark, values.host, values.purify)
    parser.set_defaults(segmenter_defaults(config))
    return parser.parse_args(arguments), vocabulary or offered


def segmenter_defaults(config: SegmenterConfig) -> dict[str, Any]:
    """Return a configuration as defaults for the flags of `add_segmenter`, the model's left out."""
    values = config.to_dict()
    purification = values["purification"]
    defaults = {"purify": purification.pop("method"), "variant": purification.pop("variant")}
    for prefix in _GROUPS:
        defaults |= {f"{prefix}.{name}": value for name, value in values[prefix].items()}
    return {**defaults, "window_batch": config.window_batch, "max_pixels": config.max_pixels}


def _meanings(kind: type) -> dict[str, str]:
    """Read what the docstring says of each attribute."""
    section = (getdoc(kind) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("%", "%%") for name, text in entries}
