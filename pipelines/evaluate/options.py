"""What a user may set about the pairs to measure on; the sources are imported when they are opened."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ovss_core.errors import ConfigError
from pipelines.sources.kinds.base import place

if TYPE_CHECKING:
    from ovss_core.vocabulary import Vocabulary
    from pipelines.evaluate.pairs import PairSource

GridName = Literal["systems", "papers", "ablations", "towers"]


@dataclass(frozen=True)
class PairOptions:
    """What to measure on; give --benchmark and --root, or --images, --masks and --vocabulary.

    Attributes:
        benchmark: One of the papers' benchmarks, by its name in `ovss_core.evaluation.benchmarks`; its vocabulary
            and constants take the place of the defaults.
        root: Folder of the benchmark's data set, as mmsegmentation lays it out; local path or URI.
        images: Folder, glob, file or list of your own images.
        masks: Folder of index PNGs named as the images; a pixel's value is its class's position in the
            vocabulary, 255 is ignored.
        vocabulary: Words by commas (cat,dog), a file with a class a line, or a shipped name (such as voc21).
        limit: Measure only so many images, evenly spread.
        oracle: Also label with only each image's present classes offered, and report the gap.
        grid: Measure hosts x purification x thresholds and the papers' ablations, as one table. On a benchmark
            every row takes its protocol's settings (of your flags: the model, `--host` for FreeCP's ablations,
            `--refine`, memory and workers); on folders it takes yours. "systems" measures the systems of the papers' tables instead
            (ovss systems lists them), beside their published figures; "papers" those of both papers' main tables,
            "ablations" the rows of their ablations, "towers" SFP on another tower, as ovss reproduce does.
        max_bytes: Image files with more bytes are refused before they are read.
        fetch_timeout_s: Seconds that one image may take to arrive, tries and waits included.
        region_maps: Folder of region maps that a mask generator made: PNGs named as the images, ending in .png, whose
            pixels hold the number of their region, 0 for none.
    """

    benchmark: str | None = None
    root: str | None = place("FOLDER")
    images: str | None = place()
    masks: str | None = place("FOLDER")
    vocabulary: str | list[str] | None = None
    limit: int | None = None
    oracle: bool = True
    grid: bool | GridName = False
    max_bytes: int = 1 << 28
    fetch_timeout_s: float = 60.0
    region_maps: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; give at least 1")
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes is {self.max_bytes}; give at least 1")
        if not self.fetch_timeout_s > 0:
            raise ConfigError(f"fetch_timeout_s is {self.fetch_timeout_s}; give more than 0 seconds")

    def open(self, vocabulary: "Vocabulary") -> "PairSource":
        """Open the pairs that were asked for.

        Raises:
            ConfigError: What was given is not one of the two ways, or the vocabulary does not fit.
            StorageError: The files are not there.
        """
        # imported here: help and the checks of flags must not wait for Arrow
        from ovss_core.evaluation.benchmarks import get_benchmark
        from pipelines.evaluate.pairs import BenchmarkSource, FolderPairsSource

        if self.benchmark and self.root and not self.images and not self.masks:
            benchmark = get_benchmark(self.benchmark)
            if len(vocabulary) != benchmark.classes:
                raise ConfigError(
                    f"{benchmark.name} has {benchmark.classes} classes, the vocabulary {len(vocabulary)}; give one with "
                    "a line for each, or leave --vocabulary out"
                )
            return BenchmarkSource(benchmark, self.root, self.limit)
        if self.images and self.masks and not self.root:
            return FolderPairsSource(self.images, self.masks, len(vocabulary), self.limit)
        raise ConfigError(
            "give --benchmark with --root, or --images with --masks (and --vocabulary, or --benchmark for its "
            "vocabulary and constants)"
        )
