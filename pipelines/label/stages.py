"""The labelling stages: callable classes over batches, which run in Ray Data's actors and without Ray.

Each takes rows with a payload (an image, or a proposal) and hands them on with its own payload in the same place;
a row that has failed passes through. So they fit any pipeline:
``dataset.map_batches(SegmentStage, fn_constructor_kwargs={"config": config, "text": text},
batch_format="pyarrow", ...)``, and as well "numpy" or "pandas", which are given back as they came.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby, starmap
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.finite import WINDOWS, not_finite
from ovss_core.engine.pending import PendingLabels, PendingProposals
from ovss_core.engine.proposal import Proposals, size_in
from ovss_core.engine.variants import EncodedWave
from ovss_core.engine.waves import PreparedImage, Wave
from ovss_core.errors import ImageError
from ovss_core.images.decode import EncodedImage
from ovss_core.images.windows import WindowLayout, group_alike
from ovss_core.regions import RegionMap
from ovss_core.results import Segmentation
from ovss_core.transfer import await_later
from pipelines.faults import Failure
from pipelines.label.batches import Entry
from pipelines.label.image_column import to_pixels
from pipelines.label.label_stage import ImageRow, LabelStage
from pipelines.label.masks import encode_mask
from pipelines.label.own_words import Offer, widened
from pipelines.label.proposals import pack, unpack
from pipelines.label.table import label_column
from pipelines.run.schema import PROPOSAL

_LARGE_PIXELS = 1 << 24
_WAVES_AHEAD = 2
"""Waves whose images are decoded while the engine has another; no more, as a call may hold any number of images."""
_PIXELS_AT_ONCE, _PIXELS_AT_ONCE_ON_GPU = 1 << 26, 1 << 24
"""Pixels of the images that stage 2 labels at once: on GPUs so few that a call has several batches, as one is begun before
the labels of the one before it are awaited."""
Given = TypeVar("Given")
Prepared = TypeVar("Prepared")
_Proposed = tuple[Sequence[int], Proposals, Offer | None]
"""Places of images in a call, their proposals, and what they were offered."""


class _PendingRows(NamedTuple):
    """Rows of proposals that threads compress, and failures in the places of others."""

    rows: list[Future[dict[str, Any]] | Failure]

    def wait(self) -> list[dict[str, Any] | Failure]:
        return [row if isinstance(row, Failure) else row.result() for row in self.rows]


class _Proposing(LabelStage):
    """Stage 1: images are decoded, put together in waves, encoded, and purified."""

    def _propose(self, items: Sequence[ImageRow], outcomes: dict[int, Any]) -> Iterator[_Proposed]:
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

    def _offered(self, items: Sequence[ImageRow], outcomes: dict[int, Any]) -> dict[int, Offer] | None:
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

    def _waves(
        self, items: Sequence[ImageRow], order: Sequence[int], outcomes: dict[int, Any]
    ) -> Iterator[Wave]:
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

    def _prepare(self, given: ImageRow) -> PreparedImage | Failure:
        """Decode an image and its region map, and resize them; a very large one has the memory for itself."""
        limit = self.engine.config.max_pixels
        try:
            regions = None if given.regions is None else self._regions(given.regions, limit)
            if not isinstance(given.image, bytes):
                return self.engine.prepare(to_pixels(given.image, limit), regions)
            image = EncodedImage(given.image, limit)
            with self._large if image.height * image.width > _LARGE_PIXELS else nullcontext():
                return self.engine.prepare(image.pixels(), regions)
        except ImageError as error:
            return Failure.of("decode", error)

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


class _Finishing(LabelStage):
    """Stage 2: proposals become label maps, and these rows."""

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


class ProposeStage(_Proposing):
    """Stage 1: image files to proposals (column ``proposal``)."""

    name = "propose"
    output = "proposal"
    output_type = PROPOSAL

    def work(self, items: Sequence[ImageRow]) -> list[Any]:
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


class FinishStage(_Finishing):
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


class SegmentStage(_Proposing, _Finishing):
    """Both stages in one actor: image files to labels (column ``result``)."""

    def work(self, items: Sequence[ImageRow]) -> list[Any]:
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
