"""Every number with a meaning, as frozen dataclasses; each field says which way it acts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from ovss_core.errors import ConfigError
from ovss_core.head_names import proxy_hosts

Precision = Literal["float32", "bfloat16", "float16"]
Background = Literal["auto", "none", "first_class", "residual"]
BackgroundPolicy = Literal["none", "first_class", "residual"]
SfpVariant = Literal["released", "paper"]
OutlierRule = Literal["attention", "norm", "local_outlier_factor"]
PurificationMethod = Literal["freecp", "car", "none"]
VisualPrompt = Literal["circle_blur", "blur_gray"]
PurificationVariant = Literal["image", "filter", "released", "paper"]
Consistency = Literal["probability", "normalized"]
Thresholds = Literal["published", "fixed", "distractors", "auto"]
ResClipBase = Literal["naclip", "clearclip", "sclip"]
PearlAlignment = Literal["polar", "svd"]
ConfidenceDetail = Literal["none", "image", "pixel"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    _require(value in allowed, f"{name} is {value!r}; give one of {', '.join(map(repr, allowed))}")


def _require_positive(name: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, f"{name} is {value}; give a number above 0")


def _require_share(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, f"{name} is {value}; give a number from 0 to 1")


@dataclass(frozen=True)
class ModelConfig:
    """Which CLIP to hold.

    Attributes:
        name: An open_clip ViT architecture, or "demo" for the small model that ships with ovss.
        pretrained: An open_clip weight tag (downloaded by open_clip), a path to a state dict, safetensors
            file or OpenAI TorchScript archive (read as data, never run), or "random" for seeded random weights
            (tests only). With "demo" the default means the weights that ship with ovss. Jobs also take the address of
            such a file (s3://, gs://, hf://), which they fetch once for all workers.
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
class ProxyConfig:
    """A second image tower beside CLIP, for the hosts that need one.

    Attributes:
        name: A ViT of timm whose family ovss knows, such as vit_base_patch16_224.dino, or its original's name, such
            as dino_vitb8. None: no second tower.
        pretrained: "hub" for the weights that timm downloads, a path to a state dict or safetensors file (read as
            data, never run; timm's names or the original's), or "random" for seeded random weights (tests only).
        scale: Times as many pixels a side as CLIP gets of a window, cut from the image itself: with 2, patches of 16
            pixels lie as densely as patches of 8. Larger: finer masks, much more work.
    """

    name: str | None = None
    pretrained: str = "hub"
    scale: int = 1

    def __post_init__(self) -> None:
        _require(self.scale >= 1, f"proxy.scale is {self.scale}; give at least 1")


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
class ClipSurgeryConfig(HeadSettings):
    """CLIP Surgery (Pattern Recognition 2025).

    Attributes:
        feature_surgery: Weight each word by how much the window's class token speaks for it.
    """

    feature_surgery: bool = False


@dataclass(frozen=True)
class CliptraseConfig(HeadSettings):
    """CLIPtrase (ECCV 2024).

    Attributes:
        clustering: Cluster each window's patches, and let each cluster vote for one word (with FreeCP: share its mean
            scores). A GPU is waited for once a batch.
        distance: Patches whose rows of correlation are not farther apart are neighbors; larger makes fewer, larger
            clusters. The authors take 0.7 for windows of 224 pixels and 1.1 for 336.
        neighbors: A patch with so many, itself among them, can begin a cluster: 3 for 224 pixels, 7 for 336.
    """

    clustering: bool = False
    distance: float = 0.7
    neighbors: int = 3

    def __post_init__(self) -> None:
        _require_positive("cliptrase.distance", self.distance)
        _require(self.neighbors >= 1, f"cliptrase.neighbors is {self.neighbors}; give at least 1")


@dataclass(frozen=True)
class ResClipConfig(HeadSettings):
    """ResCLIP (CVPR 2025): the attention of middle blocks beside another head's in the last block.

    Attributes:
        base: The head whose attention it is mixed with; sclip keeps the block's residual and feed-forward network.
        residual_weight: Share of the middle blocks' attention, lambda. The authors take 0.3 for VOC21, Context60
            and ADE, 0.4 for Context59, Object and Stuff, 0.6 for VOC20 and 0.2 for Cityscapes.
        gain: Factor on the mixture, tau; without a residual it only weighs attention against the projection's bias.
        feedback: Label the patches once, and let those labels guide the attention of a second pass. Costs maps of
            all phrases at the size of every window.
        feedback_weight: Share of the labels beside the head's own logits. The authors take 0.7, and 0.6 for VOC20 and
            Cityscapes.
        feedback_gain: Factor on both; larger is sharper. The authors take 2.1 for ADE, VOC20 and Cityscapes, 2.2 for
            VOC21 and 1.8 elsewhere.
        feedback_threshold: Pixels whose best probability in the first pass is below count as the first phrase. The
            authors take 0.1 to 0.5 by data set.
    """

    base: ResClipBase = "naclip"
    residual_weight: float = 0.3
    gain: float = 2.0
    feedback: bool = False
    feedback_weight: float = 0.7
    feedback_gain: float = 2.1
    feedback_threshold: float = 0.25

    def __post_init__(self) -> None:
        _require_choice("resclip.base", self.base, ResClipBase)
        _require_share("resclip.residual_weight", self.residual_weight)
        _require_positive("resclip.gain", self.gain)
        _require_share("resclip.feedback_weight", self.feedback_weight)
        _require_positive("resclip.feedback_gain", self.feedback_gain)
        _require_share("resclip.feedback_threshold", self.feedback_threshold)


@dataclass(frozen=True)
class ItaClipConfig(HeadSettings):
    """ITACLIP (CVPR workshops 2025): the attention of middle blocks beside the last block's own.

    Attributes:
        self_attention: Queries attend to queries and keys to keys in every block that lends; off takes each block's
            attention as trained.
    """

    self_attention: bool = True


@dataclass(frozen=True)
class PearlConfig(HeadSettings):
    """PEARL (CVPR 2026): keys turned towards the queries, head by head.

    Attributes:
        alignment: How the turn is found: "polar" goes a few steps towards it, as the authors' code does; "svd" takes
            the orthogonal factor itself.
        iterations: Steps of "polar"; more come nearer to "svd".
        centered_weight: Weight alpha of the centered keys with their like. The authors take 0.08, and 0.3 for ADE and
            Cityscapes.
    """

    alignment: PearlAlignment = "polar"
    iterations: int = 5
    centered_weight: float = 0.08

    def __post_init__(self) -> None:
        _require_choice("pearl.alignment", self.alignment, PearlAlignment)
        _require(self.iterations >= 1, f"pearl.iterations is {self.iterations}; give at least 1")
        _require(
            math.isfinite(self.centered_weight) and self.centered_weight >= 0,
            f"pearl.centered_weight is {self.centered_weight}; give a number of at least 0",
        )


@dataclass(frozen=True)
class ProxyClipConfig(HeadSettings):
    """ProxyCLIP (ECCV 2024): CLIP's values, gathered by the cosines S of the second tower's patches.

    Attributes:
        beta: Entries of S below beta times the mean of S are cut off; larger keeps fewer.
        gamma: Factor on what is left before the softmax; larger is sharper.
    """

    beta: float = 1.2
    gamma: float = 3.0

    def __post_init__(self) -> None:
        _require_positive("proxyclip.beta", self.beta)
        _require_positive("proxyclip.gamma", self.gamma)


@dataclass(frozen=True)
class CorrClipConfig(HeadSettings):
    """CorrCLIP (ICCV 2025): CLIP's values, gathered inside regions by the second tower's q + k, and two more branches.

    Without regions no patch lies in one, and a patch sees those whose cosine is above the window's mean.

    Attributes:
        gain: Factor on the cosines before the softmax; larger is sharper.
        merge_distance: Regions whose mean vectors' cosine is within this of the largest become one; larger merges
            more.
        spatial: Add the branch that reads the mean of the middle blocks in place of block L-1.
        spatial_start: First block (from 1) of that mean, which ends with block L-2. None: half of the blocks, as
            released for 12 and 24 of them (for 32 the released code has 28).
        semantic_weight: Weight of the branch of the regions' own class tokens; 0 leaves it out.
    """

    gain: float = 4.0
    merge_distance: float = 0.2
    spatial: bool = True
    spatial_start: int | None = None
    semantic_weight: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("corrclip.gain", self.gain)
        for name in ("merge_distance", "semantic_weight"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value >= 0,
                f"corrclip.{name} is {value}; give a number of at least 0",
            )
        _require(
            self.spatial_start is None or self.spatial_start >= 1,
            f"corrclip.spatial_start is {self.spatial_start}; blocks count from 1",
        )


@dataclass(frozen=True)
class RfClipConfig(HeadSettings):
    """RF-CLIP (AAAI 2026): patches that a few over-activated channels dominate, repaired after every block.

    Attributes:
        channels: The over-activated channels. Unset takes those that are known of the checkpoint; ``ovss channels``
            finds those of any other; an empty list repairs nothing.
        channel_threshold: A patch is repaired when one of them holds more than this many times an equal share of
            it; larger repairs fewer.
        blend: Share of the mean around it that a repaired patch takes.
    """

    channels: tuple[int, ...] | None = None
    channel_threshold: float = 5.0
    blend: float = 0.4

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))  # a list, where it comes from JSON
            wrong = [channel for channel in self.channels if channel < 0]
            _require(not wrong, f"rfclip.channels has {wrong}; channels count from 0")
        _require_positive("rfclip.channel_threshold", self.channel_threshold)
        _require_share("rfclip.blend", self.blend)


