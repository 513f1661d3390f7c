"""The one carrier of class purification: score maps of classes, for all windows of a batch at once.

A decision of FreeCP is made for a *unit*: an image with all its windows, or each window by itself. Every unit has the
same number of *places*, and a place holds one class, so that a batch is one rectangular table however many classes its
images keep: ``classes[unit, place]`` names them, -1 in the places that a unit does not need, and
``maps[window, place]`` are their maps in each window of the unit. All steps work on such tables, on a CPU with exactly
as many places as the fullest unit needs, on a GPU with a number that is known before the work begins (`room`), so that
nothing waits for a count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.placement import Placement, Units

NOBODY = -1
"""Class of an unused place."""


@dataclass(frozen=True)
class WindowBatch:
    """Encoded windows of one or more images, all of one size: what purification is given.

    Attributes:
        features: Dense features of the head, L2-normalized, patches row-major.
        attention: Mean over blocks 1..L-1 and heads of the patch-patch attention, class column dropped.
        placement: Where the windows lie.
        logits: What takes the place of scaled cosines, where the head scores words itself: of the vocabulary's phrases,
            and of the distractors.
    """

    features: Float[Tensor, "windows patches channels"]
    attention: Float[Tensor, "windows patches patches"]
    placement: Placement
    logits: (
        tuple[Float[Tensor, "phrases windows patches"], Float[Tensor, "others windows patches"]] | None
    ) = None


@dataclass(frozen=True)
class ClassMaps:
    """Maps of some classes of every unit.

    Attributes:
        units: What the windows belong to.
        classes: Class of each place, ascending within a unit once `join` has sorted them; `NOBODY` in unused places.
        maps: The map of each place in each window of its unit; 0 in unused places.
    """

    units: Units
    classes: Int[Tensor, "units places"]
    maps: Float[Tensor, "windows places patches"]

    @classmethod
    def gather(
        cls,
        units: Units,
        columns: Int[Tensor, " columns"],
        values: Float[Tensor, "columns windows patches"],
        wanted: Bool[Tensor, "units columns"],
        empty: float = 0.0,
        capacity: int | None = None,
    ) -> "ClassMaps":
        """Take the wanted classes of each unit out of a dense table of all.

        Args:
            units: What the windows belong to.
            columns: Class of each column.
            values: Maps of every column in every window.
            wanted: The columns that each unit takes.
            empty: What fills the maps of unused places.
            capacity: Places of a unit; None counts, and makes as many as the fullest unit needs.
        """
        column = first_places(wanted, capacity)
        there = column < len(columns)
        chosen = column.clamp_max(len(columns) - 1)
        windows = torch.arange(values.shape[1], device=values.device)[:, None]
        maps = values[chosen[units.index], windows]
        maps = torch.where(there[units.index][:, :, None], maps, empty)
        return cls(units, torch.where(there, columns[chosen], NOBODY), maps)

    @property
    def used(self) -> Bool[Tensor, "units places"]:
        """Which places hold a class."""
        return self.classes >= 0

    @property
    def places(self) -> int:
        """Places of each unit."""
        return self.classes.shape[1]

    def with_maps(self, maps: Float[Tensor, "windows places patches"]) -> "ClassMaps":
        """Return the same classes with other maps."""
        return replace(self, maps=maps)

    def to_windows(self, values: Tensor) -> Tensor:
        """Repeat a table [units, places] for every window: [windows, places]."""
        return values[self.units.index]

    def extreme(self, how: str) -> Float[Tensor, "units places"]:
        """Find the smallest ("amin") or largest ("amax") value of each class over its unit."""
        return self.units.reduce(getattr(self.maps, how)(2), how)

    def total(self) -> Float[Tensor, "units places"]:
        """Sum each class's maps over its unit, in float64 so that the order does not matter."""
        return self.units.reduce(self.maps.sum(2, dtype=torch.float64), "sum")

    def select(self, wanted: Bool[Tensor, "units places"], capacity: int | None = None) -> "ClassMaps":
        """Keep some of the classes of each unit, in as few places as that needs (or `capacity`)."""
        place = first_places(wanted & self.used, capacity)
        there = place < self.places
        chosen = place.clamp_max(self.places - 1)
        patches = self.maps.shape[2]
        index = chosen[self.units.index][:, :, None].expand(-1, -1, patches)
        maps = self.maps.gather(1, index) * there[self.units.index][:, :, None]
        return ClassMaps(self.units, torch.where(there, self.classes.gather(1, chosen), NOBODY), maps)

    @staticmethod
    def join(parts: Sequence["ClassMaps"]) -> "ClassMaps":
        """Put tables of different classes of the same units together, classes ascending."""
        classes = torch.cat([part.classes for part in parts], 1)
        maps = torch.cat([part.maps for part in parts], 1)
        unused = torch.iinfo(classes.dtype).max
        order = torch.where(classes >= 0, classes, unused).argsort(1)
        units = parts[0].units
        index = order[units.index][:, :, None].expand(-1, -1, maps.shape[2])
        return ClassMaps(units, classes.gather(1, order), maps.gather(1, index))

    def by_unit(self) -> Float[Tensor, "units places slots patches"]:
        """Lay the maps of a unit's windows side by side; 0 where a unit has fewer windows than the largest."""
        maps = self.maps[self.units.slots] * self.units.used[:, :, None, None]
        return maps.transpose(1, 2)

    def by_image(self, images: Units, classes: int, capacity: int | None = None) -> "ClassMaps":
        """Give an image the classes that any of its windows has; a window without the class has a map of 0.

        Args:
            images: The images of the windows; `units` of this table are the windows.
            classes: Number of classes of the vocabulary.
            capacity: Places of an image; None counts.
        """
        if len(images) == len(self.units):
            return replace(self, units=images)
        windows = len(self.units)
        nowhere = self.places
        place = self.classes.new_full((windows, classes + 1), nowhere)
        column = torch.where(self.used, self.classes, classes)
        place.scatter_(1, column, torch.arange(self.places, device=column.device).expand_as(column))
        anywhere = images.reduce((place[:, :classes] < nowhere).int(), "amax") > 0
        table = first_places(anywhere, capacity)
        there = table < classes
        chosen = place.gather(1, table.clamp_max(classes - 1)[images.index])
        seen = (chosen < nowhere) & there[images.index]
        index = chosen.clamp_max(nowhere - 1)[:, :, None].expand(-1, -1, self.maps.shape[2])
        maps = self.maps.gather(1, index) * seen[:, :, None]
        return ClassMaps(images, torch.where(there, table, NOBODY), maps)


def first_places(wanted: Bool[Tensor, "units columns"], capacity: int | None) -> Int[Tensor, "units places"]:
    """List the columns that are wanted, ascending; the number of columns stands for none."""
    columns = wanted.shape[1]
    if capacity is None:
        capacity = int(wanted.sum(1).max()) if wanted.numel() else 0
    every = torch.arange(columns, device=wanted.device)
    return torch.where(wanted, every, columns).sort(1).values[:, : min(capacity, columns)]
