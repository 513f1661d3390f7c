"""Which labels to train on: pixels that are sure enough, and images by words, confidence and chance.

Everything is decided by what the rows say, so that nothing is labelled anew and the same choice comes out every time.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import ConfigError
from pipelines.derive.options import SelectOptions
from pipelines.derive.units import Outcome, Row, Unit, plan_units, stable_share
from pipelines.label.card import write_card
from pipelines.label.masks import decode_mask, encode_mask
from pipelines.label.reader import LabelFiles
from pipelines.label.table import CLASSES, COMMON, IGNORE, VOCABULARY
from pipelines.run.fragments import ROW_GROUP, column_compression
from pipelines.run.publish import published_name
from pipelines.run.record import read_identity
from pipelines.run.schema import LABELS
from pipelines.run.state_files import DamagedFileError, read_json, write_json
from pipelines.storage import Folder

_CHOICE = "_choice.json"
_LEVELS = 256
_NAMED = 20
_THREADS = 4


@dataclass(frozen=True)
class Selection:
    """The job of ``ovss select``.

    Attributes:
        options: What is wanted.
        floors: For each class the least margin, in 255 steps, that a pixel must have to keep its label.
        chosen: Ids' numbers (`stable_share`) that were drawn, ascending; None where nobody is drawn.
    """

    options: SelectOptions
    floors: tuple[int, ...] = ()
    chosen: np.ndarray | None = None
    groups: int | None = None
    columns: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("labels", "README.md", _CHOICE)

    def identity(self) -> dict[str, Any]:
        """Return what decides the selection."""
        return {"job": "select", "selection": asdict(self.options)}

    def prepare(self, labels: LabelFiles, output: Folder) -> "Selection":
        """Find the classes' floors, which are stored for later starts, and draw images where that is asked for."""
        columns = tuple(labels.schema.names)
        write_card(output, _schema(labels), labels.vocabulary)
        try:
            known = read_json(output, _CHOICE, {"floors": list})
            floors = tuple(int(floor) for floor in known["floors"])
        except DamagedFileError:
            floors = self._floors(labels)
            write_json(output, _CHOICE, {"floors": list(floors)})
        return replace(self, floors=floors, columns=columns, chosen=self._draw(labels))

    def work(self, labels: LabelFiles, unit: Unit, rows: Iterator[Row], output: Folder) -> Outcome:
        """Write a file of labels with the rows of one that are wanted, unsure pixels taken out."""
        outcome, schema = Outcome(), _schema(labels)
        classes: Counter[str] = Counter()
        sink, kept = pa.BufferOutputStream(), list[Row]()
        with pq.ParquetWriter(
            sink, schema, compression=column_compression(schema), write_page_checksum=True
        ) as writer:

            def flush() -> None:
                if kept:
                    writer.write_table(pa.Table.from_pylist(kept, schema=schema), row_group_size=ROW_GROUP)
                    outcome.written += len(kept)
                    kept.clear()

            for _, chosen in outcome.each(rows, lambda row: self._chosen(row, labels.ignore_index)):
                if chosen is None:
                    outcome.left_out += 1
                    continue
                kept.append(chosen)
                classes.update(chosen["words"])
                if len(kept) == ROW_GROUP:
                    flush()
            flush()
        name = published_name("labels", unit.number)
        if outcome.written:
            outcome.store(output, name, sink.getvalue().to_pybytes())
        else:
            output.remove(name)
        outcome.statistics = {"images_by_class": dict(classes)}
        return outcome

    def finish(self, labels: LabelFiles, output: Folder, markers: Sequence[Mapping[str, Any]]) -> None:
        """Nothing is left to be written."""

    def _chosen(self, row: Row, ignore: int) -> Row | None:
        """Return a row as it goes into the selection; None where it does not."""
        if not self._is_wanted(row):
            return None
        if self.chosen is not None:
            number = stable_share(row["image_id"], self.options.seed)
            place = int(np.searchsorted(self.chosen, number))
            if place == len(self.chosen) or self.chosen[place] != number:
                return None
        return take_out(row, self.floors, ignore) if any(self.floors) else row

    def _is_wanted(self, row: Row) -> bool:
        wanted, words = self.options, set(row["words"])
        shares = {entry["name"]: entry["share"] for entry in row["present"]}
        if (
            wanted.words
            and max((shares.get(word, 0.0) for word in wanted.words), default=0.0) < wanted.min_share
        ):
            return False
        return (
            (not wanted.words or bool(words & set(wanted.words)))
            and not words & set(wanted.without)
            and wanted.min_words <= len(words) <= (wanted.max_words or len(words))
            and all(
                least is None or (row[name] is not None and row[name] >= least)
                for name, least in (
                    ("score", wanted.min_score),
                    ("margin", wanted.min_margin),
                    ("sure", wanted.min_sure),
                )
            )
            and (wanted.max_ignored is None or (row["ignored"] or 0.0) <= wanted.max_ignored)
            and (
                wanted.max_disagreement is None
                or (row["disagreement"] is not None and row["disagreement"] <= wanted.max_disagreement)
            )
        )

    def check(self, labels: LabelFiles) -> None:
        """Refuse what the labels cannot give.

        Raises:
            ConfigError: They lack what the selection needs.
        """
        wanted, place = self.options, labels.folder.public_uri
        if (
            wanted.min_confidence or wanted.best_share is not None
        ) and "confidence" not in labels.schema.names:
            raise ConfigError(
                f"{place} has no confidence for each pixel; label with --confidence pixel, or leave out --min-confidence "
                "and --best-share"
            )
        unknown = sorted({*wanted.words, *wanted.without} - set(labels.class_names))
        if unknown:
            near = get_close_matches(unknown[0], labels.class_names, 1)
            raise ConfigError(
                f"no class {unknown[0]!r} in {place}; "
                + (f"did you mean {near[0]}?" if near else _listed(labels.class_names))
            )
        for name, least in (
            ("score", wanted.min_score),
            ("margin", wanted.min_margin),
            ("sure", wanted.min_sure),
        ):
            if least is not None and name not in labels.schema.names:
                raise ConfigError(
                    f"{place} has no column {name!r}, for it is {labels.version}; leave out --min-{name}"
                )
        if wanted.max_disagreement is not None and not _may_disagree(labels):
            raise ConfigError(
                f"{place} was labelled by one host, so that nothing disagrees; label with several, such as --host "
                "sfp,naclip, or leave out --max-disagreement"
            )

    def _floors(self, labels: LabelFiles) -> tuple[int, ...]:
        least = int(np.ceil(255 * self.options.min_confidence - 1e-9))
        if self.options.best_share is None:
            return (least,) * len(labels.class_names)
        counts = np.zeros((len(labels.class_names), _LEVELS), np.int64)
        for found in _over_units(labels, _histogram, ("mask", "confidence", "words", "present", "ignored")):
            counts += found
        return tuple(max(least, floor) for floor in best_floors(counts, self.options.best_share))

    def _draw(self, labels: LabelFiles) -> np.ndarray | None:
        """Choose images by chance: a fixed one that follows from their ids."""
        wanted = self.options
        if wanted.count is None and wanted.per_class is None:
            return None
        columns = ("image_id", "words", "present", "score", "margin", "sure", "ignored", "disagreement")
        names, numbers = list[list[str]](), list[float]()
        for group in _over_units(labels, _as_they_are, columns):
            for row in group:
                if self._is_wanted(row):
                    names.append(row["words"])
                    numbers.append(stable_share(row["image_id"], wanted.seed))
        order = np.argsort(numbers, kind="stable")
        if wanted.per_class is not None:
            order = np.array(balanced(names, order.tolist(), wanted.per_class), np.int64)
        return np.sort(np.array(numbers)[order[: wanted.count]])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"its classes are {', '.join(names[:_NAMED])}{more}"