@dataclass(frozen=True)
class CliperConfig(HeadSettings):
    """CLIPer (ICCV 2025), without its diffusion model: probabilities from every block's tokens.

    Attributes:
        text_scale: Factor on cosines before the softmax over phrases. The authors take 100, and 50 for Object and Stuff.
        attention_threshold: What of the last set's map is below this share of its peak is not spread; larger spreads
            less. The authors take 0.1 for VOC, 0.35 for Cityscapes and 0.2 elsewhere.
    """

    text_scale: float = 100.0
    attention_threshold: float = 0.2

    def __post_init__(self) -> None:
        _require_positive("cliper.text_scale", self.text_scale)
        _require_share("cliper.attention_threshold", self.attention_threshold)


@dataclass(frozen=True)
class PurificationConfig:
    """FreeCP, "Training-Free Class Purification" (ICCV 2025): which parts run, in which form, how strictly.

    Attributes:
        method: "freecp" removes words that are absent from the image and settles words that claim one region;
            "car" removes words in rounds, in which the encoder is shown a picture for each word that is left
            (`CarConfig`), and labels with the host's own scores of the rest: many times the work of FreeCP; "none"
            labels with the host's own scores.
        variant: FreeCP's form: "image" decides once an image, and labels by the purified maps; "filter" decides the
            same, and labels by the host's own scores of the words that are left; "released" decides once a window as
            the authors' code, "paper" once a window by the paper's equations. "released" over `gem` differs from
            the authors' code in two points: crops are encoded with this tower's own resampling of positions, and
            the maps spread along the mean of all attention heads, where their path has head 0 alone.
        consistency: What the "paper" form compares a refined map with, which the paper leaves open: "probability",
            the softmax as it stands, under which the published thresholds (0.05 to 0.15) remove classes; or
            "normalized", the same stretched to [0, 1] for each class, under which next to every class is above them.
        redundancy: Remove the classes that are absent from the image.
        ambiguity: Let one class win where several claim the same region.
        thresholds: "published" takes FreeCP's own numbers, as a curve over the number of words that compete
            (`published_thresholds`); "fixed" the two numbers below; "distractors" keeps what scores above words that are
            known to be from elsewhere, so that about one word an image would pass by chance if the vocabulary's
            absent words were as foreign to it. Absent words of the images' own kind score higher: 12 to 21 of them
            passed on drawn scenes (docs/evaluation.md). "auto" is its old name.
        redundancy_threshold: Keep a class when its score is above this; larger removes more. Scores are below 0.5,
            mostly far below ("image", "filter", "released"), or a soft IoU from 0 to 1 ("paper"). None: the published one.
        ambiguity_threshold: Classes whose maps' soft IoU reaches this are ambiguous; larger groups fewer. None: the
            published one.
        score_scale: Factor on cosines before the softmax; larger is more peaked. None: the one that the weights were
            trained with, as in FreeCP's released code (100 for OpenAI's).
        crop_size: Side in pixels to which an ambiguous region is resized before it is encoded.
        box_threshold: Share of a map's maximum above which a patch belongs to a region.
        phrase_chunk: Phrases scored at once; bounds memory, does not change the labels.
    """

    method: PurificationMethod = "freecp"
    variant: PurificationVariant = "image"
    consistency: Consistency = "probability"
    redundancy: bool = True
    ambiguity: bool = True
    thresholds: Thresholds = "published"
    redundancy_threshold: float | None = None
    ambiguity_threshold: float | None = None
    score_scale: float | None = None
    crop_size: int = 112
    box_threshold: float = 0.4
    phrase_chunk: int = 512

    def __post_init__(self) -> None:
        _require_choice("purification.method", self.method, PurificationMethod)
        _require_choice("purification.variant", self.variant, PurificationVariant)
        _require_choice("purification.consistency", self.consistency, Consistency)
        _require_choice("purification.thresholds", self.thresholds, Thresholds)
        for name in ("redundancy_threshold", "ambiguity_threshold", "box_threshold"):
            value = getattr(self, name)
            _require(
                value is None or 0.0 <= value <= 1.0,
                f"purification.{name} is {value}; give a number from 0 to 1",
            )
        if self.score_scale is not None:
            _require_positive("purification.score_scale", self.score_scale)
        _require(self.phrase_chunk >= 1, f"purification.phrase_chunk is {self.phrase_chunk}; give at least 1")
        _require(self.crop_size >= 1, f"purification.crop_size is {self.crop_size}; give at least 1")

    @property
    def active(self) -> bool:
        """Whether FreeCP purifies classes."""
        return self.method == "freecp"

    @property
    def in_rounds(self) -> bool:
        """Whether CaR filters words."""
        return self.method == "car" and self.redundancy

    @property
    def by_image(self) -> bool:
        """Whether an image decides as a whole; otherwise each of its windows does."""
        return self.variant in ("image", "filter")

    @property
    def own_scores(self) -> bool:
        """Whether labels come from the host's own scores, in its own form; otherwise from purified maps."""
        return not self.active or self.variant == "filter"

    def numbers(self, words: int, logit_scale: float) -> "PurificationNumbers":
        """Settle what is left to the vocabulary and the model.

        Args:
            words: Classes that compete, the background left out.
            logit_scale: Factor on cosines that the weights were trained with.
        """
        published = published_thresholds(words)
        given = self.redundancy_threshold, self.ambiguity_threshold
        redundancy, ambiguity = (
            default if value is None else value for value, default in zip(given, published, strict=True)
        )
        return PurificationNumbers(
            redundancy, ambiguity, logit_scale if self.score_scale is None else self.score_scale
        )

    @property
    def needs_crops(self) -> bool:
        """Whether stage 2 has pictures to encode, so that it deserves a pool of its own."""
        return self.in_rounds or (self.active and self.ambiguity)

    @property
    def needs_distractors(self) -> bool:
        """Whether the text side must hold words that are known to be absent."""
        return self.active and self.by_distractors

    @property
    def by_distractors(self) -> bool:
        """Whether the redundancy decision compares with words that are known to be from elsewhere."""
        return self.redundancy and self.thresholds in ("distractors", "auto")


