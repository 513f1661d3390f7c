"""Every path on real files: counts on photographs equal a confusion matrix over the labels of the labelling stage."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.evaluation.benchmarks import get_benchmark, protocol_config
from ovss_core.evaluation.benchmarks.protocols import Purify
from pipelines.evaluate.pairs import BenchmarkSource
from pipelines.evaluate.stage import MeasureStage, Variant
from pipelines.label.masks import decode_mask
from pipelines.label.stages import SegmentStage

PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs the photographs of ../shared/data"),
]


def _truth(benchmark: str, mask: Path) -> np.ndarray:
    """Read a mask as int, -1 where nothing counts, by the conventions of the data sets' own pages."""
    values = np.asarray(Image.open(mask)).astype(int)
    if benchmark in ("voc20", "ade20k"):
        return np.where((values == 0) | (values == 255), -1, values - 1)
    return np.where(values == 255, -1, values)


@pytest.mark.parametrize("purify", ["none", "freecp"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("voc21", "voc2012"), ("voc20", "voc2012"), ("coco_object", "coco_object"), ("ade20k", "ade20k")],
)
def test_counts_on_photographs_equal_a_confusion_matrix_over_the_labels(
    name: str, folder: str, purify: Purify
) -> None:
    model = ModelConfig("demo", "random")
    config, vocabulary = protocol_config(name, "sfp", purify, model)
    text = encode_words(load_clip(model), config, vocabulary).to_bytes()
    source = BenchmarkSource(get_benchmark(name), str(PHOTOGRAPHS / folder), limit=3)
    measuring = MeasureStage(
        [Variant("one", config, text)], source.masks, source.conversion, device="cpu", torch_threads=1
    )
    labelling = SegmentStage(config, text, device="cpu", torch_threads=1)

    for record in source.records():
        assert record.path is not None
        assert record.annotation is not None
        data = Path(record.path).read_bytes()
        [measured] = measuring.work(
            [{"image_id": record.image_id, "image": data, "annotation": record.annotation}]
        )
        [labelled] = labelling(pa.table({"image": [data]}))["result"].to_pylist()

        prediction = decode_mask(labelled["mask"]).astype(int)
        truth = _truth(name, PHOTOGRAPHS / folder / record.annotation)
        matrix = np.zeros((len(vocabulary), len(vocabulary)), int)
        np.add.at(matrix, (truth[truth >= 0], prediction[truth >= 0]), 1)
        expected = [
            {
                "index": index,
                "intersection": matrix[index, index],
                "predicted": matrix[:, index].sum(),
                "actual": matrix[index].sum(),
            }
            for index in np.flatnonzero(matrix.sum(0) + matrix.sum(1))
        ]
        assert isinstance(measured, dict)
        assert measured["measurements"][0]["confusion"] == expected
