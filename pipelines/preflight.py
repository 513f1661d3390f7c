"""What every run is asked before it starts: settings, places, options that contradict each other, the weights' file.

What a job checks besides is in its own package (`pipelines.label.checks`, `pipelines.evaluate.checks`). The checks of a
job are called twice. The command line calls them before it imports torch and Ray, so that a mistyped name has its answer at
once; the job itself calls them for those who call it from Python.
"""

import json
import logging
import math
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ovss_core.clip.architectures import find_architecture
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.errors import ConfigError, StorageError
from ovss_core.vocabulary import Descriptions, Vocabulary
from pipelines.run.handed_weights import address_of, with_own_weights
from pipelines.run.options import FETCH_SHARE, PoolOptions, RunOptions
from pipelines.run.progress import announced
from pipelines.sources.listing import matches
from pipelines.storage import Folder, redact
from pipelines.transport.addresses import local_path

_DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia")
NO_DESCRIPTIONS = "none"
_WILD = re.compile(r"[*?\[{]")
_WRITTEN = (
    ("run.json",),
    ("labels", "labels-00000.parquet"),
    ("_failures", "part-00000.pq"),
    ("_previews", "00000-mask.png"),
)
"""Files of kinds that a run writes and that a pattern of images or tables may take for input."""
_log = logging.getLogger(__name__)


def check_run(run: RunOptions, pools: PoolOptions, fetch_timeout_s: float) -> list[str]:
    """Refuse what no job can run with; a job's own checks (such as `pipelines.label.checks`) call it.

    Returns:
        Warnings for `say_once`.

    Raises:
        ConfigError: Seconds that are none, an unknown device, or options that contradict each other.
    """
    _require_run(run)
    _require_devices(pools)
    return _shortened_wait(fetch_timeout_s, run)


def fetch_weights(segmenter: SegmenterConfig) -> SegmenterConfig:
    """Fetch CLIP's weights where they are given by an address, once for all workers (`pipelines.run.handed_weights`).

    Raises:
        WeightsError: They cannot be had.
    """
    if "://" not in segmenter.model.pretrained:
        return replace(segmenter, model=with_own_weights(segmenter.model))
    with announced(f"fetching {redact(address_of(segmenter.model))}") as tell:
        return replace(segmenter, model=with_own_weights(segmenter.model, tell))


def require_region_maps(folder: str | None, segmenter: SegmenterConfig) -> None:
    """Refuse region maps that nothing uses, and uses of region maps that are not given.

    Raises:
        ConfigError: Naming the flags.
        StorageError: There is no such folder.
    """
    if folder and not segmenter.regions.used:
        raise ConfigError(
            "--region-maps is given, but nothing uses it; say what for: --regions.vote true (each region takes one class) "
            "or --regions.scope true (patches see inside their region)"
        )
    if segmenter.regions.used and not folder:
        raise ConfigError(
            "regions.vote and regions.scope need regions; give --region-maps FOLDER (index PNGs named as the images)"
        )
    if folder and not Folder(folder).exists():
        raise StorageError(f"no such folder: {redact(folder)}; check --region-maps")


def check_model(
    model: ModelConfig, vocabularies: Iterable[Vocabulary], *descriptions: Descriptions | None
) -> list[str]:
    """Read a file of weights to its end, and see which texts are longer than the text tower reads.

    Raises:
        ModelError, WeightsError: As `load_clip`.
    """
    # imported here: the checks above must not wait for torch
    from ovss_core.clip.text import cut_texts
    from ovss_core.clip.weights import check_weight_file, load_tokenizer

    check_weight_file(model)
    architecture = find_architecture(model.name)
    if architecture is None:  # only the hub knows what its text tower reads
        return []
    phrases = dict.fromkeys(phrase for vocabulary in vocabularies for phrase in vocabulary.phrases)
    sentences = [text for given in descriptions if given for entry in given.values() for text in entry]
    return cut_texts(
        lambda: load_tokenizer(model),
        architecture.context_length,
        list(phrases),
        {"": list(dict.fromkeys(sentences))},
    )


def check_proxy(segmenter: SegmenterConfig) -> None:
    """Read a file of the second tower's weights to its end, where the host needs one.

    Raises:
        ConfigError, WeightsError: As `load_proxy`.
    """
    if segmenter.needs_proxy:
        # imported here: the other checks must not wait for torch
        from ovss_core.proxies.loading import check_proxy_file

        check_proxy_file(segmenter.proxy)


def say_once(warnings: Iterable[str]) -> None:
    """Log each warning."""
    for warning in dict.fromkeys(warnings):
        _log.warning("%s", warning)


