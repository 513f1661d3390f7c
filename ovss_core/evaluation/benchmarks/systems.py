"""The systems of the papers' tables: what they need, what was published, and whether ovss runs them.

The list is `systems.toml` beside this file; which systems are in follows from the heads and refiners that exist.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, get_args

from ovss_core.config import SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.evaluation.benchmarks.protocols import Purify
from ovss_core.head_names import host_names, refiner_names

Need = Literal["tower", "regions", "gradients", "corpus", "captions"]
NEEDS: Mapping[Need, str] = {
    "tower": "a second tower",
    "regions": "regions",
    "gradients": "gradients",
    "corpus": "images of the corpus beforehand",
    "captions": "training on captions",
}


@dataclass(frozen=True)
class System:
    """One row of the papers' tables.

    Attributes:
        paper: Where it was published.
        miou: Published mIoU in percent by benchmark; benchmarks without a figure are left out.
        source: Where the figures come from, and under which conditions.
        host, purify, refine: What runs it here; no host for a system that is not meant to be in.
        settings: Further settings by dotted name: one value, or one for each benchmark.
        needs: What it takes beside one CLIP.
        license: Of the authors' code, and of weights beside CLIP's.
        out: Why it is not in; empty for a system that is, or that waits for its head.
        whole: Whether what runs here is all that the figures are of; otherwise they stand beside it in lists and grids alone.
        table: Which of the two papers' main tables gives its figures, "sfp" or "freecp"; empty for a figure from elsewhere.
    """

    name: str
    paper: str
    miou: Mapping[str, float]
    source: str
    host: str | None = None
    purify: Purify = "none"
    refine: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    license: str = "not read"
    out: str = ""
    whole: bool = True
    table: Literal["", "sfp", "freecp"] = ""

    @property
    def is_in(self) -> bool:
        """Whether this version has all its parts."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it is not in, in a line; empty where it is."""
        if self.out or self.host is None:
            return self.out
        if self.host not in host_names():
            return f"this version has no head {self.host}"
        return "" if self.refine in refiner_names() else f"this version has no refiner {self.refine}"

    @property
    def flags(self) -> str:
        """How it is run, as one would type it, but for numbers; empty for one that is not meant to be in."""
        if self.host is None:
            return ""
        refined = f" --refine {self.refine}" if self.refine != "none" else ""
        switched = "".join(f" --{name} true" for name, on in self.switches.items() if on)
        return f"--host {self.host} --purify {self.purify}{refined}{switched}"

    @property
    def switches(self) -> Mapping[str, bool]:
        """Those settings that say which parts of a head run: they tell systems with one head apart."""
        return {name: value for name, value in self.settings.items() if isinstance(value, bool)}

    def is_run_by(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether a configuration, as `SegmenterConfig.to_dict` gives it, runs this system."""
        chosen = settings["host"], settings["purification"]["method"], settings.get("refine", "none")
        if chosen != (self.host, self.purify, self.refine):
            return False
        parts = (name.split(".") for name in self.switches)
        on = [bool(settings.get(group, {}).get(entry)) for group, entry in parts]
        return on == list(self.switches.values())

    @property
    def mean(self) -> float | None:
        """Published mean over all benchmarks; None where one lacks."""
        return math.fsum(self.miou.values()) / len(self.miou) if len(self.miou) == len(ORDER) else None

    def configure(self, config: SegmenterConfig, benchmark: str | None) -> SegmenterConfig:
        """Return a configuration with the system's refiner and settings.

        Args:
            config: With its host and purification already.
            benchmark: Whose values are taken where there is one for each; the first's for None.
        """
        values = replace(config, refine=self.refine).to_dict()
        place = ORDER.index(benchmark) if benchmark in ORDER else 0
        for name, value in self.settings.items():
            group, _, entry = name.partition(".")
            if entry not in values.get(group, {}):
                raise ConfigError(f"{self.name} sets {name}, which is no setting")
            values[group][entry] = value[place] if isinstance(value, list) else value
        return SegmenterConfig.from_dict(values)


def list_systems() -> tuple[System, ...]:
    """Return every system, in the order of the tables."""
    return _read()[1]


def published_system(settings: Mapping[str, Any]) -> System | None:
    """Return the system that a configuration, as `SegmenterConfig.to_dict` gives it, runs; None for one of nobody's."""
    return next((system for system in list_systems() if system.is_run_by(settings)), None)


def published_miou(benchmark: str, config: SegmenterConfig) -> float | None:
    """Return the published mIoU of what a configuration runs, in percent; None if none was published."""
    system = published_system(config.to_dict())
    return system.miou.get(benchmark) if system and system.whole else None


@lru_cache(maxsize=1)
def _read() -> tuple[tuple[str, ...], tuple[System, ...]]:
    text = resources.files("ovss_core.evaluation.benchmarks").joinpath("systems.toml").read_text("utf-8")
    table = tomllib.loads(text)
    order = tuple(table["order"])
    return order, tuple(_system(entry, order) for entry in table["system"])


def _system(entry: dict[str, Any], order: tuple[str, ...]) -> System:
    figures = dict(zip(order, entry.pop("miou"), strict=True))
    needs = tuple(entry.pop("needs", ()))
    unknown = set(needs) - set(get_args(Need))
    if unknown:
        raise ConfigError(f"{entry['name']} needs {sorted(unknown)}; give some of {', '.join(NEEDS)}")
    known = {name: float(value) for name, value in figures.items() if not math.isnan(value)}
    return System(**entry, miou=known, needs=needs)


ORDER = _read()[0]
"""The benchmarks in the order of the papers' tables."""
