"""One case of FreeCP's reference arrays, what an implementation may deviate, and where results go."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ovss_core.vocabulary import Vocabulary, VocabularyClass

FILE = "freecp_stages.npz"
BOX_THRESHOLD = 0.4
PATCH = 16
CROP = 112
MARGIN = 0.01

# Largest deviation of the released code between float32 and float64, and the largest value it belongs to
# (README of the arrays); an implementation may deviate ten times as far.
DEVIATIONS: dict[str, tuple[float, float]] = {
    "A": (1.0e-07, 0.274),
    "T": (5.5e-08, 0.112),
    "logits_patch": (9.8e-05, 87.4),
    "cls_logits": (3.0e-05, 76.5),
    "P": (9.3e-06, 1),
    "Pn": (9.3e-06, 1),
    "q": (9.1e-06, 1),
    "rp_score": (7.5e-07, 0.418),
    "softiou": (2.7e-06, 1),
    "final_sum": (8.6e-05, 136),
    "upsampled": (6.0e-06, 1),
    "gem/T": (8.1e-08, 0.148),
    "gem/P": (3.6e-06, 1),
    "gem/q": (5.4e-07, 1),
    "gem/rp_score": (7.9e-08, 0.401),
}
HEAD_0_ONLY = "the authors' GEM path purifies with attention head 0 only; ours takes the head mean"
NOT_OURS = {
    "text_raw": "an input",
    "text_llm_raw": "an input",
    "meta": "an input",
    "box_margin": "says how near the mask is to a tie; used to excuse ties, not an output",
    "ap_box_margin": "says how near the group's mask is to a tie; used to excuse ties, not an output",
    "ap_winner_margin": "says how near the winner is to a tie; used to excuse ties, not an output",
}


class Report(Protocol):
    """Where results go: an error beside its tolerance, or the reason for a key that is not compared."""

    def __call__(self, key: str, error: float, tolerance: float) -> None: ...

    def skip(self, key: str, reason: str) -> None:
        """Name a key that is not compared."""


class GoldenEncoder(Protocol):
    """The image tower of tiny_vit.npz; pixels are normalized windows [images, 3, height, width]."""

    def mean_attention(self, pixels: Tensor) -> Tensor:
        """Return the mean over blocks 1..L-1 and heads of the patch-patch attention [images, N, N]."""

    def dense_features(self, pixels: Tensor, head: str) -> Tensor:
        """Return a host's patch features in FreeCP's form [images, N, channels]."""

    def class_features(self, pixels: Tensor) -> Tensor:
        """Return the plain encoder's class-token features [images, channels]."""


@dataclass(frozen=True)
class NamedReport:
    """A report whose keys begin with the file's name."""

    report: Report

    def __call__(self, key: str, error: float, tolerance: float) -> None:
        self.report(f"freecp_stages/{key}", error, tolerance)

    def skip(self, key: str, reason: str) -> None:
        self.report.skip(f"freecp_stages/{key}", reason)


@dataclass(frozen=True)
class CaseText:
    phrase_embeddings: Tensor
    phrase_class: np.ndarray
    null_embeddings: Tensor
    vocabulary: Vocabulary
    logit_scale: float = 100.0


@dataclass(frozen=True)
class Case:
    """One case on one window, its arrays under `prefix`."""

    arrays: dict[str, np.ndarray]
    name: str
    window: str
    pixels: Tensor | None

    @property
    def prefix(self) -> str:
        return f"{self.name}/{self.window}/"

    @property
    def classes(self) -> int:
        return int(self.arrays[f"{self.name}/meta"][0])

    @property
    def backgrounds(self) -> int:
        return int(self.arrays[f"{self.name}/meta"][1])

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.arrays[f"{self.prefix}P"].shape[1:]
        return rows, columns

    @property
    def offset(self) -> int:
        """Position of the first foreground class in our vocabulary."""
        return int(self.backgrounds > 0)

    def get(self, key: str) -> np.ndarray:
        return self.arrays[self.prefix + key]

    def text(self) -> CaseText:
        return case_text(self.classes, self.backgrounds)


def case_text(classes: int, backgrounds: int) -> CaseText:
    """Make a text side whose embeddings turn logits given as features into themselves."""
    foreground = [VocabularyClass(f"class {k}", (f"phrase {k}",)) for k in range(classes)]
    names = tuple(f"background {k}" for k in range(backgrounds))
    background = [VocabularyClass("background", names)] if names else []
    vocabulary = Vocabulary((*background, *foreground))
    phrases = classes + backgrounds
    return CaseText(torch.eye(phrases), vocabulary.phrase_class, torch.zeros(0, phrases), vocabulary)


def tolerance_of(kind: str, expected: np.ndarray) -> float:
    """Allow ten times the listed deviation, more where the values are larger than the listed ones."""
    deviation, largest = DEVIATIONS[kind]
    peak = float(np.abs(expected).max()) if expected.size else 0.0
    return 10 * deviation * max(1.0, peak / largest)


def error_of(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    values = np.asarray(found, dtype=np.float64)
    if values.shape != expected.shape:
        return float("inf")
    return float(np.abs(values - expected).max()) if expected.size else 0.0


def compare(report: Report, key: str, kind: str, found: Tensor | np.ndarray, expected: np.ndarray) -> None:
    report(key, error_of(found, expected), tolerance_of(kind, expected))