def take_out(row: Row, floors: Sequence[int], ignore: int) -> Row:
    """Take the label from pixels whose margin is below their class's floor, and count the classes anew.

    Args:
        row: With `mask` and `confidence`.
        floors: In 255 steps, by class.
        ignore: Value of pixels without a label.
    """
    mask, margins = decode_mask(row["mask"]), decode_mask(row["confidence"])
    table = np.full(max(ignore, len(floors)) + 1, 0, np.int64)
    table[: len(floors)] = floors
    mask = np.where(margins < table[mask], ignore, mask).astype(mask.dtype)
    counts = np.bincount(mask.ravel(), minlength=ignore + 1)
    present = [
        entry | {"pixels": int(counts[entry["index"]]), "share": float(counts[entry["index"]] / mask.size)}
        for entry in row["present"]
        if counts[entry["index"]]
    ]
    present.sort(key=lambda entry: -entry["pixels"])
    return row | {
        "mask": encode_mask(mask),
        "present": present,
        "words": [entry["name"] for entry in present],
        "ignored": float(counts[ignore] / mask.size),
    }


def best_floors(counts: np.ndarray, share: float) -> list[int]:
    """Return for each class the largest margin at which at least a share of its pixels keep their label.

    Args:
        counts: Pixels by class and margin in 255 steps [classes, 256].
    """
    above = counts[:, ::-1].cumsum(1)[:, ::-1]
    enough = above >= share * counts.sum(1, keepdims=True)
    return [
        int(np.flatnonzero(row)[-1]) if total else 0 for row, total in zip(enough, above[:, 0], strict=True)
    ]


