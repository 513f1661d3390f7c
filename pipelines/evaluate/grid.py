"""The settings that one grid run measures: hosts x purification x thresholds and ablations, systems, or the papers' tables."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ovss_core.check import validate
from ovss_core.config import (
    REFINER_SETTINGS,
    PurificationConfig,
    PurificationVariant,
    SegmenterConfig,
    SfpConfig,
)
from ovss_core.dense_heads import HEADS
from ovss_core.errors import OvssError
from ovss_core.evaluation.benchmarks import System, list_systems, protocol_config, published_miou
from ovss_core.evaluation.benchmarks.protocols import Purify
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions, shipped_descriptions
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.options import GridName

SYSTEMS = "Systems of the papers' tables"
SFP_TABLE, FREECP_TABLE = "SFP: hosts (paper, Table 1)", "FreeCP: hosts with FreeCP (paper, main table)"
SFP_TOWERS = "SFP: another tower (paper, Table 4)"
MAIN, SFP_PARTS, SFP_LAYERS, FREECP_PARTS, FREECP_FORMS, FREECP_TEXTS = (
    "Hosts, purification and thresholds",
    "SFP: parts one by one (paper, Table 2)",
    "SFP: first block of the layer sum (paper, Table 3)",
    "FreeCP: parts one by one",
    "FreeCP: form and thresholds",
    "FreeCP: what stands for a class in ambiguous regions",
)
_LAYER_STARTS = (1, 3, 5, 7, 9, 11)
_PART_NAMES = ("ClearCLIP", "+ SOM", "+ SAE", "+ HAI")
_PART_ENDS = {0: "clearclip", len(_PART_NAMES) - 1: "sfp"}
"""Rows of the parts one by one that are a system of the main table, by which their published figures are known."""
_NOT_IN_PAPERS = (
    "FreeCP's own runs of SCLIP, ClearCLIP and GEM without purification: their published figures were not at hand, so these hosts "
    "stand beside SFP's figures alone",
    "FreeCP with its authors' sentences for each class: those that ship with ovss stand in for them; give others as --descriptions",
)
_NOT_IN_ABLATIONS = (
    f"published figures of {SFP_PARTS}: not at hand for + SOM and + SAE; the ends are those of Table 1",
    f"published figures of {SFP_LAYERS}: not at hand",
    f"published figures of {FREECP_PARTS}: not at hand for neither and RP; RP + AP is that of the main table",
    f"published figures of {FREECP_FORMS}, and of {FREECP_TEXTS}: not at hand",
    "FreeCP with only the present classes offered (published: 72.0, and 59.4 with all; of which host and data set was not at hand): "
    "labels every image twice; ovss evaluate --grid has it as the oracle",
)
_NOT_IN_TOWERS = (f"published figures of {SFP_TOWERS}: not at hand",)


@dataclass(frozen=True)
class GridRow:
    """One row of the table.

    Attributes:
        table: Heading it stands under.
        name: What the row is called; unique under its heading.
        config: The settings that make it.
        published: Published mIoU in percent.
        descriptions: What stands for a class in ambiguous regions.
    """

    table: str
    name: str
    config: SegmenterConfig
    vocabulary: Vocabulary
    published: float | None = None
    descriptions: DescriptionChoice = "shipped"

    @property
    def sentences(self) -> Mapping[str, Sequence[str]] | None:
        """The sentences that this row reads, by class name."""
        return choose_descriptions(self.descriptions, self.vocabulary, self.config)

    @property
    def key(self) -> str:
        """Unique in the grid."""
        return f"{self.table} | {self.name}"


@dataclass(frozen=True)
class GridBase:
    """What all rows start from.

    Attributes:
        config: Model and memory for every row; for folders everything else too.
        benchmark: Whose protocols apply, or None for folders.
        vocabulary: Takes the place of the protocols' vocabularies; required for folders.
        descriptions: Sentences for every row but those that compare texts.
    """

    config: SegmenterConfig
    benchmark: str | None = None
    vocabulary: Vocabulary | None = None
    descriptions: DescriptionChoice = "shipped"

    def settings(self, host: str, purify: Purify) -> tuple[SegmenterConfig, Vocabulary]:
        """Return the settings of one host with ("freecp") or without ("none") class purification."""
        if self.benchmark is None:
            assert self.vocabulary is not None, "folders come with a vocabulary"
            purification = replace(self.config.purification, method=purify)
            config = replace(self.config, host=host, purification=purification)
            return _residual_where_it_can(config), self.vocabulary
        config, vocabulary = protocol_config(self.benchmark, host, purify)
        config = replace(
            config,
            model=self.config.model,
            proxy=self.config.proxy,
            refine=self.config.refine,
            **{name: getattr(self.config, name) for name in REFINER_SETTINGS},
            window_batch=self.config.window_batch,
            max_pixels=self.config.max_pixels,
        )
        return config, self.vocabulary or vocabulary


def grid_rows(base: GridBase) -> list[GridRow]:
    """List every row of the grid."""
    forms = _freecp_forms(
        base, get_args(PurificationVariant), {"fixed": "tuned", "distractors": "distractors"}
    )
    rows = [*_main_rows(base), *_sfp_rows(base), *_freecp_parts(base), *forms]
    return [*(replace(row, descriptions=base.descriptions) for row in rows), *_text_rows(base)]


def list_grid(base: GridBase, grid: GridName | Literal[True]) -> tuple[list[GridRow], list[str]]:
    """List the rows of a grid by its name, and say of what it leaves out why."""
    return (grid_rows(base), []) if grid is True else _GRIDS[grid](base)


def system_rows(base: GridBase) -> tuple[list[GridRow], list[str]]:
    """List the systems of the papers' tables that this version can run, and say of each other why it cannot.

    Each takes its paper's settings where ovss knows them, and the protocol of its purification on the benchmark.
    """
    return _rows_of(base, SYSTEMS, list_systems())


def paper_rows(base: GridBase) -> tuple[list[GridRow], list[str]]:
    """List the rows of SFP's Table 1 and of FreeCP's main table, and say what of them is left out."""
    rows, left_out = [], []
    for table, heading in (("sfp", SFP_TABLE), ("freecp", FREECP_TABLE)):
        found, missing = _rows_of(base, heading, [entry for entry in list_systems() if entry.table == table])
        rows += found
        left_out += missing
    return rows, [*left_out, *_NOT_IN_PAPERS]


def ablation_rows(base: GridBase) -> tuple[list[GridRow], list[str]]:
    """List SFP's Tables 2 and 3 and FreeCP's ablations on the base's host, and say what of them is left out."""
    forms = _freecp_forms(base, ("released", "paper"), {"fixed": "tuned"})
    rows = [*_sfp_rows(base), *_freecp_parts(base), *forms]
    described = [replace(row, descriptions=base.descriptions) for row in rows]
    return _those_that_run([*described, *_text_rows(base)], _NOT_IN_ABLATIONS)


