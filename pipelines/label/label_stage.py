"""What the labelling stages share: an engine, and batches of rows in which failures travel on.

A stage takes the payload of each row (an image, or a proposal) out of a batch, and puts what it made of it in the same
place. `pipelines.label.stages` says what that is; here is how rows are read and written, whosever batches they are.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from ovss_core.clip.text import EncodedVocabulary
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.trial import trust_kernels
from ovss_core.errors import ConfigError
from pipelines.faults import Failure, process_sound
from pipelines.label.batches import PREFIX, Batch, pairs
from pipelines.label.image_column import OddValue, image_items
from pipelines.label.own_words import Offer, Offers
from pipelines.label.word_use import OwnWords
from pipelines.run import metrics
from pipelines.run.compute import pick_device, use_threads
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import FAILURE, LABELS, SECONDS, result_type
from pipelines.sources.region_maps import RegionFolder

_WAVE, _WAVE_ON_GPU = 16, 64
"""Images that the engine is given at once: on GPUs as many as fill the windows of its wave."""


class ImageRow(NamedTuple):
    """An image, and what its row says beside it.

    Attributes:
        image: What the image column holds.
        regions: What tells its regions: its name in the folder of region maps, or what its column holds; None without any.
        words: What the column of words says; None where images bring none.
    """

    image: Any
    regions: Any = None
    words: Any = None


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
        images, nothing = image_items(rows, payload), [None] * len(rows)
        regions = self._given_regions(rows) or nothing
        words = rows.values(self.offers.settings.column) if self.offers else nothing
        return [
            given.image if _no_payload(payload, given.image) is not None else given
            for given in map(ImageRow, images, regions, words)
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

    def _engine(self, offer: Offer | None) -> SegmentationEngine:
        return self.engine if self.offers is None or offer is None else self.offers.engine(offer, self.engine)

    def _count(self, step: str, start: float) -> None:
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start


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
    if isinstance(item, ImageRow):
        return _content(item.image)
    if isinstance(item, np.ndarray | Image.Image):
        return item.tobytes()
    return item if isinstance(item, bytes) else b""
