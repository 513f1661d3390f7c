"""What a user may set about selections and exports."""

from dataclasses import dataclass
from typing import Literal, get_args

from ovss_core.errors import ConfigError
from pipelines.run.events import LogFormat


@dataclass(frozen=True)
class DeriveOptions:
    """Where the result goes, and how the job runs.

    Attributes:
        output: Folder for everything that is written; local path or URI. A job that was interrupted goes on.
        overwrite: Remove what an earlier job over labels wrote into the output folder, and start anew.
        address: Ray cluster to join ("auto": the one on this machine); the default starts one here, unless
            RAY_ADDRESS says otherwise.
        progress_s: Seconds between lines that say how far the job is.
        plain: Write lines on a terminal, too, where a live display would be.
        log_format: Whether these lines are text or JSON objects.
        verbose: Show Ray's own messages.
    """

    output: str
    overwrite: bool = False
    address: str | None = None
    progress_s: float = 10.0
    plain: bool = False
    log_format: LogFormat = "text"
    verbose: bool = False

    def __post_init__(self) -> None:
        if not self.progress_s > 0:
            raise ConfigError(f"progress_s is {self.progress_s}; give more than 0 seconds")


@dataclass(frozen=True)
class SelectOptions:
    """Which labels are selected; what is not set selects everything.

    Attributes:
        min_confidence: Pixels whose margin over the second class is below lose their label. Needs labels with
            --confidence pixel.
        best_share: Of each class only this share of all its pixels keeps a label, those with the largest margins; a
            floor for each class, as class-balanced self-training has it.
        words: Only images with one of these classes.
        without: Only images with none of these.
        min_share: One of `words` must cover at least this share of the image.
        min_words: Only images with at least so many classes.
        max_words: Only images with at most so many.
        min_score: Only images whose mean score is at least this.
        min_margin: Only images whose mean margin is at least this.
        min_sure: Only images of which at least this share of pixels is sure.
        max_ignored: Only images of which at most this share has no label.
        max_disagreement: Only images on at most this share of which several hosts disagree. Needs labels of several.
        count: At most so many images, drawn by a chance that follows from their ids.
        per_class: Images are drawn until each class has so many, or all that there are.
        seed: Another one draws others.
    """

    min_confidence: float = 0.0
    best_share: float | None = None
    words: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    min_share: float = 0.0
    min_words: int = 0
    max_words: int | None = None
    min_score: float | None = None
    min_margin: float | None = None
    min_sure: float | None = None
    max_ignored: float | None = None
    max_disagreement: float | None = None
    count: int | None = None
    per_class: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "min_confidence",
            "best_share",
            "min_share",
            "min_score",
            "min_margin",
            "min_sure",
            "max_ignored",
            "max_disagreement",
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{_flag(name)} is {value}; give a number from 0 to 1, such as 0.5")
        for name in ("min_words", "max_words", "count", "per_class", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{_flag(name)} is {value}; give at least 0")
        if self.min_share and not self.words:
            raise ConfigError("--min-share is the share of --words; give those, too")


ExportFormat = Literal[
    "coco-instances",
    "coco-panoptic",
    "mmseg",
    "yolo-seg",
    "huggingface",
    "webdataset",
    "label-studio",
    "cvat",
]


@dataclass(frozen=True)
class ExportOptions:
    """What labels are turned into.

    Attributes:
        format: The format: JSON of COCO, folders for MMSegmentation or YOLO, Parquet for the Hugging Face Hub, shards for
            WebDataset, or pre-annotations for Label Studio or CVAT.
        val_share: Share of the images that go into the split "val", by a hash of their ids; the others are "train".
        images_per_file: Formats with one index of all images get several where there are more.
    """

    format: ExportFormat
    val_share: float = 0.0
    images_per_file: int = 50_000

    def __post_init__(self) -> None:
        if self.format not in get_args(ExportFormat):
            raise ConfigError(f"format is {self.format!r}; give one of {', '.join(get_args(ExportFormat))}")
        if not 0.0 <= self.val_share <= 1.0:
            raise ConfigError(f"--val-share is {self.val_share}; give a number from 0 to 1, such as 0.1")
        if self.images_per_file < 1:
            raise ConfigError(f"--images-per-file is {self.images_per_file}; give at least 1")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
