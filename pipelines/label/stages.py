"""The labelling stages: callable classes over batches, which run in Ray Data's actors and without Ray.

Each takes rows with a payload (an image, or a proposal) and hands them on with its own payload in the same place;
a row that has failed passes through. So they fit any pipeline:
``dataset.map_batches(SegmentStage, fn_constructor_kwargs={"config": config, "text": text},
batch_format="pyarrow", ...)``, and as well "numpy" or "pandas", which are given back as they came.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import PreparedImage, SegmentationEngine, Wave
from ovss_core.engine.finite import WINDOWS, not_finite
from ovss_core.engine.proposal import Proposals, size_in
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.decode import EncodedImage
from ovss_core.images.windows import WindowLayout
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation
from pipelines.faults import Failure, process_sound
from pipelines.label.batches import PREFIX, Batch, Entry, pairs
from pipelines.label.image_column import Item, OddValue, image_items, to_pixels
from pipelines.label.masks import encode_mask
from pipelines.label.proposals import pack, unpack
from pipelines.label.table import label_column
from pipelines.run import metrics
from pipelines.run.compute import pick_device, use_threads
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import FAILURE, LABELS, PROPOSAL, SECONDS, result_type
from pipelines.sources.region_maps import RegionFolder

_LARGE_PIXELS = 1 << 24
_WAVE, _WAVE_ON_GPU = 16, 32
"""Images that are decoded before the engine begins with them: enough to fill it, few enough that the next decode
meanwhile."""
_PIXELS_AT_ONCE = 1 << 26


class _WithRegions(NamedTuple):
    """An image of the image column, and what tells its regions."""

    image: Any
    regions: Any


class LabelStage:
    """What all labelling stages share: an engine, and rows in which failures travel on. Not itself a stage.

    Args:
        config: Decides what every image gets.
        text: The encoded vocabulary, or its bytes (one copy for all actors).
        device: "auto" takes the GPU that Ray assigned, if any.
        torch_threads: Threads of one operation on the CPU; None leaves torch's choice.
        worker_threads: Threads that decode images or encode masks.
        image_column: Column with images (first stage only): files as bytes, structs with a field ``bytes``, or pixels as
            uint8 tensors [height, width, 3].
        ledger: Finds images that kill their worker; None outside `run_job`.
        region_maps: Address of the folder of the images' region maps, by the column ``image_id`` (first stage only).
        region_column: Column with region maps instead: files as bytes, or tensors of whole numbers [height, width]; where
            it is empty the image has no regions.
    """

    name = "segment"
    payload = "image"
    output = "result"
    output_type: pa.DataType = result_type(LABELS)

    def __init__(
        self,
        config: SegmenterConfig,
        text: EncodedVocabulary | bytes,
        device: str = "auto",
        torch_threads: int | None = None,
        worker_threads: int = 4,
        image_column: str = "image",
        ledger: AttemptLedger | None = None,
        region_maps: str | None = None,
        region_column: str | None = None,
    ) -> None:
        if region_maps and region_column:
            raise ConfigError(
                "region_maps and region_column both give the regions of images; give one of them"
            )
        use_threads(torch_threads and 1)
        chosen = pick_device(device)
        words = EncodedVocabulary.from_bytes(text) if isinstance(text, bytes) else text
        self.engine = SegmentationEngine.build(config, words, chosen)
        self.image_column = image_column
        self.region_folder = RegionFolder(region_maps) if region_maps else None
        self.region_column = region_column
        self.ledger = ledger
        self._torch_threads = torch_threads
        self._threads = ThreadPoolExecutor(worker_threads)
        self._large = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def work(self, items: Sequence[Any]) -> list[Any]:
        """Turn payloads into the values of the output column; a value may be a failure."""
        raise NotImplementedError

    def __call__(self, batch: Any) -> Any:
        """Work on the rows that have not failed; every row stays one row, in a batch of the kind that came.

        Raises:
            ConfigError: The batch has no such column, or it holds no payloads.
        """
        use_threads(self._torch_threads)
        if not self._chained() and self.ledger is not None and self.ledger.is_stopping():
            # the next start does them; what stage 1 has done is finished
            batch = batch.slice(0, 0)
        rows = Batch.of(batch)
        payload = self._payload(rows, self.image_column)
        items = self._items(rows, payload)
        own = rows.own_column("failure", self._chained())
        failures = rows.values(own) if own else [None] * len(items)
        for place, item in enumerate(items):
            if failures[place] is None and (reason := _no_payload(payload, item)):
                failures[place] = Failure(self.name, "ImageError", reason).to_dict()
        values = process_sound(self.name, _ids(rows, items), items, failures, self.work, self.ledger)
        return self._replace(rows, payload, values, failures)

    @classmethod
    def output_schema(cls, given: pa.Schema, image_column: str = "image") -> pa.Schema:
        """Return the columns that tables of these columns have after the stage; nothing is built for that.

        Raises:
            ConfigError: There is no such column as the stage works on.
        """
        rows = Batch.of(given.empty_table())
        payload = cls._payload(rows, image_column)
        rows.column(payload)
        worked: pa.Table = cls._placed(rows, payload, [], [], [])
        return worked.schema

    @classmethod
    def _chained(cls) -> bool:
        """Whether another stage came before, so that its columns are there."""
        return cls.payload != "image"

    @classmethod
    def _payload(cls, rows: Batch, image_column: str) -> str:
        if not cls._chained():
            return image_column
        prefixed = PREFIX + cls.payload
        return prefixed if prefixed in rows.names else cls.payload

    def _items(self, rows: Batch, payload: str) -> list[Any]:
        if not len(rows) and payload not in rows.names:  # Ray hands on empty blocks without any columns
            return []
        if self._chained():
            return _proposals(rows, payload)
        items = image_items(rows, payload)
        given = self._given_regions(rows)
        if given is None:
            return items
        return [
            _WithRegions(item, own) if _no_payload(payload, item) is None and own is not None else item
            for item, own in zip(items, given, strict=True)
        ]

    def _given_regions(self, rows: Batch) -> list[Any] | None:
        """Return what tells each row's regions: its name in the folder, or what its column holds."""
        if self.region_column:
            return rows.values(self.region_column)
        if self.region_folder is None:
            return None
        if rows.names.count("image_id") != 1:
            raise ConfigError("region_maps are found by the column 'image_id', which the batch lacks; add it")
        return [str(image_id) for image_id in rows.values("image_id")]

    def _regions(self, given: Any, max_pixels: int) -> RegionMap | None:
        """Decode the region map of one row.

        Raises:
            ImageError: It cannot be read, or is none.
        """
        if self.region_folder:
            return self.region_folder.read(given, max_pixels)
        if isinstance(given, bytes):
            return RegionMap.decode(given, max_pixels)
        return RegionMap.of_array(np.asarray(given))

    def _replace(self, rows: Batch, payload: str, values: list[Any], failures: list[Any]) -> Any:
        own = rows.own_column("seconds", self._chained())
        seconds = rows.values(own) if own else [None] * len(values)
        seconds = [pairs(entry) or None for entry in seconds]
        if seconds:
            spent = {**self.engine.take_timings(), **self._seconds}
            seconds[0] = [*(seconds[0] or ()), *spent.items()]
            metrics.count_stage(self.name, failures.count(None), spent, **self._counts)
            metrics.measure_gpu(self.name)
            self._seconds, self._counts = {}, Counter()
        return self._placed(rows, payload, values, failures, seconds)

    @classmethod
    def _placed(
        cls, rows: Batch, payload: str, values: list[Any], failures: list[Any], seconds: list[Any]
    ) -> Any:
        """Put the stage's columns in the place of the payload and of an earlier stage's."""
        earlier = (rows.own_column(name, cls._chained()) for name in ("failure", "seconds"))
        dropped = [name for name in (payload, *earlier) if name and name in rows.names]
        columns = {
            rows.free_name("failure", dropped): (failures, FAILURE),
            rows.free_name("seconds", dropped): (seconds, SECONDS),
            rows.free_name(cls.output, dropped): (values, cls.output_type),
        }
        return rows.replace(dropped, columns)

    def _propose(
        self, items: Sequence[Item], outcomes: dict[int, Any]
    ) -> Iterator[tuple[tuple[int, ...], Proposals]]:
        """Yield the proposals of the items, with their places; decoding goes ahead in threads.

        Args:
            items: Images.
            outcomes: Takes the failures of items that cannot be decoded, by place.
        """
        decoding = [self._threads.submit(self._prepare, item) for item in items]
        for wave, proposals in self.engine.propose_all(self._waves(decoding, outcomes)):
            self._counts["windows"] += len(wave.pixels)
            self._counts["crops"] += 0 if proposals.crops is None else len(proposals.crops)
            yield wave.places, proposals

    def _waves(
        self, decoding: Sequence[Future[PreparedImage | Failure]], outcomes: dict[int, Any]
    ) -> Iterator[Wave]:
        size = _WAVE_ON_GPU if self.engine.device.type == "cuda" else _WAVE
        for start in range(0, len(decoding), size):
            waiting = time.perf_counter()
            images = {
                start + offset: future.result()
                for offset, future in enumerate(decoding[start : start + size])
            }
            self._count("decode", waiting)
            outcomes.update({place: image for place, image in images.items() if isinstance(image, Failure)})
            prepared = {place: image for place, image in images.items() if isinstance(image, PreparedImage)}
            places = list(prepared)
            for wave in self.engine.gather(list(prepared.values())):
                yield replace(wave, places=tuple(places[position] for position in wave.places))

    def _finish(self, places: Sequence[int], proposals: Proposals, outcomes: dict[int, Any]) -> None:
        """Label the images of one batch, and turn them into rows."""
        found = dict(zip(places, self.engine.finish(proposals), strict=True))
        start = time.perf_counter()
        labelled: dict[int, Segmentation] = {}
        for place, result in found.items():
            if isinstance(result, ImageError):
                outcomes[place] = Failure.of(self.name, result)
            else:
                labelled[place] = result
                self._counts["kept_words"] += len(result.kept)
        masks = self._threads.map(encode_mask, [result.label_map for result in labelled.values()])
        margins = self._threads.map(_margins, labelled.values())
        column = label_column(list(labelled.values()), list(masks), list(margins))
        outcomes.update({place: Entry(column, row) for row, place in enumerate(labelled)})
        self._count("mask_encoding", start)

    def _prepare(self, given: "Item | _WithRegions") -> PreparedImage | Failure:
        limit, regions = self.engine.config.max_pixels, None
        item, named = given if isinstance(given, _WithRegions) else (given, None)
        try:
            if named is not None:
                regions = self._regions(named, limit)
            if not isinstance(item, bytes):
                return self.engine.prepare(to_pixels(item, limit), regions)
            image = EncodedImage(item, limit)
            with self._large if image.height * image.width > _LARGE_PIXELS else nullcontext():
                return self.engine.prepare(image.pixels(), regions)
        except ImageError as error:
            return Failure.of("decode", error)

    def _count(self, step: str, start: float) -> None:
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start


