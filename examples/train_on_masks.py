"""Read masks for training: `python examples/train_on_masks.py photos/ out/photos`.

The images are those that `ovss label --images photos/ --output out/photos` was given. Nothing of ovss is imported: the
output is Parquet, and a mask is a PNG.
"""

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

IGNORED = -100
"""What torch's cross entropy passes over."""


class LabelledImages(IterableDataset[tuple[Tensor, Tensor]]):
    """Images with their masks, from a finished output.

    Row groups are shared out among the loader's workers and read one at a time, so that memory does not grow with the
    corpus; each epoch has another order.

    Args:
        images: The folder that was labelled; an image's id is its path below it.
        output: The output of the run.
        least_confidence: Classes with a lower mean score in an image are ignored there.
    """

    def __init__(self, images: str, output: str, least_confidence: float = 0.0) -> None:
        self.images = Path(images)
        self.least_confidence = least_confidence
        files = sorted(Path(output, "labels").glob("*.parquet"))
        self.groups = [
            (file, group) for file in files for group in range(pq.ParquetFile(file).num_row_groups)
        ]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels, uint8 [3, height, width], and class indices, int64 [height, width]."""
        worker = get_worker_info()
        mine = self.groups[worker.id :: worker.num_workers] if worker else list(self.groups)
        order = random.Random(torch.initial_seed())  # another seed each epoch and worker
        order.shuffle(mine)
        for file, group in mine:
            table = pq.ParquetFile(file).read_row_group(group, columns=["image_id", "mask", "present"])
            rows = table.to_pylist()
            order.shuffle(rows)
            for row in rows:
                with Image.open(self.images / row["image_id"]) as image:
                    upright = ImageOps.exif_transpose(image).convert("RGB")  # as the mask lies
                classes = np.asarray(Image.open(io.BytesIO(row["mask"]))).astype(np.int64)
                weak = [
                    found["index"] for found in row["present"] if found["confidence"] < self.least_confidence
                ]
                classes[np.isin(classes, weak)] = IGNORED
                yield torch.from_numpy(np.array(upright)).permute(2, 0, 1), torch.from_numpy(classes)


def main(images: str, output: str, least_confidence: float | str = 0.0) -> int:
    """Read all images once, print what a training step would get, and return their number."""
    dataset = LabelledImages(images, output, float(least_confidence))
    count = 0
    # crop to one size before images are put into batches; here each comes alone
    for pixels, classes in DataLoader(dataset, batch_size=None):
        count += 1
        print(f"{tuple(pixels.shape)} pixels, classes {classes.unique().tolist()}")
    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
