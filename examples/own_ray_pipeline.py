"""Label images inside a Ray Data pipeline of your own: `python examples/own_ray_pipeline.py photos/ cat,dog,sky`.

A stage takes a batch with a column of images and gives it back with three columns in its place: `result` (the row of the
output table), `failure` (why there is none) and `seconds`. All your other columns stay.
"""

import sys
from typing import Any

import ray

from ovss_core import SegmenterConfig, Vocabulary
from ovss_core.config import ModelConfig
from pipelines.label.job import encode_text
from pipelines.label.stages import SegmentStage


def main(
    images: str, words: str, model: str = "ViT-B-16", *, actors: int = 1, gpus: float = 0
) -> list[dict[str, Any]]:
    """Label the files of a folder, and return the path of each with the names of its classes, largest first."""
    config = SegmenterConfig(model=ModelConfig(name=model))
    # once for all actors: encoding a vocabulary takes longer than an image
    text, _ = encode_text(config, Vocabulary.load(words), None, "cpu")
    labelled = ray.data.read_binary_files(images, include_paths=True).map_batches(
        SegmentStage,
        fn_constructor_kwargs={"config": config, "text": text, "image_column": "bytes"},
        batch_format="pyarrow",
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    rows: list[dict[str, Any]] = labelled.map(_classes).take_all()
    for row in rows:
        print(f"{row['path']}: {row['classes']}")
    return rows


def _classes(row: dict[str, Any]) -> dict[str, Any]:
    """Do what comes next in your pipeline: here, keep the names of the classes, or the reason of the failure."""
    failure, result = row["failure"], row["result"]
    names = failure["reason"] if failure else ", ".join(found["name"] for found in result["present"])
    return {"path": row["path"], "classes": names}


if __name__ == "__main__":
    main(*sys.argv[1:])