class ProposeStage(LabelStage):
    """Stage 1: image files to proposals (column ``proposal``)."""

    name = "propose"
    output = "proposal"
    output_type = PROPOSAL

    def work(self, items: Sequence[Item]) -> list[Any]:
        """Turn image files into rows of `PROPOSAL`."""
        outcomes: dict[int, Any] = {}
        for places, proposals in self._propose(items, outcomes):
            rows = self._threads.map(pack, proposals.to_rows())
            for place, row, sound in zip(places, rows, proposals.sound_images, strict=True):
                outcomes[place] = row if sound else Failure.of(self.name, not_finite(WINDOWS))
        return [outcomes[place] for place in range(len(items))]


class FinishStage(LabelStage):
    """Stage 2: proposals to labels (column ``result``)."""

    name = "finish"
    payload = "proposal"

    def work(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        """Turn rows of `PROPOSAL` into label rows."""
        outcomes: dict[int, Any] = {}
        for places in _batches(items, self.engine):
            rows = self._threads.map(unpack, [items[place] for place in places])
            proposals = self.engine.proposals_of_rows(list(rows))
            self._finish(places, proposals, outcomes)
        return [outcomes[place] for place in range(len(items))]


class SegmentStage(LabelStage):
    """Both stages in one actor: image files to labels (column ``result``)."""

    def work(self, items: Sequence[Item]) -> list[Any]:
        """Turn image files into label rows."""
        outcomes: dict[int, Any] = {}
        for places, proposals in self._propose(items, outcomes):
            self._finish(places, proposals, outcomes)
        return [outcomes[place] for place in range(len(items))]


def _margins(result: Segmentation) -> bytes | None:
    """Encode how sure each pixel is, where that was asked for."""
    sure = result.confidence
    return None if sure is None or sure.margins is None else encode_mask(sure.margins)


def _batches(items: Sequence[dict[str, Any]], engine: SegmentationEngine) -> Iterator[list[int]]:
    """Put rows together whose windows have one size, cut where label maps would take too much memory."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, item in enumerate(items):
        size = WindowLayout.of(*size_in(item, "resized"), engine.config.windows).window_size
        by_size.setdefault(size, []).append(place)
    for places in by_size.values():
        room = 0
        batch: list[int] = []
        for place in places:
            height, width = size_in(items[place], "size")
            if batch and height * width > room:
                yield batch
                batch = []
            if not batch:
                room = _PIXELS_AT_ONCE
            batch.append(place)
            room -= height * width
        yield batch


def _proposals(rows: Batch, payload: str) -> list[Any]:
    values = rows.values(payload) if payload in rows.names else [payload]
    if not all(value is None or isinstance(value, dict) for value in values):
        raise ConfigError(
            f"the batch has no column {payload!r} of proposals (it has {', '.join(map(str, rows.names)) or 'none'}); "
            "FinishStage works on what ProposeStage gives"
        )
    return values


def _no_payload(payload: str, item: Any) -> str | None:
    """Say why a row has nothing to work on, if so."""
    if item is None:
        return f"column {payload!r} is empty"
    return item.reason if isinstance(item, OddValue) else None


def _ids(rows: Batch, items: Sequence[Any]) -> list[str]:
    if rows.names.count("image_id") == 1:
        return [str(image_id) for image_id in rows.values("image_id")]
    return [blake2b(_content(item), digest_size=16).hexdigest() for item in items]


def _content(item: Any) -> bytes:
    if isinstance(item, _WithRegions):
        return _content(item.image)
    if isinstance(item, np.ndarray | Image.Image):
        return item.tobytes()
    return item if isinstance(item, bytes) else b""
