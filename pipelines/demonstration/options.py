"""What a user may set about drawn scenes; reading it draws nothing and needs no Arrow."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from ovss_core.config import PurificationConfig, PurificationVariant, WindowConfig
from ovss_core.errors import ConfigError

SEED_SPACING = 1_000_000_000
"""Scene i of seed s is drawn from s times this plus i, so that two seeds share no scene."""
HELD_OUT_SEED = 1_000_000_000
"""Seeds from here on are never trained on; measurements draw their scenes from them."""
SceneFormat = Literal["folder", "parquet", "webdataset"]
PictureFormat = Literal["png", "jpeg"]


@dataclass(frozen=True)
class ScenesConfig:
    """What to draw.

    Attributes:
        output: Folder or URI.
        count: Number of scenes, at least 1.
        seed: Scene i depends on this seed and on i alone; at least 0.
        size: Side of the pictures in pixels, at least 32.
        format: "folder" (``images/`` and ``masks/``), "parquet" or "webdataset".
        image_format: "png" keeps the drawn pixels, "jpeg" is smaller.
        shard: Scenes a shard; a core holds one shard in memory.
        workers: Processes; None for one a core.
    """

    output: str
    count: int
    seed: int = 0
    size: int = 336
    format: SceneFormat = "folder"
    image_format: PictureFormat = "png"
    shard: int = 256
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("count", 1, SEED_SPACING),
            ("seed", 0, 2**53),
            ("size", 32, 8192),
            ("shard", 1, 1_000_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"--{name} is {getattr(self, name)}; give a number from {least:,} to {most:,}"
                )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; give at least 1, or leave it out for one a core")
        for name, kind in (("format", SceneFormat), ("image_format", PictureFormat)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}; give one of {', '.join(get_args(kind))}"
                )


MEASURED_METHODS = ("none", *get_args(PurificationVariant))
"""Labelling without purification, and the forms of FreeCP."""
MEASURED_VOCABULARIES = ("present", "full", "over", "ade144", "many")
"""What a scene may be offered: its own words, the 44 of all scenes, and these with 44, 100 (of ade20k) or 1,000 more."""


@dataclass(frozen=True)
class MeasureOptions:
    """In which ways drawn scenes are labelled and counted.

    Attributes:
        methods: "none", and forms of FreeCP.
        vocabularies: Of `MEASURED_VOCABULARIES`.
        windows: How scenes are resized and cut.
        purification: Thresholds and the like; the form is each method's.
    """

    methods: tuple[str, ...] = ("none", "image")
    vocabularies: tuple[str, ...] = ("present", "full", "over")
    windows: WindowConfig = field(default_factory=WindowConfig)
    purification: PurificationConfig = field(default_factory=PurificationConfig)

    def __post_init__(self) -> None:
        for flag, given, known in (
            ("methods", self.methods, MEASURED_METHODS),
            ("vocabularies", self.vocabularies, MEASURED_VOCABULARIES),
        ):
            strange = [name for name in given if name not in known]
            if strange or not given:
                raise ConfigError(
                    f"--{flag} {','.join(strange) or 'is empty'}: give some of {', '.join(known)}, by commas"
                )
