"""How much a batch may hold where shapes must be known before the work begins, and how that is learned from batches.

A GPU that is never waited for cannot count first. So every table has a fixed number of places (`Room`); a batch that needs
more says so in the end, and is done again by counting.
"""

from dataclasses import dataclass, replace

_STEP = 16
MOST = 32
"""Groups, boxes of a group, and boxes of an image that room is kept for; a box takes 147 kB at a crop's default side."""


@dataclass(frozen=True)
class Room:
    """How much a batch may hold where shapes must be known before the work begins, as on a GPU that never waits.

    A batch that needs more says so (`complete` is false) and is done again by counting, which is exact for any number.

    Attributes:
        classes: Kept classes of an image.
        groups: Ambiguous groups of an image, or of a window where windows decide.
        boxes: Boxes of a group.
        regions: Boxes that are shown to the encoder, on average over the images of a batch.
        active: Classes of one chunk whose maps a unit may need refined; None as many as there are.
        distractors: The same for the null's distractors.
    """

    classes: int = 64
    groups: int = 16
    boxes: int = 8
    regions: int = 8
    active: int | None = None
    distractors: int | None = None

    def learned(
        self, active: int, distractors: int, regions: int = 0, groups: int = 0, boxes: int = 0
    ) -> "Room":
        """Return the room for batches like one that needed so much, with some to spare.

        Args:
            active, distractors: Maps of its fullest unit.
            regions: Boxes of an image, on average.
            groups, boxes: Groups of its fullest unit, and boxes of its fullest group, where they were counted.
        """
        needed = (self.active or 0, active), (self.distractors or 0, distractors)
        # in steps, as every new size costs a GPU some set-up
        grown = [max(had, _round_up(seen + seen // 4 + 1)) for had, seen in needed]
        return replace(
            self,
            active=grown[0],
            distractors=grown[1],
            regions=_wider(self.regions, regions),
            groups=_wider(self.groups, groups),
            boxes=_wider(self.boxes, boxes),
        )


def _round_up(number: int) -> int:
    return -(-number // _STEP) * _STEP


def _wider(had: int, seen: int) -> int:
    return had if seen <= had else max(had, min(_round_up(seen), MOST))
