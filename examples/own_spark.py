"""Label images inside Spark: `python examples/own_spark.py photos/ cat,dog,sky out/labels`.

A `StageRecipe` is what `mapInArrow` takes (and `mapInPandas`): a function from batches to batches, without weights in it.
Each of Spark's Python workers loads the model when its first batch comes, and keeps it. Wants Spark 4, pyarrow, and ovss on
every node.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from ovss_core import SegmenterConfig, Vocabulary
from ovss_core.config import ModelConfig
from pipelines.label import FinishStage, ProposeStage, SegmentStage, StageRecipe, encode_vocabulary


def label(frame: DataFrame, recipe: StageRecipe) -> DataFrame:
    """Send a table through a stage: the column of images goes, `failure`, `seconds` and `result` come."""
    schema = recipe.output_schema(to_arrow_schema(frame.schema))
    return frame.mapInArrow(recipe, from_arrow_schema(schema))


def main(
    images: str,
    words: str,
    output: str,
    model: str = "ViT-B-16",
    *,
    two_stages: bool = False,
    spark: SparkSession | None = None,
) -> DataFrame:
    """Label the files of a folder, and write one row an image, with its mask or the reason why there is none.

    Args:
        two_stages: Propose and finish in two steps, between which there is room for one of yours.
    """
    spark = spark or SparkSession.builder.appName("ovss").getOrCreate()
    config = SegmenterConfig(model=ModelConfig(name=model))
    recipe = partial(StageRecipe, config=config, text=encode_vocabulary(config, Vocabulary.load(words)))
    images_of: dict[str, Any] = {"options": {"image_column": "content"}}
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(Path(images).as_uri())
    files = files.select("path", "content")
    if two_stages:
        proposed = label(files, recipe(ProposeStage, **images_of))
        labelled = label(proposed, recipe(FinishStage))  # a step of your own goes before this one
    else:
        labelled = label(files, recipe(SegmentStage, **images_of))
    labelled.select("path", "result.*", "failure").write.mode("overwrite").parquet(output)
    return spark.read.parquet(output)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), *sys.argv[2:]).select("path", "words", "failure.reason").show()
