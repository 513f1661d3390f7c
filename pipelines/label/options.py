"""What a labelling run stores beside the masks."""

from dataclasses import dataclass


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
