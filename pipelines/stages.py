"""The labelling stages: callable classes over Arrow tables, which run in Ray Data's actors and without Ray.

Each takes rows with a payload (image bytes, or a proposal) and hands them on with its own payload in the same
place; a row that has failed passes through. So they fit any pipeline over Arrow tables:
``dataset.map_batches(SegmentStage, fn_constructor_kwargs={"config": config, "text": text},
batch_format="pyarrow", ...)``.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import blake2b
from typing import Any, TypeVar

import pyarrow as pa

from ovss_core.config import SegmenterConfig
from ovss_core.encoders.text_encoder import TextClassifier
from ovss_core.errors import ImageError
from ovss_core.inference.decoding import EncodedImage
from ovss_core.inference.engine import PreparedImage, SegmentationEngine
from ovss_core.inference.proposal import Proposal
from ovss_core.segmentation import Segmentation
from pipelines.compute import pick_device, use_threads
from pipelines.faults import Failure, process_all
from pipelines.label_rows import label_row
from pipelines.ledger import AttemptLedger
from pipelines.schema import FAILURE, LABELS, SECONDS, result_type

_LARGE_PIXELS = 1 << 24
_IMAGES_AT_ONCE = 16
_PIXELS_AT_ONCE = 1 << 26
Value = TypeVar("Value")


class _EngineStage:
    """What all labelling stages share: an engine, and rows in which failures travel on.

    Args:
        config: Decides what every image gets.
        text: The encoded vocabulary, or its bytes (one copy for all actors).
        device: "auto" takes the GPU that Ray assigned, if any.
        torch_threads: Threads of one operation on the CPU; None leaves torch's choice.
        worker_threads: Threads that decode images or encode masks.
        image_column: Column with image files (first stage only).
        ledger: Finds images that kill their worker; None outside `run_job`.
    """

    name = "segment"
    payload = "image"
    output = "result"
    output_type: pa.DataType = result_type(LABELS)

    def __init__(
        self,
        config: SegmenterConfig,
        text: TextClassifier | bytes,
        device: str = "auto",
        torch_threads: int | None = None,
        worker_threads: int = 4,
        image_column: str = "image",
        ledger: AttemptLedger | None = None,
    ) -> None:
        use_threads(torch_threads and 1)
        chosen = pick_device(device)
        classifier = TextClassifier.from_bytes(text) if isinstance(text, bytes) else text
        self.engine = SegmentationEngine.build(config, classifier, chosen)
        self.image_column = image_column
        self.ledger = ledger
        self._torch_threads = torch_threads
        self._threads = ThreadPoolExecutor(worker_threads)
        self._large = threading.Lock()
        self._seconds: dict[str, float] = {}

    def work(self, items: Sequence[bytes]) -> list[Any]:
        """Turn payloads into the values of the output column; a value may be a failure."""
        raise NotImplementedError

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Work on the rows that have not failed; every row stays one row."""
        use_threads(self._torch_threads)
        payload = self.image_column if self.payload == "image" else self.payload
        items = batch[payload].to_pylist()
        failures = batch["failure"].to_pylist() if "failure" in batch.column_names else [None] * len(items)
        for place, item in enumerate(items):
            if item is None and failures[place] is None:
                failures[place] = Failure(self.name, "ImageError", f"column {payload!r} is empty").to_dict()
        ids = _ids(batch, items)
        live = [place for place, failure in enumerate(failures) if failure is None]
        outcomes = process_all(
            self.name,
            [ids[place] for place in live],
            [items[place] for place in live],
            self.work,
            self.ledger,
        )
        values: list[Any] = [None] * len(items)
        for place, outcome in zip(live, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failures[place] = outcome.to_dict()
            else:
                values[place] = outcome
        return self._table(batch, payload, values, failures)

    def _table(self, batch: pa.Table, payload: str, values: list[Any], failures: list[Any]) -> pa.Table:
        seconds = batch["seconds"].to_pylist() if "seconds" in batch.column_names else [None] * len(values)
        if seconds:
            spent = {**self.engine.take_timings(), **self._seconds}
            seconds[0] = [*(seconds[0] or ()), *spent.items()]
            self._seconds = {}
        kept = batch.drop_columns(
            [name for name in batch.column_names if name in (payload, "failure", "seconds")]
        )
        columns = {
            "failure": pa.array(failures, FAILURE),
            "seconds": pa.array(seconds, SECONDS),
            self.output: pa.array(values, self.output_type),
        }
        for name, column in columns.items():
            kept = kept.append_column(name, column)
        return kept

    def _propose(self, items: Sequence[bytes]) -> list[Proposal | Failure]:
        """Decode ahead in threads while the engine works on the images before."""
        decoding = [self._threads.submit(self._prepare, data) for data in items]
        proposals: list[Proposal | Failure] = []
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            waiting = time.perf_counter()
            images = [future.result() for future in decoding[start : start + _IMAGES_AT_ONCE]]
            self._count("decode", waiting)
            prepared = [image for image in images if isinstance(image, PreparedImage)]
            found = iter(self._values(self.engine.propose_each(prepared)))
            proposals.extend(next(found) if isinstance(image, PreparedImage) else image for image in images)
        return proposals

    def _prepare(self, data: bytes) -> PreparedImage | Failure:
        limit = self.engine.config.max_pixels
        try:
            image = EncodedImage(data, limit)
            with self._large if image.height * image.width > _LARGE_PIXELS else nullcontext():
                return self.engine.prepare(image.pixels())
        except ImageError as error:
            return Failure.of("decode", error)

    def _resolve(self, proposals: Sequence[Proposal]) -> list[dict[str, Any] | Failure]:
        rows: list[dict[str, Any] | Failure] = []
        for chunk in _chunks_of_pixels(proposals):
            results = self._values(self.engine.resolve_each(chunk))
            start = time.perf_counter()
            rows.extend(self._threads.map(_row, results))
            self._count("mask_encoding", start)
        return rows

    def _values(self, outcomes: Sequence[Value | ImageError]) -> list[Value | Failure]:
        return [
            Failure.of(self.name, outcome) if isinstance(outcome, ImageError) else outcome
            for outcome in outcomes
        ]

    def _count(self, step: str, start: float) -> None:
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start


class ProposeStage(_EngineStage):
    """Stage 1: image files to proposals (column ``proposal``)."""

    name = "propose"
    output = "proposal"
    output_type = pa.binary()

    def work(self, items: Sequence[bytes]) -> list[Any]:
        """Turn image files into proposals."""
        return [found if isinstance(found, Failure) else found.to_bytes() for found in self._propose(items)]


class ResolveStage(_EngineStage):
    """Stage 2: proposals to labels (column ``result``)."""

    name = "resolve"
    payload = "proposal"

    def work(self, items: Sequence[bytes]) -> list[Any]:
        """Turn proposals into label rows."""
        return self._resolve([Proposal.from_bytes(data) for data in items])


class SegmentStage(_EngineStage):
    """Both stages in one actor: image files to labels (column ``result``)."""

    def work(self, items: Sequence[bytes]) -> list[Any]:
        """Turn image files into label rows."""
        found = self._propose(items)
        rows = iter(self._resolve([proposal for proposal in found if isinstance(proposal, Proposal)]))
        return [next(rows) if isinstance(proposal, Proposal) else proposal for proposal in found]


def _row(result: Segmentation | Failure) -> dict[str, Any] | Failure:
    return result if isinstance(result, Failure) else label_row(result)


def _chunks_of_pixels(proposals: Sequence[Proposal]) -> list[list[Proposal]]:
    """Cut a batch where its label maps would take too much memory; one image at least."""
    chunks: list[list[Proposal]] = []
    room = 0
    for proposal in proposals:
        pixels = proposal.size[0] * proposal.size[1]
        if pixels > room:
            chunks.append([])
            room = _PIXELS_AT_ONCE
        chunks[-1].append(proposal)
        room -= pixels
    return chunks


def _ids(batch: pa.Table, items: Sequence[bytes | None]) -> list[str]:
    if "image_id" in batch.column_names:
        ids: list[str] = batch["image_id"].to_pylist()
        return ids
    return [blake2b(data or b"", digest_size=16).hexdigest() for data in items]
