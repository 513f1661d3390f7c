"""Results that a device has been asked for: proposals and labels on their way to CPU memory.

The engine queues the work of a wave and returns one of these at once; `wait` brings the numbers that the CPU needs. By
then the device has other work (`ovss_core.transfer.await_later`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.groups import RegionTable
from ovss_core.class_purification.purifier import Purified
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.engine.finish import BegunLabels
from ovss_core.engine.proposal import Decisions, Proposals
from ovss_core.engine.waves import Encoded, Wave
from ovss_core.errors import ImageError
from ovss_core.results import Segmentation
from ovss_core.transfer import Download

if TYPE_CHECKING:
    from ovss_core.engine.engine import SegmentationEngine


@dataclass(frozen=True)
class PendingProposals:
    """Proposals whose decisions are on their way to CPU memory.

    Attributes:
        engine: What made them, should they have to be made again.
        wave: Their images.
        encoded: The windows, encoded.
        proposals: All that stays on the device.
        download: Which images are sound; their facts; with purification the tables of `decided_tables`.
        fact_names: Names of the facts, in the order of the download.
        by_window: Whether windows decided.
    """

    engine: "SegmentationEngine"
    wave: Wave
    encoded: Encoded
    proposals: Proposals
    download: Download
    fact_names: tuple[str, ...] = ()
    by_window: bool = False

    def wait(self) -> Proposals:
        """Return the proposals as soon as their decisions are there.

        What needed more room than it had is done again, by counting.
        """
        sound, *rest = self.download.wait()
        facts = dict(zip(self.fact_names, rest, strict=False))
        decided = rest[len(facts) :]
        if not decided:
            return replace(self.proposals, sound=sound, facts=facts)
        scores, classes, used, boxes, members, needed, complete = decided
        active, distractors, areas = needed.tolist()
        self.engine.learn(active, distractors, -(-areas // len(self.wave.sizes)), *used.shape[1:])
        if not complete:
            return self.engine.propose_encoded(self.wave, self.encoded, room=None).wait()
        counts = self.proposals.window_counts
        regions = AmbiguousRegions.of_tables(used, boxes, members, self.by_window, counts)
        # of the places that were kept free, those that nobody took go
        places = 1 + int(np.flatnonzero((classes != NOBODY).any(0)).max(initial=-1))
        # where no image keeps anything, tables have one place all the same, which is nobody's
        classes = classes[:, :places] if places else np.full((len(classes), 1), NOBODY)
        decisions = Decisions(scores, classes, regions)
        if self.engine.config.purification.own_scores:
            return self._with_own_scores(decisions, sound, facts)
        maps = self.proposals.maps[:, :places]
        if not places:
            maps = maps.new_zeros(maps.shape[0], 1, maps.shape[2])
        if self.engine.must_keep:
            decisions = _keep_something(decisions)
        return replace(
            self.proposals,
            maps=maps,
            sound=sound,
            decisions=decisions,
            crops=self._crops(regions),
            facts=facts,
        )

    def _crops(self, regions: AmbiguousRegions) -> Tensor | None:
        """Return the crops of the regions that there are; room was made for more."""
        return None if self.proposals.crops is None else self.proposals.crops[: regions.has_area.sum()]

    @torch.inference_mode()
    def _with_own_scores(
        self, decisions: Decisions, sound: np.ndarray, facts: Mapping[str, np.ndarray]
    ) -> Proposals:
        decisions = _keep_something(decisions)
        phrases, maps = self.engine.of_kept_words(self.wave, decisions, self.proposals)
        return replace(
            self.proposals,
            maps=maps,
            scored=True,
            sound=sound,
            decisions=decisions,
            phrases=phrases,
            crops=self._crops(decisions.regions),
            facts=facts,
        )


def decided_tables(purified: Purified, regions: RegionTable) -> list[Tensor]:
    """List what the CPU needs of a purification, in the order in which `PendingProposals.wait` takes it."""
    groups = purified.groups
    return [
        purified.scores.float(),
        purified.kept.classes,
        groups.used,
        groups.boxes,
        groups.members,
        torch.cat([purified.needed, regions.needed[None]]),
        purified.complete & regions.complete,
    ]


@dataclass(frozen=True)
class PendingLabels:
    """Labels of a batch that are on their way to CPU memory.

    Attributes:
        engine: What gives them.
        begun: What the device was given.
    """

    engine: "SegmentationEngine"
    begun: BegunLabels

    def wait(self) -> list[Segmentation | ImageError]:
        """Return the labels as soon as they are there; an image that is not finite has an error in its place."""
        with self.engine._timed("finish"):
            return self.engine.finisher.wait(self.begun)


def _keep_something(decisions: Decisions) -> Decisions:
    """Give an image whose every class was removed its best-scored one, where no background can take the image.

    A purified map of that class stays 0, and takes the whole image all the same: nothing competes.
    """
    classes = decisions.classes
    nothing = (classes == NOBODY).all(1)
    if nothing.any():
        classes = classes.copy()
        classes[nothing, 0] = np.nanargmax(decisions.scores[nothing], 1)
    return Decisions(decisions.scores, classes, decisions.regions)
