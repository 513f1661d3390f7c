"""What stage 1 hands to stage 2 about one image, in memory and as bytes without pickle."""

import json
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load, save

from ovss_core.class_purification.winners import GroupProposal


@dataclass(frozen=True)
class PhraseFeatures:
    """An image without purification: what its phrase scores are computed from.

    Attributes:
        values: Cosines with every phrase [windows, patches, phrases], or the unit features themselves
            [windows, patches, features] where the vocabulary has more phrases than the features dimensions.
        scored: Whether `values` are cosines.
    """

    values: Float[np.ndarray, "windows patches channels"]
    scored: bool


@dataclass(frozen=True)
class PurifiedClasses:
    """An image with purification.

    Attributes:
        scores: Redundancy score of every class, nan for the background class.
        kept: Class indices kept, ascending.
        maps: Purified maps of the kept classes in each window.
        groups: Ambiguous groups, with boxes in pixels.
        crops: Normalised pixels of the boxes to decide, in the order of `crop_of`.
        crop_of: (group, box) of each crop.
    """

    scores: Float[np.ndarray, " classes"]
    kept: Int[np.ndarray, " kept"]
    maps: Float[np.ndarray, "kept windows rows columns"]
    groups: tuple[GroupProposal, ...] = ()
    crops: Float[np.ndarray, "crops 3 side side"] = field(
        default_factory=lambda: np.zeros((0, 3, 1, 1), np.float32)
    )
    crop_of: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Proposal:
    """Everything that stage 2 needs to label one image.

    Attributes:
        size: Height and width of the image.
        resized: Height and width at which windows were cut.
        content: Phrase features or purified classes.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    content: PhraseFeatures | PurifiedClasses

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        if isinstance(self.content, PhraseFeatures):
            header = {"size": self.size, "resized": self.resized, "scored": self.content.scored}
            return save({"values": np.ascontiguousarray(self.content.values)}, {"header": json.dumps(header)})
        content = self.content
        header = {
            "size": self.size,
            "resized": self.resized,
            "groups": [[group.classes, group.window, group.boxes] for group in content.groups],
            "crop_of": content.crop_of,
        }
        arrays = {
            "scores": content.scores,
            "kept": content.kept,
            "maps": content.maps,
            "crops": content.crops,
        }
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return save(tensors, {"header": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Proposal":
        """Rebuild what `to_bytes` wrote."""
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
        arrays = load(data)
        size, resized = tuple(header["size"]), tuple(header["resized"])
        if "values" in arrays:
            return cls(size, resized, PhraseFeatures(arrays["values"], header["scored"]))
        groups = tuple(
            GroupProposal(tuple(classes), window, tuple(tuple(box) for box in boxes))
            for classes, window, boxes in header["groups"]
        )
        crop_of = tuple((group, box) for group, box in header["crop_of"])
        content = PurifiedClasses(
            arrays["scores"], arrays["kept"], arrays["maps"], groups, arrays["crops"], crop_of
        )
        return cls(size, resized, content)
