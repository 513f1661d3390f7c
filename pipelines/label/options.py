"""What a labelling run stores beside the masks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputOptions:
    """Columns that only some readers want.

    Attributes:
        embed_images: Store each image's own bytes beside its mask, so that the output is a data set by itself.
    """

    embed_images: bool = False
