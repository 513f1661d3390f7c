"""The labelling stages: callable classes over batches, which run in Ray Data's actors and without Ray.

Each takes rows with a payload (an image, or a proposal) and hands them on with its own payload in the same place;
a row that has failed passes through. So they fit any pipeline:
``dataset.map_batches(SegmentStage, fn_constructor_kwargs={"config": config, "text": text},
batch_format="pyarrow", ...)``, and as well "numpy" or "pandas", which are given back as they came.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b
from itertools import groupby, starmap
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import PendingLabels, PendingProposals, PreparedImage, SegmentationEngine, Wave
from ovss_core.engine.finite import WINDOWS, not_finite
from ovss_core.engine.proposal import Proposals, size_in
from ovss_core.engine.trial import trust_kernels
from ovss_core.engine.variants import EncodedWave
from ovss_core.errors import ConfigError, ImageError
from ovss_core.images.decode import EncodedImage
from ovss_core.images.windows import WindowLayout, group_alike
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation
from ovss_core.transfer import await_later
from pipelines.faults import Failure, process_sound
from pipelines.label.batches import PREFIX, Batch, Entry, pairs
from pipelines.label.image_column import Item, OddValue, image_items, to_pixels
from pipelines.label.masks import encode_mask
from pipelines.label.own_words import Offer, Offers, widened
from pipelines.label.proposals import pack, unpack
from pipelines.label.table import label_column
from pipelines.label.word_use import OwnWords
from pipelines.run import metrics
from pipelines.run.compute import pick_device, use_threads
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import FAILURE, LABELS, PROPOSAL, SECONDS, result_type
from pipelines.sources.region_maps import RegionFolder

_LARGE_PIXELS = 1 << 24
_WAVE, _WAVE_ON_GPU = 16, 64
"""Images that the engine is given at once: on GPUs as many as fill the windows of its wave."""
_WAVES_AHEAD = 2
"""Waves whose images are decoded while the engine has another; no more, as a call may hold any number of images."""
_PIXELS_AT_ONCE, _PIXELS_AT_ONCE_ON_GPU = 1 << 26, 1 << 24
"""Pixels of the images that stage 2 labels at once: on GPUs so few that a call has several batches, as one is begun before
the labels of the one before it are awaited."""
Given = TypeVar("Given")
Prepared = TypeVar("Prepared")
_Proposed = tuple[Sequence[int], Proposals, Offer | None]
"""Places of images in a call, their proposals, and what they were offered."""


class _WithRegions(NamedTuple):
    """An image of the image column, and what tells its regions."""

    image: Any
    regions: Any


class _WithWords(NamedTuple):
    """An image of the image column, perhaps with regions, and what the column of words says of it."""

    image: Any
    words: Any


class _PendingRows(NamedTuple):
    """Rows of proposals that threads compress, and failures in the places of others."""

    rows: list[Future[dict[str, Any]] | Failure]

    def wait(self) -> list[dict[str, Any] | Failure]:
        return [row if isinstance(row, Failure) else row.result() for row in self.rows]


class LabelStage:
    """What all labelling stages share: an engine, and rows in which failures travel on. Not itself a stage.

    Args:
        config: Decides what every image gets.
        text: The encoded vocabulary, or its bytes (one copy for all actors).
        device: "auto" takes the GPU that Ray assigned, if any.
        torch_threads: Threads of one operation on the CPU; None leaves torch's choice.
        worker_threads: Threads that decode images or encode masks.
        images_at_once: Images that the engine is given at once; None takes what suits the device. The next ones are decoded
            meanwhile, so a call had better hold several times as many.
        image_column: Column with images (first stage only): files as bytes, structs with a field ``bytes``, or pixels as
            uint8 tensors [height, width, 3].
        ledger: Finds images that kill their worker; None outside `run_job`.
        region_maps: Address of the folder of the images' region maps, by the column ``image_id`` (first stage only).
        region_column: Column with region maps instead: files as bytes, or tensors of whole numbers [height, width]; where
            it is empty the image has no regions.
        own_words: How the words are used that images bring along, in a column of the first stage's batches; None where
            all images are offered the encoded vocabulary. `text` then holds all words that are known beforehand.
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
        images_at_once: int | None = None,
        image_column: str = "image",
        ledger: AttemptLedger | None = None,
        region_maps: str | None = None,
        region_column: str | None = None,
        own_words: OwnWords | None = None,
    ) -> None:
        if region_maps and region_column:
            raise ConfigError(
                "region_maps and region_column both give the regions of images; give one of them"
            )
        use_threads(torch_threads and 1)
        chosen = pick_device(device)
        words = EncodedVocabulary.from_bytes(text) if isinstance(text, bytes) else text
        clip = load_clip(config.model)
        self.offers: Offers | None = None
        if own_words:
            self.offers = Offers(own_words, words, None if self._chained() else clip, chosen)
            words = self.offers.base_text
        self.engine = trust_kernels(SegmentationEngine(config, clip, words, chosen))
        self.image_column = image_column
        self.region_folder = RegionFolder(region_maps) if region_maps else None
        self.region_column = region_column
        self.ledger = ledger
        self._torch_threads = torch_threads
        self._images_at_once = images_at_once or (
            _WAVE_ON_GPU if self.engine.device.type == "cuda" else _WAVE
        )
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
        items: list[Any] = image_items(rows, payload)
        given = self._given_regions(rows)
        if given is not None:
            items = [
                _WithRegions(item, own) if _no_payload(payload, item) is None and own is not None else item
                for item, own in zip(items, given, strict=True)
            ]
        if self.offers is None:
            return items
        words = rows.values(self.offers.settings.column)
        return [
            _WithWords(item, own) if _no_payload(payload, item) is None else item
            for item, own in zip(items, words, strict=True)
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

    def _propose(self, items: Sequence[Item], outcomes: dict[int, Any]) -> Iterator[_Proposed]:
        """Yield the proposals of the items, wave by wave; decoding goes ahead in threads.

        Args:
            items: Images.
            outcomes: Takes the failures of items that cannot be decoded, by place.
        """
        offered = self._offered(items, outcomes)
        waves = self._waves(items, range(len(items)) if offered is None else list(offered), outcomes)
        for wave, proposals in (
            self.engine.propose_all(waves) if offered is None else self._each(waves, offered)
        ):
            self._counts["windows"] += len(wave.pixels)
            self._counts["crops"] += 0 if proposals.crops is None else len(proposals.crops)
            yield wave.places, proposals, None if offered is None else offered[wave.places[0]]

    def _offered(self, items: Sequence[Any], outcomes: dict[int, Any]) -> dict[int, Offer] | None:
        """Decide what images are offered, by place; those that are offered the same are neighbors."""
        if self.offers is None:
            return None
        start = time.perf_counter()
        offers = self.offers.plan([item.words for item in items])
        self._count("words", start)
        outcomes.update({place: offer for place, offer in enumerate(offers) if isinstance(offer, Failure)})
        sound = {place: offer for place, offer in enumerate(offers) if isinstance(offer, Offer)}
        return dict(sorted(sound.items(), key=lambda entry: (entry[1].classes, entry[1].words)))

    def _each(self, waves: Iterator[Wave], offered: Mapping[int, Offer]) -> Iterator[tuple[Wave, Proposals]]:
        """Do as the engine's `propose_all`: a wave is encoded as a whole, and purified by what its images are offered."""
        return await_later(self._queued(waves, offered), self.engine.device)

    def _queued(
        self, waves: Iterator[Wave], offered: Mapping[int, Offer]
    ) -> Iterator[tuple[Wave, PendingProposals]]:
        for wave in waves:
            whole = EncodedWave(wave, self.engine.encode(wave))
            end = 0
            for offer, same in groupby([offered[place] for place in wave.places]):
                first, end = end, end + len(list(same))
                part = whole.part(slice(first, end), self.engine)
                engine = self._engine(offer)
                yield part.wave, engine.propose_encoded(part.wave, part.encoded, engine.room)

    def _engine(self, offer: Offer | None) -> SegmentationEngine:
        return self.engine if self.offers is None or offer is None else self.offers.engine(offer, self.engine)

    def _waves(self, items: Sequence[Any], order: Sequence[int], outcomes: dict[int, Any]) -> Iterator[Wave]:
        waiting, start = time.perf_counter(), 0
        ordered = [items[place] for place in order]
        for found in read_ahead(self._threads, self._prepare, ordered, self._images_at_once):
            self._count("decode", waiting)
            images = dict(zip(order[start:], found, strict=False))
            outcomes.update({place: image for place, image in images.items() if isinstance(image, Failure)})
            prepared = {place: image for place, image in images.items() if isinstance(image, PreparedImage)}
            places = list(prepared)
            for wave in self.engine.gather(list(prepared.values())):
                yield replace(wave, places=tuple(places[position] for position in wave.places))
            waiting, start = time.perf_counter(), start + len(found)

    def _finish(self, batches: Iterable[_Proposed], outcomes: dict[int, Any]) -> None:
        """Label the images of batch after batch, and turn them into rows."""
        for (places, engine), found in await_later(starmap(self._begin, batches), self.engine.device):
            self._make_rows(places, engine, found, outcomes)

    def _begin(
        self, places: Sequence[int], proposals: Proposals, offer: Offer | None
    ) -> tuple[tuple[Sequence[int], SegmentationEngine], PendingLabels]:
        engine = self._engine(offer)
        return (places, engine), engine.begin(proposals)

    def _make_rows(
        self,
        places: Sequence[int],
        engine: SegmentationEngine,
        found: Sequence[Segmentation | ImageError],
        outcomes: dict[int, Any],
    ) -> None:
        start = time.perf_counter()
        labelled: dict[int, Segmentation] = {}
        for place, result in zip(places, found, strict=True):
            if isinstance(result, ImageError):
                outcomes[place] = Failure.of(self.name, result)
            else:
                labelled[place] = result
                self._counts["kept_words"] += len(result.kept)
        label_maps, names = [result.label_map for result in labelled.values()], None
        if self.offers is not None:
            ignore, names = self.offers.settings.ignore_index, engine.text.vocabulary.names
            label_maps = [widened(label_map, ignore) for label_map in label_maps]
        masks = self._threads.map(encode_mask, label_maps)
        margins = self._threads.map(_margins, labelled.values())
        column = label_column(list(labelled.values()), list(masks), list(margins), names)
        outcomes.update({place: Entry(column, row) for row, place in enumerate(labelled)})
        self._count("mask_encoding", start)

    def _prepare(self, given: "Item | _WithRegions | _WithWords") -> PreparedImage | Failure:
        limit, regions = self.engine.config.max_pixels, None
        given = given.image if isinstance(given, _WithWords) else given
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
        begun = starmap(self._begin_packing, self._propose(items, outcomes))
        for places, packed in await_later(begun, self.engine.device):
            outcomes.update(zip(places, packed, strict=True))
        return [outcomes[place] for place in range(len(items))]

    def _begin_packing(
        self, places: Sequence[int], proposals: Proposals, offer: Offer | None
    ) -> tuple[Sequence[int], _PendingRows]:
        offered = self.offers.pack(offer) if self.offers is not None and offer is not None else None
        return places, _PendingRows(
            [
                self._threads.submit(pack, {**row, "own_words": offered})
                if sound
                else Failure.of(self.name, not_finite(WINDOWS))
                for row, sound in zip(proposals.to_rows(), proposals.sound_images, strict=True)
            ]
        )


class FinishStage(LabelStage):
    """Stage 2: proposals to labels (column ``result``)."""

    name = "finish"
    payload = "proposal"

    def work(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        """Turn rows of `PROPOSAL` into label rows."""
        outcomes: dict[int, Any] = {}
        self._finish(self._unpacked(items), outcomes)
        return [outcomes[place] for place in range(len(items))]

    def _unpacked(self, items: Sequence[dict[str, Any]]) -> Iterator[_Proposed]:
        offered = None
        if self.offers is not None:
            offered = self.offers.unpack(item["own_words"] for item in items)
        for places in _batches(items, self.engine, offered):
            rows = self._threads.map(unpack, [items[place] for place in places])
            offer = None if offered is None else offered[places[0]]
            yield places, self.engine.proposals_of_rows(list(rows)), offer


class SegmentStage(LabelStage):
    """Both stages in one actor: image files to labels (column ``result``)."""

    def work(self, items: Sequence[Item]) -> list[Any]:
        """Turn image files into label rows."""
        outcomes: dict[int, Any] = {}
        self._finish(self._propose(items, outcomes), outcomes)
        return [outcomes[place] for place in range(len(items))]


def _margins(result: Segmentation) -> bytes | None:
    """Encode how sure each pixel is, where that was asked for."""
    sure = result.confidence
    return None if sure is None or sure.margins is None else encode_mask(sure.margins)


def read_ahead(
    threads: ThreadPoolExecutor, prepare: Callable[[Given], Prepared], items: Sequence[Given], size: int
) -> Iterator[list[Prepared]]:
    """Prepare items in threads and yield the results in order, `size` at a time.

    While the caller has one portion, those of the next `_WAVES_AHEAD` are worked on.
    """
    begun: deque[list[Future[Prepared]]] = deque()
    for start in range(0, len(items), size):
        begun.append([threads.submit(prepare, item) for item in items[start : start + size]])
        if len(begun) > _WAVES_AHEAD:
            yield [future.result() for future in begun.popleft()]
    while begun:
        yield [future.result() for future in begun.popleft()]


def _batches(
    items: Sequence[dict[str, Any]], engine: SegmentationEngine, offered: Sequence[Offer] | None
) -> list[list[int]]:
    """Put rows together whose windows have one size and that were offered the same.

    They are cut where label maps would take too much memory.
    """
    resized = [WindowLayout.of(*size_in(item, "resized"), engine.config.windows) for item in items]
    pixels = [math.prod(size_in(item, "size")) for item in items]
    most = _PIXELS_AT_ONCE_ON_GPU if engine.device.type == "cuda" else _PIXELS_AT_ONCE
    sizes = [layout.window_size for layout in resized]
    alike = sizes if offered is None else list(zip(sizes, offered, strict=True))
    return group_alike(alike, pixels, most)


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
    if isinstance(item, _WithRegions | _WithWords):
        return _content(item.image)
    if isinstance(item, np.ndarray | Image.Image):
        return item.tobytes()
    return item if isinstance(item, bytes) else b""