def tower_rows(base: GridBase) -> tuple[list[GridRow], list[str]]:
    """List what is measured of SFP's Table 4 with the base's tower: SFP, and ClearCLIP on which it builds."""
    rows = []
    for name, host in (("ClearCLIP", "clearclip"), ("SFP", "sfp")):
        config, vocabulary = base.settings(host, "none")
        called = f"{name}, {base.config.model.name}"
        rows.append(GridRow(SFP_TOWERS, called, config, vocabulary, descriptions=base.descriptions))
    return _those_that_run(rows, _NOT_IN_TOWERS)


_GRIDS: Mapping[str, Callable[[GridBase], tuple[list[GridRow], list[str]]]] = {
    "systems": system_rows,
    "papers": paper_rows,
    "ablations": ablation_rows,
    "towers": tower_rows,
}


def _those_that_run(rows: Iterable[GridRow], besides: Sequence[str]) -> tuple[list[GridRow], list[str]]:
    good, left_out = [], []
    for row in rows:
        try:
            validate(row.config, row.vocabulary)
        except OvssError as error:
            left_out.append(f"{row.key}: {error}")
        else:
            good.append(row)
    return good, [*left_out, *besides]


def _rows_of(base: GridBase, heading: str, systems: Iterable[System]) -> tuple[list[GridRow], list[str]]:
    rows, left_out = [], []
    for system in systems:
        if not system.is_in:
            figures = " ".join(f"{figure:g}" for figure in system.miou.values()) if system.table else ""
            known = f" (published: {figures}; {', '.join(system.miou)})" if figures else ""
            left_out.append(f"{system.name}: {system.reason}{known}")
            continue
        assert system.host is not None
        config, vocabulary = base.settings(system.host, system.purify)
        config = system.configure(config, base.benchmark)
        try:
            validate(config, vocabulary)
        except OvssError as error:  # a second tower or regions that were not given
            left_out.append(f"{system.name}: {error}")
            continue
        published = system.miou.get(base.benchmark) if base.benchmark else None
        rows.append(GridRow(heading, system.name, config, vocabulary, published, base.descriptions))
    return rows, left_out


