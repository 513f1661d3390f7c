"""A part of a corpus: its first images, a random sample, or the share of one of several independent jobs.

Which images are chosen depends on their names alone, never on what was labelled before: a sample is that of the smallest
hashes, so a larger one with the same seed holds the smaller one, and a share keeps its images when others are added.
Shards that are streamed are taken whole.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines.run.manifest import is_streamed
from pipelines.run.share import Share, place_of
from pipelines.sources.record import ImageRecord, Source


@dataclass(frozen=True)
class Selection:
    """What is taken of a corpus; each rule that is None takes everything.

    Attributes:
        limit: So many images from the front.
        sample: So many images at random.
        seed: Decides which.
        share: The images of one of several jobs; the other rules choose among them.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    share: Share | None = None

    @property
    def is_partial(self) -> bool:
        """Whether a later run may go on to the whole."""
        return self.limit is not None or self.sample is not None

    def of(self, source: Source) -> Source:
        """Return a source that lists the chosen images."""
        if not self.is_partial and self.share is None:
            return source
        return _Selected(source, self)

    def hash(self, name: str) -> int:
        """Return where a name stands among all, in the order of this seed."""
        return place_of(str(self.seed), name)


class _Selected:
    """A source of which a part is listed.

    Attributes:
        whole: The source without `Selection.limit` and `Selection.sample`.
        is_partial: What it lists may be a part of `whole`.
    """

    def __init__(self, source: Source, selection: Selection) -> None:
        self._source, self._selection = source, selection
        self._names: list[str] | None = None
        self.is_partial = selection.is_partial
        self.whole = Selection(share=selection.share).of(source) if selection.is_partial else self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def containers(self) -> list[str] | None:
        """Return the chosen containers; a part of an image list does not choose among its tables."""
        if self._names is None:
            names, share = self._source.containers(), self._selection.share
            if names is None:
                return None
            mine = [name for name in names if share is None or share.holds(name)]
            streamed = is_streamed(self._source) and self.is_partial
            self._names = self._whole_shards(mine) if streamed else mine
        return list(self._names)

    def records(self, skip: Collection[str] = (), **options: Any) -> Iterator[ImageRecord]:
        """List the chosen images in the source's order."""
        records = self._mine(skip, options)
        limit, sample = self._selection.limit, self._selection.sample
        if sample is not None:
            numbered = enumerate(records)
            chosen = heapq.nsmallest(sample, numbered, lambda entry: self._selection.hash(entry[1].image_id))
            records = (record for _, record in sorted(chosen, key=lambda entry: entry[0]))
        return islice(records, limit)

    def _mine(self, skip: Collection[str], options: dict[str, Any]) -> Iterator[ImageRecord]:
        share = self._selection.share
        if share is None:
            return self._source.records(skip, **options)
        names = self._source.containers()
        if names is None:
            return (
                record for record in self._source.records(skip, **options) if share.holds(record.image_id)
            )
        others = {name for name in names if not share.holds(name)}
        return self._source.records(others.union(skip), **options)

    def _whole_shards(self, names: Sequence[str]) -> list[str]:
        """Choose shards until they hold the wanted number of images, which reading them tells."""
        from pipelines.sources.webdataset import count_images

        sample, limit = self._selection.sample, self._selection.limit
        order = sorted(names, key=self._selection.hash) if sample is not None else names
        wanted = min(count for count in (sample, limit) if count is not None)
        chosen, images = [], 0
        for name in order:
            if images >= wanted:
                break
            chosen.append(name)
            images += count_images(self._source, name)
        return sorted(chosen)
