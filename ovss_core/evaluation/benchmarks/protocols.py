"""The constants with which each method was evaluated on each benchmark, as its published code sets them.

Common to all: ViT-B/16 with OpenAI's weights, 80 ImageNet prompt templates, no mask post-processing, the long
side at most 2048 pixels, ground truth at its own resolution.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ovss_core.config import (
    Background,
    CarConfig,
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    SegmenterConfig,
    WindowConfig,
)
from ovss_core.evaluation.benchmarks.registry import get_benchmark
from ovss_core.vocabulary import Vocabulary

Purify = Literal["none", "car", "freecp"]
CAR_THRESHOLDS = {"voc20": 0.6, "voc21": 0.6, "context59": 0.25, "context60": 0.25, "coco_object": 0.3}
"""What CaR's authors take, by benchmark; others get the lowest of these."""


@dataclass(frozen=True)
class SfpProtocol:
    """How SFP, and every host without purification, is evaluated.

    Attributes:
        vocabulary: Shipped vocabulary.
        short_side: Of the resized image, in pixels.
        logit_scale, min_probability, min_area, background: As in `LabelConfig`.
        window: Side of a window in pixels.
    """

    vocabulary: str
    short_side: int = 336
    logit_scale: float = 40.0
    min_probability: float = 0.0
    min_area: float | None = None
    background: Background = "none"
    window: int = 224


@dataclass(frozen=True)
class FreeCpProtocol:
    """How FreeCP is evaluated on any host.

    Attributes:
        vocabulary: Shipped vocabulary.
        redundancy_threshold, ambiguity_threshold: As in `PurificationConfig`; tuned on each benchmark.
        background: As in `LabelConfig`.
        window: Side of a window in pixels.
        short_side: Of the resized image, in pixels.
    """

    vocabulary: str
    redundancy_threshold: float
    ambiguity_threshold: float
    background: Background = "none"
    window: int = 384
    short_side: int = 448


SFP_PROTOCOLS = {
    "voc21": SfpProtocol(
        "voc21.sfp", logit_scale=50.0, min_probability=0.15, min_area=0.1, background="first_class"
    ),
    "context60": SfpProtocol("context60", min_probability=0.15, background="first_class"),
    "coco_object": SfpProtocol(
        "coco_object.sfp", logit_scale=55.0, min_probability=0.35, background="first_class"
    ),
    "voc20": SfpProtocol("voc20.sfp"),
    "context59": SfpProtocol("context59"),
    "coco_stuff164k": SfpProtocol("coco_stuff164k"),
    "ade20k": SfpProtocol("ade20k", short_side=384),
    "cityscapes": SfpProtocol("cityscapes.sfp", short_side=560),
}
PROXY_PROTOCOLS = {
    "voc21": SfpProtocol("voc21.sfp", min_probability=0.2, background="first_class", window=336),
    "context60": SfpProtocol("context60", min_probability=0.15, background="first_class", window=336),
    "coco_object": SfpProtocol("coco_object.sfp", min_probability=0.25, background="first_class", window=336),
    "voc20": SfpProtocol("voc20.sfp", window=336),
    "context59": SfpProtocol("context59", window=336),
    "coco_stuff164k": SfpProtocol("coco_stuff164k", window=336),
    "ade20k": SfpProtocol("ade20k", short_side=448, window=336),
    "cityscapes": SfpProtocol("cityscapes.sfp", short_side=448),
}
"""How ProxyCLIP and CorrCLIP are evaluated: their codes agree on these; the words are those of SFP's code."""
FREECP_PROTOCOLS = {
    "voc21": FreeCpProtocol("voc21.freecp", 0.15, 0.8, "residual"),
    "context60": FreeCpProtocol("context60", 0.10, 0.7, "residual"),
    "coco_object": FreeCpProtocol("coco_object.freecp", 0.15, 0.8, "residual"),
    "voc20": FreeCpProtocol("voc20.freecp", 0.15, 0.7),
    "context59": FreeCpProtocol("context59", 0.10, 0.7),
    "coco_stuff164k": FreeCpProtocol("coco_stuff164k", 0.05, 0.7),
    "ade20k": FreeCpProtocol("ade20k", 0.05, 0.7),
    "cityscapes": FreeCpProtocol("cityscapes.freecp", 0.10, 0.8, window=224, short_side=560),
}


def protocol_config(
    benchmark: str, host: str = "sfp", purify: Purify = "none", model: ModelConfig | None = None
) -> tuple[SegmenterConfig, Vocabulary]:
    """Return the settings and the vocabulary with which the papers evaluate a method on a benchmark.

    The published figures come from the released codes, so these are the "released" variants with the tuned
    thresholds; change the result with `dataclasses.replace` for anything else.

    Args:
        benchmark: One of `BENCHMARKS`.
        host: The dense head.
        purify: "none" for SFP's protocol, "freecp" for FreeCP's, "car" for SFP's with the threshold of CaR's authors.
        model: Another CLIP than ViT-B/16 with OpenAI's weights.

    Raises:
        ConfigError: There is no such benchmark or host.
    """
    name = get_benchmark(benchmark).name
    base = SegmenterConfig(model=model or ModelConfig(), host=host)
    if purify != "freecp":
        protocol = (PROXY_PROTOCOLS if base.needs_proxy else SFP_PROTOCOLS)[name]
        config, vocabulary = _sfp_config(base, protocol), protocol.vocabulary
        if purify == "car":
            threshold = CAR_THRESHOLDS.get(name, min(CAR_THRESHOLDS.values()))
            purification = replace(config.purification, method="car")
            config = replace(config, purification=purification, car=CarConfig(threshold))
    else:
        config, vocabulary = _freecp_config(base, FREECP_PROTOCOLS[name]), FREECP_PROTOCOLS[name].vocabulary
    return config, Vocabulary.load(vocabulary)


def _sfp_config(base: SegmenterConfig, protocol: SfpProtocol) -> SegmenterConfig:
    labels = LabelConfig(
        logit_scale=protocol.logit_scale,
        min_probability=protocol.min_probability,
        min_area=protocol.min_area,
        background=protocol.background,
    )
    return replace(
        base,
        windows=WindowConfig(size=protocol.window, stride=112, short_side=protocol.short_side),
        purification=PurificationConfig(method="none"),
        labels=labels,
    )


def _freecp_config(base: SegmenterConfig, protocol: FreeCpProtocol) -> SegmenterConfig:
    purification = PurificationConfig(
        method="freecp",
        variant="released",
        thresholds="fixed",
        redundancy_threshold=protocol.redundancy_threshold,
        ambiguity_threshold=protocol.ambiguity_threshold,
    )
    return replace(
        base,
        windows=WindowConfig(size=protocol.window, stride=112, short_side=protocol.short_side),
        purification=purification,
        labels=LabelConfig(background=protocol.background),
    )