def _hosts(base: GridBase) -> Iterator[str]:
    """Yield the hosts that this model can be read by: those that want what was not given are left out."""
    for host in HEADS:
        try:
            validate(replace(base.config, host=host))
        except OvssError:  # no second tower, or channels of a tower that nobody has measured
            continue
        yield host


def _main_rows(base: GridBase) -> Iterator[GridRow]:
    for host in _hosts(base):
        config, vocabulary = base.settings(host, "none")
        yield GridRow(MAIN, host, config, vocabulary, _published(base, config))
        config, vocabulary = base.settings(host, "freecp")
        tuned = _purify(config, thresholds="fixed")
        yield GridRow(MAIN, f"{host} + FreeCP, tuned", tuned, vocabulary, _published(base, tuned))
        compared = _purify(config, thresholds="distractors", variant="image")
        yield GridRow(MAIN, f"{host} + FreeCP, distractors", compared, vocabulary)


def _sfp_rows(base: GridBase) -> Iterator[GridRow]:
    config, vocabulary = base.settings("sfp", "none")
    for count, name in enumerate(_PART_NAMES):
        sfp = SfpConfig("paper", count > 0, count > 1, count > 2)
        published = _published(base, replace(config, host=_PART_ENDS[count])) if count in _PART_ENDS else None
        yield GridRow(SFP_PARTS, name, replace(config, sfp=sfp), vocabulary, published)
    for start in _LAYER_STARTS:
        sfp = SfpConfig(variant="paper", integration_start=start)
        yield GridRow(SFP_LAYERS, f"from block {start}", replace(config, sfp=sfp), vocabulary)


def _freecp_parts(base: GridBase) -> Iterator[GridRow]:
    host = base.config.host
    config, vocabulary = base.settings(host, "freecp")
    for name, redundancy, ambiguity in (
        (f"{host}, neither", False, False),
        (f"{host}, RP", True, False),
        (f"{host}, RP + AP", True, True),
    ):
        fixed = _purify(config, thresholds="fixed", redundancy=redundancy, ambiguity=ambiguity)
        published = _published(base, fixed) if redundancy and ambiguity else None
        yield GridRow(FREECP_PARTS, name, fixed, vocabulary, published)


def _freecp_forms(
    base: GridBase, variants: Iterable[str], thresholds: Mapping[str, str]
) -> Iterator[GridRow]:
    """Compare FreeCP's forms under several rules for its thresholds, which are called as the mapping says."""
    host = base.config.host
    config, vocabulary = base.settings(host, "freecp")
    for variant in variants:
        for rule, called in thresholds.items():
            form = _residual_where_it_can(_purify(config, variant=variant, thresholds=rule))
            yield GridRow(FREECP_FORMS, f"{host}, {variant}, {called}", form, vocabulary)


def _text_rows(base: GridBase) -> Iterator[GridRow]:
    """Compare what stands for a class when a region is shown to the encoder (FreeCP's ablation of its texts)."""
    host = base.config.host
    config, vocabulary = base.settings(host, "freecp")
    fixed = _purify(config, thresholds="fixed", ambiguity=True)
    texts: dict[str, DescriptionChoice] = {
        "phrases in templates": None,
        "names": {entry.name: entry.phrases for entry in vocabulary.classes if entry.phrases},
    }
    if shipped_descriptions(vocabulary):
        texts["shipped descriptions"] = "shipped"
    if isinstance(base.descriptions, Mapping):
        texts["own descriptions"] = base.descriptions
    for name, descriptions in texts.items():
        yield GridRow(FREECP_TEXTS, f"{host}, {name}", fixed, vocabulary, descriptions=descriptions)


def _purify(config: SegmenterConfig, **changes: Any) -> SegmenterConfig:
    purification: PurificationConfig = replace(config.purification, **changes)
    return replace(config, purification=purification)


def _residual_where_it_can(config: SegmenterConfig) -> SegmenterConfig:
    """Let the background that is what purified maps leave compete as a class where labels come from own scores."""
    if config.labels.background != "residual" or not config.purification.own_scores:
        return config
    return replace(config, labels=replace(config.labels, background="auto"))


def _published(base: GridBase, config: SegmenterConfig) -> float | None:
    return published_miou(base.benchmark, config) if base.benchmark else None
