"""Every number with a meaning, as frozen dataclasses; each field says which way it acts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from ovss_core.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]
Background = Literal["auto", "none", "first_class", "residual"]
BackgroundPolicy = Literal["none", "first_class", "residual"]
SfpVariant = Literal["released", "paper"]
OutlierRule = Literal["attention", "norm", "local_outlier_factor"]
PurificationMethod = Literal["freecp", "none"]
PurificationVariant = Literal["image", "released", "paper"]
Thresholds = Literal["auto", "fixed"]
ConfidenceDetail = Literal["none", "image", "pixel"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    _require(value in allowed, f"{name} is {value!r}; give one of {', '.join(map(repr, allowed))}")


def _require_positive(name: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, f"{name} is {value}; give a number above 0")


@dataclass(frozen=True)
class ModelConfig:
    """Which CLIP to hold.

    Attributes:
        name: An open_clip ViT architecture, or "demo" for the small model that ships with ovss.
        pretrained: An open_clip weight tag (downloaded by open_clip), a path to a state dict, safetensors
            file or OpenAI TorchScript archive (read as data, never run), or "random" for seeded random weights
            (tests only). With "demo" the default means the weights that ship with ovss.
        precision: Number format of the image tower.
        quick_gelu: Activation of both towers; None takes what the architecture's name, the tag or the archive
            says. Set it for a state dict of OpenAI's weights saved under a plain architecture name.
    """

    name: str = "ViT-B-16"
    pretrained: str = "openai"
    precision: Precision = "float32"
    quick_gelu: bool | None = None

    def __post_init__(self) -> None:
        _require_choice("precision", self.precision, Precision)


@dataclass(frozen=True)
class WindowConfig:
    """How an image is resized and cut (``methods.md`` of the papers: resize keeping ratio, sliding windows).

    Attributes:
        size: Side of a square window in pixels of the resized image. Larger: more context, more work.
        stride: Step between windows in pixels. Smaller: more overlap, smoother, more work.
        short_side: Short side after resizing, in pixels. Larger: finer masks, more windows.
        long_side: Upper limit of the long side after resizing, in pixels.
    """

    size: int = 224
    stride: int = 112
    short_side: int = 336
    long_side: int = 2048

    def __post_init__(self) -> None:
        for name in ("size", "stride", "short_side", "long_side"):
            _require(getattr(self, name) >= 1, f"windows.{name} is {getattr(self, name)}; give at least 1")
        _require(
            self.stride <= self.size,
            f"windows.stride {self.stride} is larger than windows.size {self.size}, which leaves gaps; "
            "give a stride of at most the window size",
        )


class HeadSettings:
    """What a dataclass of a dense head's own settings inherits; the field of `SegmenterConfig` has the head's name."""


@dataclass(frozen=True)
class SfpConfig(HeadSettings):
    """SFP, "Feature Purification Matters" (ICCV 2025): which parts run, and in which published form.

    Attributes:
        variant: "released" follows the authors' code, "paper" the equations.
        outlier_mitigation: SOM: replace outlier tokens by the mean of their valid neighbors.
        attention_enhancement: SAE: the enhanced attention in place of the last block; off leaves ClearCLIP's.
        attention_integration: HAI (released: cosine aggregation and the second stream) over all layers.
        outlier_rule: How outliers are found: attention (SOM, eq. 4), feature norm, or local outlier factor.
        outlier_factor: A patch is an outlier when factor * CLS attention exceeds its self attention; larger
            finds more. None means 1.5 (released) or 1.0 (paper).
        max_outliers: At most so many outliers a window by the attention rule, those with the most CLS attention
            (None: 10 released, no limit in the paper).
        enhancement_lambda: Weight of qq + kk inside the softmax of SAE (paper, eq. 6); larger is sharper.
        enhancement_projection: SAE applies the value and output projections (paper variant).
        enhancement_residual: SAE adds the purified tokens and the feed-forward result (paper, eq. 7).
        integration_start: First block (from 1) of the layer sum of HAI (the paper's Table 3).
        integration_rounds: Row-then-column normalization rounds of HAI; the paper does one.
        integrate_after_projection: Apply HAI after ln_post and the projection instead of before.
    """

    variant: SfpVariant = "released"
    outlier_mitigation: bool = True
    attention_enhancement: bool = True
    attention_integration: bool = True
    outlier_rule: OutlierRule = "attention"
    outlier_factor: float | None = None
    max_outliers: int | None = None
    enhancement_lambda: float = 0.5
    enhancement_projection: bool = True
    enhancement_residual: bool = True
    integration_start: int = 1
    integration_rounds: int = 1
    integrate_after_projection: bool = False

    def __post_init__(self) -> None:
        _require_choice("sfp.variant", self.variant, SfpVariant)
        _require_choice("sfp.outlier_rule", self.outlier_rule, OutlierRule)
        if self.outlier_factor is not None:
            _require_positive("sfp.outlier_factor", self.outlier_factor)
        _require(
            math.isfinite(self.enhancement_lambda) and self.enhancement_lambda >= 0,
            f"sfp.enhancement_lambda is {self.enhancement_lambda}; give a number of at least 0",
        )
        _require(
            self.max_outliers is None or self.max_outliers >= 0,
            f"sfp.max_outliers is {self.max_outliers}; give at least 0, or none for the variant's own limit",
        )
        _require(
            self.integration_start >= 1,
            f"sfp.integration_start is {self.integration_start}; blocks count from 1",
        )
        _require(
            self.integration_rounds >= 1,
            f"sfp.integration_rounds is {self.integration_rounds}; give at least 1",
        )


@dataclass(frozen=True)
class PurificationConfig:
    """FreeCP, "Training-Free Class Purification" (ICCV 2025): which parts run, in which form, how strictly.

    Attributes:
        method: "freecp" removes words that are absent from the image and settles words that claim one region;
            "none" labels with the host's own scores.
        variant: FreeCP's form: "image" decides once an image, "released" once a window as the authors' code,
            "paper" once a window by the paper's equations.
        redundancy: Remove the classes that are absent from the image.
        ambiguity: Let one class win where several claim the same region.
        thresholds: "auto" derives the redundancy decision from the image itself; "fixed" uses the two numbers.
        redundancy_threshold: Keep a class when its score is above this (fixed only); larger removes more. Scores
            are below 0.5, mostly far below ("image", "released"), or a soft IoU from 0 to 1 ("paper").
        ambiguity_threshold: Classes whose maps' soft IoU reaches this are ambiguous; larger groups fewer.
        score_scale: Factor on cosines before the softmax; larger is more peaked.
        crop_size: Side in pixels to which an ambiguous region is resized before it is encoded.
        box_threshold: Share of a map's maximum above which a patch belongs to a region.
        phrase_chunk: Phrases scored at once; bounds memory, does not change the labels.
    """

    method: PurificationMethod = "freecp"
    variant: PurificationVariant = "image"
    redundancy: bool = True
    ambiguity: bool = True
    thresholds: Thresholds = "auto"
    redundancy_threshold: float = 0.1
    ambiguity_threshold: float = 0.7
    score_scale: float = 100.0
    crop_size: int = 112
    box_threshold: float = 0.4
    phrase_chunk: int = 512

    def __post_init__(self) -> None:
        _require_choice("purification.method", self.method, PurificationMethod)
        _require_choice("purification.variant", self.variant, PurificationVariant)
        _require_choice("purification.thresholds", self.thresholds, Thresholds)
        for name in ("redundancy_threshold", "ambiguity_threshold", "box_threshold"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"purification.{name} is {value}; give a number from 0 to 1")
        _require_positive("purification.score_scale", self.score_scale)
        _require(self.phrase_chunk >= 1, f"purification.phrase_chunk is {self.phrase_chunk}; give at least 1")
        _require(self.crop_size >= 1, f"purification.crop_size is {self.crop_size}; give at least 1")

    @property
    def active(self) -> bool:
        """Whether classes are purified at all."""
        return self.method == "freecp"

    @property
    def needs_crops(self) -> bool:
        """Whether stage 2 has regions to encode, so that it deserves a pool of its own."""
        return self.active and self.ambiguity

    @property
    def needs_distractors(self) -> bool:
        """Whether the text side must hold words that are known to be absent."""
        return self.active and self.redundancy and self.thresholds == "auto"


@dataclass(frozen=True)
class LabelConfig:
    """How score maps become labels.

    Attributes:
        logit_scale: Factor on cosines before the softmax over phrases (no purification only).
        min_probability: Pixels whose best probability is below become the background class; larger gives more
            background. Needs a background class.
        min_area: Classes whose share of the foreground area is not above this are dropped; None keeps all.
        background: "first_class": the background class competes as any other; "residual": 1 - max of the
            purified maps competes; "none": every pixel gets a foreground class; "auto": by vocabulary and method.
        confidence: How sure labels are, for each image ("image": mean score, mean margin over the second class, share
            of sure pixels), for each pixel as well ("pixel": the margin as an 8-bit picture), or not at all ("none").
        min_confidence: Pixels whose margin over the second class is below get no label: their value is 255, or 65535
            above 255 classes. Larger leaves out more; 0 labels every pixel.
    """

    logit_scale: float = 40.0
    min_probability: float = 0.0
    min_area: float | None = None
    background: Background = "auto"
    confidence: ConfidenceDetail = "image"
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("labels.confidence", self.confidence, ConfidenceDetail)
        _require(
            0.0 <= self.min_confidence <= 1.0,
            f"labels.min_confidence is {self.min_confidence}; give a margin from 0 to 1",
        )
        _require(
            self.min_confidence == 0.0 or self.confidence != "none",
            "labels.min_confidence needs the margins that labels.confidence none leaves out; give image or pixel",
        )
        _require_choice("labels.background", self.background, Background)
        _require(
            0.0 <= self.min_probability <= 1.0,
            f"labels.min_probability is {self.min_probability}; give 0 to 1",
        )
        _require_positive("labels.logit_scale", self.logit_scale)
        _require(
            self.min_area is None or 0.0 <= self.min_area <= 1.0,
            f"labels.min_area is {self.min_area}; give a share from 0 to 1, or none to keep all classes",
        )


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that decides what mask an image gets, and how much memory that takes.

    Attributes:
        host: How dense features are read out of CLIP: the dense head of that name in `ovss_core.dense_heads`.
        window_batch: Windows encoded at once; larger fills a GPU better and takes more memory. None: 128 on a GPU, 8
            on a CPU, whose caches hold no more.
        max_pixels: Images with more pixels are refused before they are decoded.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    host: str = "sfp"
    sfp: SfpConfig = field(default_factory=SfpConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    purification: PurificationConfig = field(default_factory=PurificationConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    window_batch: int | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        _require(
            self.window_batch is None or self.window_batch >= 1,
            f"window_batch is {self.window_batch}; give at least 1, or none for the device's own",
        )
        _require(self.max_pixels >= 1, f"max_pixels is {self.max_pixels}; give at least 1")

    @property
    def head_settings(self) -> Any:
        """The settings of the dense head: the field that has its name; None for a head without settings."""
        return getattr(self, self.host, None) if self.host in HEAD_SETTINGS else None

    @property
    def tower_part(self) -> tuple[object, ...]:
        """What decides which model runs on which pixels, and what it is asked for; the rest is done afterwards."""
        return self.model, self.host, self.head_settings, self.windows, self.purification.active

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide results as nested plain values.

        What only costs speed or memory is left out, and so is where weights came from: their contents count.
        """
        values = self.to_dict()
        values.pop("window_batch")
        values["purification"].pop("phrase_chunk")
        values["model"].pop("pretrained")
        for head in HEAD_SETTINGS - {self.host}:
            values.pop(head)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SegmenterConfig":
        """Rebuild a configuration from `to_dict`; unknown fields raise `ConfigError`."""
        built: SegmenterConfig = _build(cls, values)
        return built


HEAD_SETTINGS = frozenset(
    entry.name
    for entry in fields(SegmenterConfig)
    if isinstance(entry.type, type) and issubclass(entry.type, HeadSettings)
)
"""The fields of `SegmenterConfig` that hold the settings of the dense head of their name."""


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    known = {entry.name: entry for entry in fields(kind)}
    unknown = sorted(set(values) - set(known))
    _require(not unknown, f"unknown fields {unknown} for {kind.__name__}; it has {sorted(known)}")
    return kind(
        **{
            name: _build(known[name].type, value) if is_dataclass(known[name].type) else value
            for name, value in values.items()
        }
    )