@dataclass(frozen=True)
class CarConfig:
    """CaR, "CLIP as RNN" (CVPR 2024): words leave in rounds, until none does; for --purify car.

    Attributes:
        threshold: A word stays when the score of its own picture is above this, and the best word where none is; larger
            removes more. The authors take 0.6 for VOC, 0.25 for Context and 0.3 for COCO.
        gain: Factor on a picture's shares of the words before the second softmax; larger sets scores further apart. The
            authors sum over their 15 prompts, which is 15 times the mean.
        mask_threshold: Pixels whose map is above this share of its range are shown clearly; larger shows less.
        prompt: What becomes of the rest of a word's picture: "circle_blur" blurs it and draws a red ellipse; "blur_gray"
            blurs it and takes its color.
        last_block: Judge by the class token of the whole tower. The authors' code leaves the last block out, which a judge
            of 24 blocks may bear; the small model that ships with ovss then keeps wrong words.
    """

    threshold: float = 0.6
    gain: float = 15.0
    mask_threshold: float = 0.5
    prompt: VisualPrompt = "circle_blur"
    last_block: bool = True

    def __post_init__(self) -> None:
        _require_share("car.threshold", self.threshold)
        _require_positive("car.gain", self.gain)
        _require_share("car.mask_threshold", self.mask_threshold)
        _require_choice("car.prompt", self.prompt, VisualPrompt)


