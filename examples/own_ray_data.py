"""Label images inside a Ray Data pipeline of your own: `python examples/own_ray_data.py photos/ cat,dog,sky cat`.

Both stages are there, each in actors of its own, and between them a stage that is yours: only images in which one of the
words of the third argument was found go on to get a mask. An image that does not ends in a row with the reason.

A stage takes a batch with a column of images (or of proposals) and gives it back with three columns in its place:
`proposal` or `result`, `failure` (why there is none) and `seconds`. All your other columns stay.
"""

import sys
from typing import Any

import pyarrow as pa
import ray

from ovss_core import SegmenterConfig, Vocabulary
from ovss_core.config import ModelConfig
from pipelines.label import FinishStage, ProposalOutline, ProposeStage, encode_vocabulary, set_aside


class OnlyWith:
    """A stage of your own: sets images aside in which purification kept none of the wanted classes.

    Args:
        wanted: Their positions in the vocabulary.
    """

    def __init__(self, wanted: set[int]) -> None:
        self.wanted = wanted

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn rows of no interest into failures; there are as many rows as before."""
        return set_aside(batch, self.reason, stage="only-with")

    def reason(self, found: ProposalOutline) -> str | None:
        """Say why an image is not to be labelled."""
        return None if self.wanted & set(found.kept) else "none of the wanted words is in it"


def main(
    images: str, words: str, wanted: str, model: str = "ViT-B-16", *, actors: int = 1, gpus: float = 0
) -> list[dict[str, Any]]:
    """Label the files of a folder, and return the path of each with the names of its classes, largest first."""
    config, vocabulary = SegmenterConfig(model=ModelConfig(name=model)), Vocabulary.load(words)
    # once for all actors: encoding a vocabulary takes longer than an image
    stage = {"config": config, "text": encode_vocabulary(config, vocabulary)}
    places = {vocabulary.names.index(name) for name in wanted.split(",")}
    labelled = (
        ray.data.read_binary_files(images, include_paths=True)
        .map_batches(
            ProposeStage,
            fn_constructor_kwargs={**stage, "image_column": "bytes"},
            batch_format="pyarrow",
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0.5,
            num_gpus=gpus,
        )
        .map_batches(OnlyWith(places), batch_format="pyarrow", num_cpus=0.5)
        .map_batches(
            FinishStage,
            fn_constructor_kwargs=stage,
            batch_format="pyarrow",
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0.5,
            num_gpus=gpus,
        )
    )
    rows: list[dict[str, Any]] = labelled.map(_classes, num_cpus=0.5).take_all()
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
