"""Under which license a checkpoint's weights may be used, as far as it is known here.

Only what was read in the publishers' repositories or model cards is listed; anything else is "not known", which is no
permission. ovss says a line about weights whose license forbids commercial use, and `run.json` records the license.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovss_core.clip.architectures import HUB, LOCAL_FOLDER
from ovss_core.clip.weight_sources import resolve_weights
from ovss_core.config import ModelConfig


@dataclass(frozen=True)
class License:
    """A license of weights.

    Attributes:
        name: Its identifier, or "not known".
        commercial: Whether it allows commercial use; None where that is not known.
    """

    name: str
    commercial: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `run.json`."""
        return {"name": self.name, "commercial_use": self.commercial}


UNKNOWN = License("not known", None)
OWN = License("Apache-2.0", True)
NO_WEIGHTS = License("none: random numbers", True)
_NON_COMMERCIAL = License("CC-BY-NC-4.0", False)
_APPLE = License("Apple's model license (ASCL, now AMLR: research only)", False)
_MIT, _APACHE = License("MIT", True), License("Apache-2.0", True)
BY_TAG: Mapping[str, License] = {
    "metaclip": _NON_COMMERCIAL,  # metaclip_400m, metaclip_fullcc, metaclip_altogether, metaclip2_worldwide
    "dfn": _APPLE,  # dfn2b, dfn5b, dfndr2b: DFN and MobileCLIP 2
    "datacompdr": _APPLE,  # MobileCLIP
    "openai": _MIT,
    "laion": _MIT,
    "webli": _APACHE,  # SigLIP and SigLIP 2
    "meta": _APACHE,  # PE-Core; the longer metaclip comes first
}
"""Licenses of open_clip's weight tags by how the tags begin; the longest beginning counts."""
BY_REPOSITORY: Mapping[str, License] = {"metaclip": _NON_COMMERCIAL, "mobileclip": _APPLE, "dfn": _APPLE}
"""Licenses of a hub's repositories by a part of their names."""


def find_license(model: ModelConfig) -> License:
    """Return the license of a model's weights; that of a file is its owner's to know.

    Raises:
        WeightsError: As `resolve_weights`.
    """
    source, place = resolve_weights(model.name, model.pretrained)
    if source == "random":
        return NO_WEIGHTS
    if source == "tag":
        found = [start for start in BY_TAG if place.startswith(start)]
        return BY_TAG[max(found, key=len)] if found else UNKNOWN
    if source == "folder" and model.name.startswith(HUB):
        name = model.name.removeprefix(HUB).lower()
        return next((license for part, license in BY_REPOSITORY.items() if part in name), UNKNOWN)
    is_own = source == "file" and place != model.pretrained and not model.name.startswith(LOCAL_FOLDER)
    return OWN if is_own else UNKNOWN


def license_warning(model: ModelConfig) -> list[str]:
    """Say in one line that a model's weights must not be used commercially, where that is so."""
    license = find_license(model)
    if license.commercial is not False:
        return []
    return [
        f"the license of the weights {model.pretrained!r} of {model.name} forbids commercial use ({license.name}); tags openai "
        "and laion2b_... allow it (MIT)"
    ]
