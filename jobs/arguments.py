"""The flags of the commands: which stand where in the help, and how their values become settings again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import Namespace

from jobs.flags import Flag, choice, flags_of
from jobs.parser import CommandParser
from ovss_core.clip.recommended import recommended_settings
from ovss_core.config import ModelConfig, PurificationMethod, SegmenterConfig
from ovss_core.errors import ConfigError, VocabularyError
from ovss_core.evaluation.benchmarks import BENCHMARKS, protocol_config
from ovss_core.head_names import host_names, refiner_names
from ovss_core.vocabulary import Vocabulary
from pipelines.run.events import say
from pipelines.run.options import PoolOptions, RunOptions

Settings = TypeVar("Settings")

START = "start here"
IMAGES = "which images are read"
RUN = "the run"
WORKERS = "cluster and workers"
QUALITY = "quality: dense head, purification, windows, labels"
RESEARCH = "switches for research"
_SECTIONS = {
    START: None,
    IMAGES: None,
    RUN: None,
    WORKERS: "What is not given follows from the cluster.",
    QUALITY: "How masks come about; --benchmark sets these as the papers' evaluations did.",
    RESEARCH: "Every part of SFP, FreeCP and the refiners on its own, in each published form.",
}
JOB_HOMES = {
    "max_bytes": IMAGES,
    "max_pixels": IMAGES,
    "overwrite": RUN,
    "retry_failed": RUN,
    "verbose": RUN,
    "address": WORKERS,
    "cluster_wait_s": WORKERS,
    "device": WORKERS,
    "num_gpus": WORKERS,
    "actors": WORKERS,
    "max_actors": WORKERS,
    "batch_size": WORKERS,
    "precision": WORKERS,
    "window_batch": WORKERS,
    "host": QUALITY,
    "proxy": QUALITY,
    "purify": QUALITY,
    "variant": QUALITY,
    "refine": QUALITY,
    "descriptions": QUALITY,
    "confidence": QUALITY,
    "min_confidence": QUALITY,
    "purification.redundancy": QUALITY,
    "purification.ambiguity": QUALITY,
    "purification.thresholds": QUALITY,
    "purification.redundancy_threshold": QUALITY,
    "purification.ambiguity_threshold": QUALITY,
}
"""Flags that stand elsewhere than the other flags of their dataclass; in a section those named here come first."""
_GROUPS = {"model": QUALITY, "proxy": QUALITY, "windows": QUALITY, "labels": QUALITY, "regions": QUALITY}
"""Sections of the segmenter's groups; a group that is not named here is for research."""
_NAMES = {
    "model.name": "model",
    "purification.method": "purify",
    "purification.variant": "variant",
    "proxy.name": "proxy",
    "proxy.pretrained": "proxy_pretrained",
    "proxy.scale": "proxy_scale",
    "labels.confidence": "confidence",
    "labels.min_confidence": "min_confidence",
}
"""Flags that do not have the name of their field."""


def lay_out(flags: Sequence[Flag], start: Sequence[str], homes: Mapping[str, str]) -> list[Flag]:
    """Put flags into their sections; those named in `start` open the page, in that order.

    A flag that is named nowhere stays where its dataclass put it, behind the others.
    """
    homes = {**homes, **dict.fromkeys(start, START)}
    order = list(dict.fromkeys([*start, *homes]))
    moved = [replace(flag, section=homes.get(flag.dest, flag.section)) for flag in flags]
    return sorted(moved, key=lambda flag: order.index(flag.dest) if flag.dest in order else len(order))


def make_parser(
    command: str,
    usage: str,
    description: str,
    flags: Sequence[Flag],
    start: Sequence[str] = (),
    homes: Mapping[str, str] | None = None,
) -> CommandParser:
    """Return the parser of ``ovss command``.

    Args:
        command: Its name.
        usage: Its first flags, as one would type them.
        description: What it does, and an example.
        flags: All its flags.
        start: Those that a newcomer needs, in the order of the help.
        homes: Sections of flags that stand elsewhere than the rest of their dataclass.
    """
    return CommandParser(f"ovss {command}", usage, description, lay_out(flags, start, homes or {}), _SECTIONS)


def run_flags(skip: Sequence[str] = ()) -> list[Flag]:
    """Return the flags of how a job runs: `RunOptions` and `PoolOptions`."""
    flags = [*flags_of(RunOptions, RUN, skip=skip), *flags_of(PoolOptions, WORKERS)]
    return [replace(flag, short="-v") if flag.dest == "verbose" else flag for flag in flags]


def segmenter_flags() -> list[Flag]:
    """Return the flags of everything that decides a mask."""
    hints = {"host": choice(host_names()), "refine": choice(refiner_names())}
    flags = flags_of(SegmenterConfig, QUALITY, skip=_nested(), hints=hints)
    for group, kind in _nested().items():
        names = {entry.name: _dest(group, entry.name) for entry in fields(kind)}
        flags += flags_of(kind, _GROUPS.get(group, RESEARCH), names=names)
    return [replace(flag, joined=flag.dest == "host") for flag in flags]


def benchmark_flag(meaning: str, section: str) -> Flag:
    """Return ``--benchmark``, with the benchmarks to choose from."""
    return Flag("benchmark", choice(list(BENCHMARKS)) | None, meaning, section)


def labels_flag(made_by: str = "ovss label") -> Flag:
    """Return ``--labels``: an output to go on from."""
    return Flag(
        "labels", str, f"Folder of labels: the --output of {made_by}.", START, required=True, value="FOLDER"
    )