@dataclass(frozen=True)
class PurificationNumbers:
    """What a purification of one vocabulary by one model decides with.

    Attributes:
        redundancy: As `PurificationConfig.redundancy_threshold`; not used by "distractors".
        ambiguity: As `PurificationConfig.ambiguity_threshold`.
        score_scale: As `PurificationConfig.score_scale`.
    """

    redundancy: float
    ambiguity: float
    score_scale: float


def published_thresholds(words: int) -> tuple[float, float]:
    """Return FreeCP's thresholds of redundancy and ambiguity for a vocabulary of so many words.

    FreeCP publishes a pair for each data set: 0.15 and 0.7 to 0.8 for the 20 words of PASCAL VOC, 0.10 and 0.7 for
    the 59 of Context, 0.05 and 0.7 for the 150 of ADE20K and the 171 of COCO-Stuff, because a class's score falls
    as more words share the softmax. In the logarithm of their number these lie on straight lines, which are
    continued neither below 20 words nor above 150. (Cityscapes, 19 words at 0.10, and COCO-Object, 80 at 0.15, lie
    0.05 and 0.07 off the line.)

    Args:
        words: Classes that compete, the background left out.

    Examples:
        >>> [tuple(round(number, 2) for number in published_thresholds(words)) for words in (20, 59, 150, 1200)]
        [(0.15, 0.8), (0.1, 0.7), (0.05, 0.7), (0.05, 0.7)]
    """
    steps = math.log(min(max(words, 20), 150) / 20)
    redundancy = 0.15 - 0.10 * steps / math.log(150 / 20)
    ambiguity = 0.8 - 0.1 * min(steps / math.log(60 / 20), 1.0)
    return redundancy, ambiguity