def balanced(words: Sequence[Sequence[str]], order: Sequence[int], limit: int) -> list[int]:
    """Take images in an order while they have a class of which fewer than `limit` images were taken."""
    taken: Counter[str] = Counter()
    chosen = []
    for place in order:
        if any(taken[word] < limit for word in words[place]):
            taken.update(words[place])
            chosen.append(place)
    return chosen


def _over_units(labels: LabelFiles, use: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Read some columns of all labels in threads."""
    units = plan_units(labels, 1)
    stored = [name for name in columns if name in LABELS.names]

    def read(unit: Unit) -> Any:
        return use(labels, labels.read_group(unit.file, unit.groups[0], stored))

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(read, units)


def _as_they_are(labels: LabelFiles, rows: list[Row]) -> list[Row]:
    return rows


def _may_disagree(labels: LabelFiles) -> bool:
    """Say whether several hosts may have made labels; a selection's own `run.json` does not tell."""
    host = read_identity(labels.folder).get("config", {}).get("host")
    return "disagreement" in labels.schema.names and (host is None or "," in host)


def _histogram(labels: LabelFiles, rows: Iterable[Row]) -> np.ndarray:
    classes = len(labels.class_names)
    counts = np.zeros((classes + 1, _LEVELS), np.int64)
    for row in rows:
        mask = np.minimum(decode_mask(row["mask"]).astype(np.int64), classes)
        place = mask * _LEVELS + decode_mask(row["confidence"])
        counts += np.bincount(place.ravel(), minlength=counts.size).reshape(counts.shape)
    return counts[:classes]


def _schema(labels: LabelFiles) -> pa.Schema:
    metadata = {
        **(labels.schema.metadata or {}),
        CLASSES: json.dumps(labels.class_names, ensure_ascii=False).encode(),
        IGNORE: str(labels.ignore_index).encode(),
    }
    metadata.pop(b"ovss_parts", None)
    metadata.pop(COMMON, None)
    # rows with a vocabulary of their own were brought to one list of classes
    fields = [entry for entry in labels.schema if entry.name != VOCABULARY]
    return pa.schema(fields, metadata)
