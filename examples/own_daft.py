"""Label images inside Daft: `python examples/own_daft.py photos/ cat,dog,sky out/labels`.

A class of Daft's builds the stage once a worker, and hands it a batch of the column of images as an Arrow table. What the
stage adds comes back as columns.
"""

import sys
from pathlib import Path

import daft
import pyarrow as pa
from daft import DataFrame, DataType, Series, col
from daft.functions import download

from ovss_core import SegmenterConfig, Vocabulary
from ovss_core.config import ModelConfig
from pipelines.label import SegmentStage, StageRecipe, encode_vocabulary

ADDED = pa.struct(list(SegmentStage.output_schema(pa.schema([("image", pa.binary())]))))
"""What the stage gives for an image: `failure`, `seconds` and `result`."""


@daft.cls(max_concurrency=1)  # and gpus=1 where there are any
class Label:
    """The stage as a function over a column of image files.

    Args:
        recipe: What it is built from.
    """

    def __init__(self, recipe: StageRecipe) -> None:
        self.stage = recipe.build()

    @daft.method.batch(return_dtype=DataType.from_arrow_type(ADDED), unnest=True, batch_size=16)
    def __call__(self, image: Series) -> pa.Array:
        """Label a batch."""
        labelled = self.stage(pa.table({"image": image.to_arrow()}))
        return labelled.to_struct_array().combine_chunks()


def main(images: str, words: str, output: str, model: str = "ViT-B-16") -> DataFrame:
    """Label the files of a folder, and write one row an image, with its mask or the reason why there is none."""
    config = SegmenterConfig(model=ModelConfig(name=model))
    recipe = StageRecipe(SegmentStage, config, encode_vocabulary(config, Vocabulary.load(words)))
    files = daft.from_glob_path(f"{images}/**")
    # a file that cannot be read is an empty value, and with it a failure
    read = files.select(col("path"), download(col("path"), on_error="null").alias("image"))
    labelled = read.select(col("path"), Label(recipe)(col("image")))
    result = col("result")
    labelled = labelled.select(
        col("path"), result["words"].alias("words"), result["mask"].alias("mask"), col("failure")
    )
    labelled.write_parquet(output, write_mode="overwrite")
    return daft.read_parquet(f"{output}/*.parquet")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), *sys.argv[2:]).show()