def read_descriptions(path: str | None) -> dict[str, list[str]] | Literal["shipped"] | None:
    """Read a JSON file of sentences by class name; no file takes those that ship, and "none" takes none.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    if path is None:
        return "shipped"
    if path == NO_DESCRIPTIONS:
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # halves of characters (surrogates) are no text
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the descriptions {path}: {error}; give a JSON object") from error
    if not isinstance(values, dict) or not all(
        isinstance(entry, list) and all(isinstance(sentence, str) for sentence in entry)
        for entry in values.values()
    ):
        raise ConfigError(f'{path} must map class names to lists of sentences, as {{"cat": ["a furry pet"]}}')
    return values


def require_apart(inputs: Mapping[str, str | None], output: str) -> None:
    """Refuse an output that lies where the input is read from, or the other way round.

    A second start would take its own previews and tables for input, and ``--overwrite`` might remove what was given.

    Args:
        inputs: Folders, files and patterns by the flag that gave them.

    Raises:
        ConfigError: Naming the flag.
    """
    target = _place(output)
    for flag, given in inputs.items():
        if not given:
            continue
        root, pattern = _split_pattern(given)
        place = _place(root)
        if _is_below(target, place) and _would_list(target[len(place) :], pattern):
            raise ConfigError(
                f"--output {redact(output)} lies inside {flag} {redact(given)}, where the next start would take its own "
                "files for input; give an output beside the input"
            )
        if _is_below(place, target) and place != target:
            raise ConfigError(
                f"{flag} {redact(given)} lies inside --output {redact(output)}; give an output folder of its own"
            )


def _require_run(run: RunOptions) -> None:
    require_place(run.output)
    for name, least in (("cluster_wait_s", 0.0), ("no_progress_s", 1.0), ("progress_s", 0.1)):
        value = getattr(run, name)
        if math.isnan(value) or value < least:
            raise ConfigError(f"{name} is {value}; give at least {least:g} seconds")


def _shortened_wait(fetch_timeout_s: float, run: RunOptions) -> list[str]:
    most = run.no_progress_s / FETCH_SHARE
    if fetch_timeout_s <= most:
        return []
    return [
        f"an image may take {most:g} s to arrive and not {fetch_timeout_s:g} (fetch_timeout_s), since the run gives up "
        f"after {run.no_progress_s:g} s without progress; raise no_progress_s as well"
    ]


def require_place(output: str, flag: str = "--output") -> None:
    """Refuse an output that cannot become a folder; what only writing can tell, the run's first file does.

    Raises:
        StorageError: A file or a lack of permission stands in the way, or the store cannot be reached.
    """
    place = local_path(output)
    if place is None:
        Folder(output).exists()  # asks for a while, as the run would
        return
    above = os.path.abspath(place)  # noqa: PTH100 (it may be no text)
    while not os.path.lexists(above):
        above = os.path.dirname(above)  # noqa: PTH120
    shown = redact(above)
    if not os.path.isdir(above):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
        raise StorageError(f"cannot write under {redact(output)}: {shown} is a file; give a folder as {flag}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(
            f"cannot write under {redact(output)}: no permission to write into {shown}; give another {flag}"
        )


def _require_devices(pools: PoolOptions) -> None:
    kind, _, number = pools.device.partition(":")
    if kind not in _DEVICES or (number and not number.isdigit()):
        raise ConfigError(f"unknown device {pools.device!r}; give auto, cpu, or cuda")
    if kind == "cpu" and (pools.num_gpus or pools.finish_gpus):
        raise ConfigError("device is cpu, but num_gpus or finish_gpus asks for GPUs; give one of them")
    if kind not in ("auto", "cpu") and pools.num_gpus == 0:
        raise ConfigError(
            f"device is {pools.device}, but num_gpus is 0, which computes on CPUs; give one of them"
        )


def _split_pattern(uri: str) -> tuple[str, list[str]]:
    """Split a glob into its folder and its pieces from the first wild one on; a folder or file has no pieces."""
    if "://" not in uri and os.path.lexists(uri):
        return uri, []
    address = uri.partition("?")[0] if "://" in uri else uri
    pieces = address.split("/")
    wild = next((index for index, piece in enumerate(pieces) if _WILD.search(piece)), None)
    if wild is None:
        return uri, []
    return "/".join(pieces[:wild]) or ("/" if uri.startswith("/") else "."), pieces[wild:]


def _would_list(below: tuple[str, ...], pattern: list[str]) -> bool:
    """Say whether listing the input reaches what a run writes into a folder so far below its root."""
    return not pattern or any(matches([*below, *written], pattern) for written in _WRITTEN)


def _place(uri: str) -> tuple[str, ...]:
    """Return where an address points to as comparable pieces: the store, then folder by folder, links resolved."""
    parts = urlsplit(uri) if "://" in uri else None
    if parts is None or parts.scheme == "file":
        return Path(os.path.realpath(parts.path if parts else uri)).parts
    path = posixpath.normpath(f"/{parts.path}")
    store = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return (store, *(piece for piece in path.split("/") if piece))


def _is_below(place: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return place[: len(other)] == other