def vocabulary_flag(meaning: str = "") -> Flag:
    """Return ``--vocabulary``: words, a file, a shipped name, or in a settings file a list."""
    told = (
        "What to look for: words by commas (cat,dog,sky), a file with a class a line, or a shipped vocabulary, of "
        f"{', '.join(dict.fromkeys(name.partition('.')[0] for name in Vocabulary.shipped_names()))}."
    )
    return Flag("vocabulary", str | list[str | dict[str, Any]] | None, f"{told}{meaning}", START)


def descriptions_flag() -> Flag:
    """Return ``--descriptions``."""
    told = (
        "JSON file of sentences by class, to settle regions that several words claim; none takes the phrases. Shipped "
        "vocabularies have sentences, which count unless one of these is given."
    )
    return Flag("descriptions", str | None, told, QUALITY)


def take_fields(values: Namespace, kind: type[Settings]) -> Settings:
    """Build a dataclass from the flags that `flags_of` gave without a prefix; skipped ones keep their default."""
    return kind(**{entry.name: values[entry.name] for entry in fields(kind) if entry.name in values})  # type: ignore[arg-type]


def take_segmenter(values: Namespace) -> SegmenterConfig:
    """Build the segmenter's configuration from the flags of `segmenter_flags`."""
    plain = [entry.name for entry in fields(SegmenterConfig) if entry.name not in _nested()]
    parts = {
        group: kind(**{entry.name: values[_dest(group, entry.name)] for entry in fields(kind)})
        for group, kind in _nested().items()
    }
    return SegmenterConfig(**parts, **{name: values[name] for name in plain})


def segmenter_defaults(config: SegmenterConfig) -> dict[str, Any]:
    """Return a configuration as defaults for the flags of `segmenter_flags`, the model's left out."""
    values = config.to_dict()
    values.pop("model")
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        if name in _nested():
            defaults |= {_dest(name, field): entry for field, entry in value.items()}
        else:
            defaults[name] = value
    return defaults


def parse_with_protocol(
    parser: CommandParser, arguments: Sequence[str] | None, of_images: Vocabulary | None = None
) -> tuple[Namespace, Vocabulary]:
    """Parse flags; what the model's card recommends, and with ``--benchmark`` its constants, take the defaults' place.

    Args:
        of_images: What is returned for the vocabulary where none is given, but each image brings its own words.

    Raises:
        ConfigError: Neither a vocabulary nor a benchmark was given, or flags that cannot be understood.
    """
    given = parser.given(arguments)
    advice = _advice(parser, given)
    parser.set_defaults(advice)
    benchmark, host, purify = (
        given.get(name, parser.get_default(name)) for name in ("benchmark", "host", "purify")
    )
    offered = None
    named = [name.strip() for name in host.split(",")] if isinstance(host, str) else [None]
    # anything else is refused below
    if (
        benchmark in list(BENCHMARKS)
        and {*named} <= {*host_names()}
        and purify in get_args(PurificationMethod)
    ):
        config, offered = protocol_config(benchmark, host, purify)
        parser.set_defaults(segmenter_defaults(config))
    values = parser.parse_args(arguments)
    taken = [
        f"--{name} {values[name]}" for name in advice if name not in given and values[name] == advice[name]
    ]
    values.recommended = f"{values.model} recommends {', '.join(taken)}, which is taken" if taken else None
    if values.vocabulary:
        return values, load_vocabulary(values.vocabulary)
    if offered is None and of_images is not None and (values.words_column or values.caption_words):
        return values, of_images
    if offered is None:
        raise ConfigError(
            "give --vocabulary (words by commas such as cat,dog, a file, or a shipped name such as voc21), or --benchmark"
        )
    return values, offered


def _advice(parser: CommandParser, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chosen model's card recommends, by flag."""
    name, weights = (given.get(flag, parser.get_default(flag)) for flag in ("model", "pretrained"))
    if not isinstance(name, str) or not isinstance(weights, str):
        return {}  # refused when the flags are parsed
    advice: dict[str, Any] = {}
    for group, value in recommended_settings(ModelConfig(name, weights)).items():
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        advice |= {group if field is None else _dest(group, field): entry for field, entry in entries}
    return advice


def say_recommended(values: Namespace) -> None:
    """Say which settings come from the model's card; after the checks, for a refusal is one line."""
    if values.recommended:
        say(values.recommended)


def load_vocabulary(given: str | Sequence[str | Mapping[str, Any]]) -> Vocabulary:
    """Load a vocabulary from what ``--vocabulary`` or a settings file gives.

    Raises:
        VocabularyError: It is none.
    """
    if isinstance(given, str):
        return Vocabulary.load(given)
    return Vocabulary.from_names([_as_line(entry) for entry in given])


def _as_line(entry: str | Mapping[str, Any]) -> str:
    """Return a class as a vocabulary's line; YAML reads ``- person: man, woman`` as a mapping."""
    if isinstance(entry, str):
        return entry
    lines = [
        f"{name}: {', '.join(map(str, words)) if isinstance(words, list) else words or ''}"
        for name, words in entry.items()
    ]
    if len(lines) != 1:
        raise VocabularyError(
            f"a class of the vocabulary is {dict(entry)}; give each class an entry of its own"
        )
    return lines[0]


def _nested() -> dict[str, Any]:
    """Return the segmenter's groups of settings, by name."""
    hints = get_type_hints(SegmenterConfig)
    return {
        entry.name: hints[entry.name] for entry in fields(SegmenterConfig) if is_dataclass(hints[entry.name])
    }


def _dest(group: str, name: str) -> str:
    """Return the name of the flag of a field in one of the segmenter's groups."""
    full = f"{group}.{name}"
    return _NAMES.get(full, name if group == "model" else full)
