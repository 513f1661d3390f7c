"""Label a folder from Python: `python examples/label_folder.py photos/ cat,dog,sky out/photos`.

It is what `ovss label` does: Ray starts on this machine unless the process has joined a cluster already, the output is
the same, and the same call goes on where an earlier one stopped.
"""

import sys
from typing import Any

from ovss_core import SegmenterConfig, Vocabulary
from ovss_core.config import ModelConfig
from pipelines.label.job import LabelJob, run_label
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions


def main(
    images: str, words: str, output: str, model: str = "ViT-B-16", *, pools: PoolOptions | None = None
) -> dict[str, Any]:
    """Label every image below a folder and return the summary."""
    job = LabelJob(
        source=SourceOptions(images=images),
        run=RunOptions(output=output),
        vocabulary=Vocabulary.load(words),
        segmenter=SegmenterConfig(model=ModelConfig(name=model)),
        pools=pools or PoolOptions(),
    )
    summary = run_label(job)
    print(
        f"{summary['labelled']} of {summary['images']} images labelled, {summary['failed']} in {output}/failures"
    )
    return summary


if __name__ == "__main__":
    main(*sys.argv[1:])