@dataclass(frozen=True)
class RegionConfig:
    """What the regions that a mask generator made of each image are used for.

    Attributes:
        vote: Every region takes the class that most of its pixels have, after everything else.
        scope: A patch sees patches of its own region only, in hosts that can (corrclip merges regions that look alike
            first).
        min_agreement: Regions less of whose pixels agree than this share become 255, "ignore" (65535 in masks of 16
            bits); larger ignores more. Goes with vote.
    """

    vote: bool = False
    scope: bool = False
    min_agreement: float = 0.0

    def __post_init__(self) -> None:
        _require(
            0.0 <= self.min_agreement <= 1.0,
            f"regions.min_agreement is {self.min_agreement}; give a share from 0 to 1",
        )
        _require(
            self.vote or self.min_agreement == 0,
            "regions.min_agreement goes with regions.vote, which is off; turn it on",
        )

    @property
    def used(self) -> bool:
        """Whether anything reads regions."""
        return self.vote or self.scope


@dataclass(frozen=True)
class LabelConfig:
    """How score maps become labels.

    Attributes:
        logit_scale: Factor on cosines before the softmax over phrases (where labels come from the host's own scores:
            without purification, and in its form "filter").
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


class RefinerSettings:
    """What a dataclass of a refiner's own settings inherits; the field of `SegmenterConfig` has the refiner's name."""


@dataclass(frozen=True)
class PamrConfig(RefinerSettings):
    """PAMR, the refiner of several papers' tables.

    Attributes:
        iterations: Times that each pixel takes its neighbors' mean; more smooths further.
        dilations: Distances in pixels of the neighbors that give, 8 at each; larger smooths further.
    """

    iterations: int = 10
    dilations: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dilations", tuple(self.dilations))
        _require(self.iterations >= 1, f"pamr.iterations is {self.iterations}; give at least 1")
        _require(
            len(self.dilations) > 0 and all(distance >= 1 for distance in self.dilations),
            f"pamr.dilations is {list(self.dilations)}; give distances of at least 1, such as [8,16]",
        )


@dataclass(frozen=True)
class TlpConfig(RefinerSettings):
    """PEARL's Laplacian propagation.

    Attributes:
        grid: About so many cells lie along each side of the image; fewer smooth further (PEARL: 80, on Cityscapes 224).
        steps: Of conjugate gradients; 25 are nearly the exact solution.
    """

    grid: int = 80
    steps: int = 25

    def __post_init__(self) -> None:
        for name in ("grid", "steps"):
            _require(getattr(self, name) >= 1, f"tlp.{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that decides what mask an image gets, and how much memory that takes.

    Attributes:
        host: How dense features are read out of CLIP: the dense head of that name in `ovss_core.dense_heads`. Several by
            commas, such as sfp,naclip, share one pass through the image tower, and the mean of their scores counts.
        class_prior: Share that the class token of the whole image has in every score; larger favors words that the
            image as a whole speaks for, and costs one more encoded window an image. 0 leaves it out.
        refine: What fits the score maps to the picture's edges before labels are assigned, with and without
            purification: the refiner of that name in `ovss_core.refiners`, or "none".
        window_batch: Windows encoded at once; larger fills a GPU better and takes more memory. None: 128 on a GPU,
            256 where purification follows, and 8 on a CPU, whose caches hold no more.
        max_pixels: Images with more pixels are refused before they are decoded.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    host: str = "sfp"
    class_prior: float = 0.0
    sfp: SfpConfig = field(default_factory=SfpConfig)
    clipsurgery: ClipSurgeryConfig = field(default_factory=ClipSurgeryConfig)
    cliptrase: CliptraseConfig = field(default_factory=CliptraseConfig)
    resclip: ResClipConfig = field(default_factory=ResClipConfig)
    itaclip: ItaClipConfig = field(default_factory=ItaClipConfig)
    pearl: PearlConfig = field(default_factory=PearlConfig)
    rfclip: RfClipConfig = field(default_factory=RfClipConfig)
    cliper: CliperConfig = field(default_factory=CliperConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    proxyclip: ProxyClipConfig = field(default_factory=ProxyClipConfig)
    corrclip: CorrClipConfig = field(default_factory=CorrClipConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    purification: PurificationConfig = field(default_factory=PurificationConfig)
    car: CarConfig = field(default_factory=CarConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    refine: str = "none"
    pamr: PamrConfig = field(default_factory=PamrConfig)
    tlp: TlpConfig = field(default_factory=TlpConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    window_batch: int | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        _require(
            self.window_batch is None or self.window_batch >= 1,
            f"window_batch is {self.window_batch}; give at least 1, or none for the device's own",
        )
        object.__setattr__(self, "host", ",".join(self.hosts))  # blanks mean nothing
        _require_share("class_prior", self.class_prior)
        _require(self.max_pixels >= 1, f"max_pixels is {self.max_pixels}; give at least 1")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the dense heads."""
        return tuple(name.strip() for name in self.host.split(","))

    def head_settings(self, host: str) -> Any:
        """Return the settings of a dense head: the field that has its name; None for a head without settings."""
        return getattr(self, host, None) if host in HEAD_SETTINGS else None

    @property
    def refiner_settings(self) -> Any:
        """The settings of the refiner: the field that has its name; None without one."""
        return getattr(self, self.refine, None) if self.refine in REFINER_SETTINGS else None

    @property
    def tower_part(self) -> tuple[object, ...]:
        """What decides which model runs on which pixels, and what it is asked for; the rest is done afterwards."""
        whole = self.class_prior > 0
        return (
            *(self.model, self.hosts, *map(self.head_settings, self.hosts)),
            *(self.windows, self.purification.active, whole),
            *(self.purification.own_scores, self.proxy if self.needs_proxy else None, self.regions.scope),
        )

    @property
    def needs_proxy(self) -> bool:
        """Whether a dense head reads a second tower."""
        return not proxy_hosts().isdisjoint(self.hosts)

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide results as nested plain values.

        What only costs speed or memory is left out, and so is where weights came from: their contents count.
        """
        values = self.to_dict()
        values.pop("window_batch")
        values["purification"].pop("phrase_chunk")
        values["model"].pop("pretrained")
        values["proxy"].pop("pretrained")
        if not self.needs_proxy:
            values.pop("proxy")
        if not self.regions.used:
            values.pop("regions")
        if self.purification.method != "car":
            values.pop("car")
        for unread in (HEAD_SETTINGS | REFINER_SETTINGS) - {*self.hosts, self.refine}:
            values.pop(unread)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        return asdict(self, dict_factory=_as_plain)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SegmenterConfig":
        """Rebuild a configuration from `to_dict`; unknown fields raise `ConfigError`.

        Examples:
            >>> config = SegmenterConfig.from_dict({"host": "naclip", "purification": {"variant": "released"}})
            >>> config.host, config.purification.variant, config.windows.size
            ('naclip', 'released', 224)
        """
        built: SegmenterConfig = _build(cls, values)
        return built


def _as_plain(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in entries}


def _fields_that_hold(kind: type) -> frozenset[str]:
    return frozenset(
        entry.name
        for entry in fields(SegmenterConfig)
        if isinstance(entry.type, type) and issubclass(entry.type, kind)
    )


HEAD_SETTINGS = _fields_that_hold(HeadSettings)
"""The fields of `SegmenterConfig` that hold the settings of the dense head of their name."""
REFINER_SETTINGS = _fields_that_hold(RefinerSettings)
"""Those that hold the settings of the refiner of their name."""


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


OnTop = Literal["small", "large"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Which mask generator makes regions, and what it keeps.

    Attributes:
        generator: Folder as transformers saves it, or name on the hub, such as facebook/sam2.1-hiera-large or
            tue-mps/coco_panoptic_eomt_large_640; its kind is read from its config.json.
        points: Points a side of the grid that SAM 2 is asked at; more finds smaller objects and takes longer.
        points_at_once: Points that SAM 2 decodes together; fewer need less memory.
        min_quality: SAM 2's masks of a lower predicted IoU are dropped, and EoMT's segments of a lower probability.
        min_stability: SAM 2's masks that change more with their threshold are dropped.
        max_pixels: Images of more pixels are failures.
        on_top: Which of SAM 2's overlapping masks a pixel belongs to: the small one keeps parts and small objects.
    """

    generator: str
    points: int = 32
    points_at_once: int = 64
    min_quality: float = 0.8
    min_stability: float = 0.95
    on_top: OnTop = "small"
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        for name in ("points", "points_at_once", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("min_quality", "min_stability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number from 0 to 1")
        if self.on_top not in ("small", "large"):
            raise ConfigError(f"on_top is {self.on_top!r}; give one of 'small', 'large'")
