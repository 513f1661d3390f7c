"""The measuring stage: image and mask in, counts of every variant out; runs in Ray Data's actors and without Ray."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from ovss_core.engine.variants import EncodedWave, VariantEngines
from ovss_core.errors import ImageError
from ovss_core.evaluation import decode_labels, present_classes
from ovss_core.evaluation.benchmarks.conversions import LabelConversion
from ovss_core.evaluation.confusion import check_ground_truth
from ovss_core.evaluation.measurement import Measurement, measure
from ovss_core.evaluation.oracle import Oracle
from ovss_core.images.decode import decode_image
from ovss_core.proxies.loading import load_proxy
from ovss_core.regions import RegionMap
from pipelines.evaluate.table import MEASUREMENTS
from pipelines.faults import Failure
from pipelines.run.compute import pick_device, use_threads
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import result_type
from pipelines.run.stage import RowStage
from pipelines.sources.region_maps import RegionFolder
from pipelines.storage import Folder

STAGE = "measure"


@dataclass(frozen=True)
class Variant:
    """One setting to measure.

    Attributes:
        name: Unique in the run.
        config: Decides the labels.
        text: The encoded vocabulary.
    """

    name: str
    config: SegmenterConfig
    text: bytes


@dataclass(frozen=True)
class _Pair:
    pixels: np.ndarray
    truth: np.ndarray
    regions: RegionMap | None = None


class MeasureStage(RowStage):
    """Label images by every variant and compare the labels with the reference masks (column ``result``).

    Args:
        variants: Settings of one model.
        masks: Address of the folder that annotations are relative to.
        conversion: Makes class indices of the masks' values.
        oracle: Also label with only the present classes offered.
        device: "auto" takes the GPU that Ray assigned, if any.
        torch_threads: Threads of one operation on the CPU; None leaves torch's choice.
        worker_threads: Threads that read masks and decode.
        ledger: Finds images that kill their worker; None outside `run_job`.
        region_maps: Address of the folder of the images' region maps, where regions are used.
    """

    name = STAGE
    output_type = result_type(MEASUREMENTS)

    def __init__(
        self,
        variants: Sequence[Variant],
        masks: str,
        conversion: LabelConversion,
        oracle: bool = True,
        device: str = "auto",
        torch_threads: int | None = None,
        worker_threads: int = 4,
        ledger: AttemptLedger | None = None,
        region_maps: str | None = None,
    ) -> None:
        super().__init__(ledger)
        use_threads(torch_threads and 1)
        chosen = pick_device(device)
        clip = load_clip(variants[0].config.model)
        reader = next((variant.config for variant in variants if variant.config.needs_proxy), None)
        proxy = load_proxy(reader.proxy) if reader else None
        texts = {data: EncodedVocabulary.from_bytes(data) for data in {variant.text for variant in variants}}
        self.variants = tuple(variants)
        self.engines = VariantEngines(
            [
                trust_kernels(SegmentationEngine(variant.config, clip, texts[variant.text], chosen, proxy))
                for variant in self.variants
            ]
        )
        self.masks = Folder(masks)
        self.region_maps = RegionFolder(region_maps) if region_maps else None
        self.conversion = conversion
        self.oracle = oracle
        self._torch_threads = torch_threads
        self._threads = ThreadPoolExecutor(worker_threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Measure the rows that have not failed; every row stays one row."""
        use_threads(self._torch_threads)
        return super().__call__(batch)

    def work(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | Failure]:
        """Measure images; what cannot be read gives a failure in its place."""
        start = time.perf_counter()
        pairs = list(self._threads.map(self._read, rows))
        self.took("decode", time.perf_counter() - start)
        good = [pair for pair in pairs if isinstance(pair, _Pair)]
        measured = iter(self._measure(good))
        return [
            {
                "height": pair.truth.shape[0],
                "width": pair.truth.shape[1],
                "measurements": next(measured),
            }
            if isinstance(pair, _Pair)
            else pair
            for pair in pairs
        ]

    def _read(self, row: Mapping[str, Any]) -> _Pair | Failure:
        try:
            pixels = decode_image(row["image"], self.variants[0].config.max_pixels)
            truth = self._truth(row["annotation"])
            check_ground_truth(pixels[..., 0], truth, len(self.engines.engines[0].text.vocabulary))
            regions = None
            if self.region_maps:
                regions = self.region_maps.read(row["image_id"], self.variants[0].config.max_pixels)
                regions.require_size(truth.shape)
        except ImageError as error:
            return Failure.of("decode", error)
        return _Pair(pixels, truth, regions)

    def _truth(self, annotation: str) -> np.ndarray:
        try:
            data = self.masks.read(annotation)
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise ImageError(f"the mask {annotation} cannot be read: {error}") from error
        return self.conversion(decode_labels(data, self.variants[0].config.max_pixels))

    def _measure(self, pairs: Sequence[_Pair]) -> list[list[dict[str, Any]]]:
        results: list[list[dict[str, Any]]] = [[] for _ in pairs]
        if not pairs:
            return results
        start = time.perf_counter()
        encoded = self.engines.encode(
            [pair.pixels for pair in pairs], [pair.regions for pair in pairs] if self.region_maps else None
        )
        self.took("encode", time.perf_counter() - start)
        for variant, engine, groups in zip(self.variants, self.engines.engines, encoded, strict=True):
            for group in groups:
                for place, values in zip(
                    group.wave.places, self._measure_group(engine, group, pairs), strict=True
                ):
                    results[place].append({"variant": variant.name, **values.to_dict()})
        return results

    def _measure_group(
        self, engine: SegmentationEngine, group: EncodedWave, pairs: Sequence[_Pair]
    ) -> list[Measurement]:
        start = time.perf_counter()
        labelled = group.segment(engine)
        self.took("label", time.perf_counter() - start)
        measured = []
        oracle = Oracle(engine) if self.oracle else None
        vocabulary = engine.text.vocabulary
        for position, result in enumerate(labelled):
            truth = pairs[group.wave.places[position]].truth
            start = time.perf_counter()
            present = present_classes(truth, vocabulary.background_index)
            bound = oracle.label_map(group.single(position, engine), present) if oracle else None
            self.took("oracle", time.perf_counter() - start)
            start = time.perf_counter()
            measured.append(measure(result, truth, vocabulary, bound))
            self.took("count", time.perf_counter() - start)
        return measured
