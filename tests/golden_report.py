"""Collects what a check against reference arrays found: each key's error beside its tolerance."""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    key: str
    error: float
    tolerance: float

    @property
    def missed(self) -> bool:
        return not self.error <= self.tolerance


@dataclass
class Report:
    """Largest error a key; keys that were not checked carry their reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __call__(self, key: str, error: float, tolerance: float) -> None:
        self.rows.append(Row(key, float(error), float(tolerance)))

    def skip(self, key: str, reason: str) -> None:
        self.skipped[key] = reason

    def close(self, key: str, actual: object, expected: object, tolerance: float) -> None:
        """Report the largest absolute difference; a wrong shape or a NaN counts as infinite."""
        self(key, largest_difference(actual, expected), tolerance)

    def equal(self, key: str, actual: object, expected: object) -> None:
        """Report the number of entries that differ; none may."""
        first, second = np.asarray(actual), np.asarray(expected)
        self(key, np.inf if first.shape != second.shape else float(np.count_nonzero(first != second)), 0)

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.missed]

    def lines(self) -> list[str]:
        """One line a stage (keys that differ only in the picture or case), the worst of it, then the skipped."""
        worst: dict[str, Row] = {}
        for row in self.rows:
            stage = stage_of(row.key)
            if stage not in worst or _severity(row) > _severity(worst[stage]):
                worst[stage] = row
        checked = [
            f"{'MISS' if row.missed else 'ok':4}  {stage:52} {row.error:10.2e} of {row.tolerance:8.1e}  ({row.key})"
            for stage, row in sorted(worst.items())
        ]
        return [*checked, *self._skipped_lines()]

    def _skipped_lines(self) -> list[str]:
        """One line a stage and reason, with the number of keys."""
        counts = Counter((stage_of(key), reason) for key, reason in self.skipped.items())
        return [f"skip  {stage} ({count}): {reason}" for (stage, reason), count in sorted(counts.items())]


def stage_of(key: str) -> str:
    """Drop picture and case names: `sfp_released/w0/features` and `.../w3/features` are one stage."""
    return "/".join(part for part in key.split("/") if not re.fullmatch(r"[wpkS]\d+|rp\d+(_ap\d+)?", part))


def largest_difference(actual: object, expected: object) -> float:
    first, second = _array(actual), _array(expected)
    if first.shape != second.shape:
        return float("inf")
    if first.size == 0:
        return 0.0
    largest = np.abs(first - second).max()
    return float("inf") if np.isnan(largest) else float(largest)


def _array(values: object) -> np.ndarray:
    return (values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)).astype(
        float
    )


def _severity(row: Row) -> float:
    return row.error / row.tolerance if row.tolerance else row.error * 1e30
