"""What a labelling run stores beside the masks."""

from dataclasses import dataclass

from ovss_core.errors import ConfigError
from pipelines.run.share import Share


@dataclass(frozen=True)
class OutputOptions:
    """Columns that only some readers want.

    Attributes:
        embed_images: Store each image's own bytes beside its mask, so that the output is a data set by itself.
        carry: Columns of the source that travel along, by commas, such as caption,license,width:int: of a Parquet table,
            keys of the .json beside an image in a shard or folder, txt for the text of the .txt there, or json for the
            whole. A type may follow a colon: string, int, float or bool.
    """

    embed_images: bool = False
    carry: str | None = None


@dataclass(frozen=True)
class PartOptions:
    """Which part of the corpus is labelled; a later run without them goes on to the whole.

    Attributes:
        limit: Label only so many images, the first in the source's order; whole shards of a WebDataset. The same command
            without it goes on to the whole, and keeps what is done.
        sample: The same with images at random. A larger sample of the same seed holds the smaller one.
        seed: Decides which images a sample holds.
        shard: Share of one of several independent jobs, such as 2/8 for the second of eight: each takes its own images
            (whole tables, whole shards) and writes into a folder of its own below --output, where summary.json adds up
            what is there.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    shard: str | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give at least 1")
        if self.limit is not None and self.sample is not None:
            raise ConfigError("--limit takes images from the front and --sample at random; give one of them")
        if self.shard is not None:
            Share.parse(self.shard)
