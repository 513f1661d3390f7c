"""How a data set lies on disk, and finding its pairs of image and reference mask."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ovss_core.errors import StorageError
from ovss_core.evaluation.benchmarks.conversions import LabelConversion


class FileTree(Protocol):
    """A data set's folder, wherever it is; paths are relative, with forward slashes."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def files(self, folder: str) -> Iterable[str]:
        """Return the paths of all files below a folder, relative to the root; none where there is no folder."""

    def read_text(self, path: str) -> str | None:
        """Return a text file's content, or None where there is none."""


@dataclass(frozen=True)
class SamplePair:
    """One image and its reference mask, as paths relative to the root."""

    image: str
    mask: str


@dataclass(frozen=True)
class Layout:
    """One way in which a data set may lie below its root.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: What an image's name ends with; the rest, with the folders between, is the pair's id.
        mask_suffix: What its mask's name has instead.
        conversion: Makes class indices of the values in these masks.
        split: Text file with one id a line; None takes every image that the folder holds.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    conversion: LabelConversion
    split: str | None = None

    def describe(self) -> str:
        """Draw the layout in one line."""
        listed = f" of the ids in {self.split}" if self.split else ""
        return f"{self.images}/*{self.image_suffix} and {self.masks}/*{self.mask_suffix}{listed}"


@dataclass(frozen=True)
class FoundSamples:
    """The pairs of a data set, by id, and how their masks are read."""

    pairs: tuple[SamplePair, ...]
    layout: Layout


def find_samples(
    name: str, layouts: Sequence[Layout], prefixes: Sequence[str], tree: FileTree
) -> FoundSamples:
    """Find a benchmark's pairs below a root that may lie at any of the given depths.

    Args:
        name: The benchmark, for messages.
        layouts: Ways in which the files may lie; the first that is there counts.
        prefixes: Folders below the root that may hold the layout; "" is the root itself.
        tree: The root.

    Raises:
        StorageError: No layout is there, or an image of the split lacks its mask.
    """
    found = look_for_samples(layouts, prefixes, tree)
    if found:
        return found
    expected = ", or ".join(layout.describe() for layout in layouts)
    below = ", ".join(repr(prefix) for prefix in prefixes if prefix)
    raise StorageError(
        f"{tree.name} does not hold {name}; expected {expected}, directly below it"
        f"{f' or below {below}' if below else ''}; give the folder as --root"
    )


def look_for_samples(
    layouts: Sequence[Layout], prefixes: Sequence[str], tree: FileTree
) -> FoundSamples | None:
    """Find a benchmark's pairs as `find_samples`, or return None where no layout is there.

    Raises:
        StorageError: One is there, and some of its images lack their mask.
    """
    for prefix in prefixes:
        for layout in layouts:
            pairs = _pairs(layout, prefix, tree)
            if pairs:
                return FoundSamples(tuple(pairs), layout)
    return None


def _pairs(layout: Layout, prefix: str, tree: FileTree) -> list[SamplePair]:
    images, masks = _below(prefix, layout.images), _below(prefix, layout.masks)
    ids = _ids(layout, prefix, images, tree)
    if not ids:
        return []
    there = {path for path in tree.files(masks) if path.endswith(layout.mask_suffix)}
    if not there:
        return []
    pairs = [
        SamplePair(f"{images}/{key}{layout.image_suffix}", f"{masks}/{key}{layout.mask_suffix}")
        for key in ids
    ]
    lacking = [pair for pair in pairs if pair.mask not in there]
    if len(lacking) == len(pairs):  # the masks of another data set, such as COCO's objects beside its stuff
        return []
    if lacking:
        raise StorageError(
            f"{tree.name}: {len(lacking)} of {len(pairs)} images have no mask, such as {lacking[0].mask} for "
            f"{lacking[0].image}; complete the masks, or take the images out (of the split file where there is one)"
        )
    return pairs


def _ids(layout: Layout, prefix: str, images: str, tree: FileTree) -> list[str]:
    if layout.split is not None:
        text = tree.read_text(_below(prefix, layout.split))
        return [line.split()[0] for line in text.splitlines() if line.strip()] if text else []
    suffix = layout.image_suffix
    return sorted(
        path.removeprefix(f"{images}/").removesuffix(suffix)
        for path in tree.files(images)
        if path.endswith(suffix)
    )


def _below(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path
