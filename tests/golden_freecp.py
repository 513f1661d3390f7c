"""Compare class purification with the arrays that FreeCP's released code produced (freecp_stages.npz).

Each stage starts from the stored logits, so that deviations do not add up; with an encoder at hand the
steps before that are compared too. Nothing is assumed of the folder but its layout: cases, windows,
thresholds and host are read from the arrays.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.affinity import Affinity, balance, spread
from ovss_core.class_purification.ambiguity import soft_iou
from ovss_core.class_purification.batch import PurificationInput, Units
from ovss_core.class_purification.boxes import component_boxes, quantise, threshold_regions
from ovss_core.class_purification.evidence import (
    PhraseScores,
    active_pairs,
    class_maximum,
    class_peaks,
    collect_rows,
    plan_chunks,
    softmax_statistics,
)
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.class_purification.redundancy import refine, released_score
from ovss_core.class_purification.winners import (
    GroupProposal,
    ImagePurification,
    is_degenerate,
    pick_winners,
    resolve_groups,
)
from ovss_core.config import PurificationConfig
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
    """The image tower of tiny_vit.npz; pixels are normalised windows [images, 3, height, width]."""

    def mean_attention(self, pixels: Tensor) -> Tensor:
        """Return the mean over blocks 1..L-1 and heads of the patch-patch attention [images, N, N]."""

    def dense_features(self, pixels: Tensor, head: str) -> Tensor:
        """Return a host's patch features in FreeCP's form [images, N, channels]."""

    def class_features(self, pixels: Tensor) -> Tensor:
        """Return the plain encoder's class-token features [images, channels]."""


@dataclass(frozen=True)
class _Text:
    phrase_embeddings: Tensor
    phrase_class: np.ndarray
    null_embeddings: Tensor
    vocabulary: Vocabulary


@dataclass(frozen=True)
class _Case:
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

    def text(self) -> _Text:
        phrases = self.classes + self.backgrounds
        foreground = [VocabularyClass(f"class {k}", (f"phrase {k}",)) for k in range(self.classes)]
        names = tuple(f"background {k}" for k in range(self.backgrounds))
        background = [VocabularyClass("background", names)] if names else []
        vocabulary = Vocabulary((*background, *foreground))
        return _Text(torch.eye(phrases), vocabulary.phrase_class, torch.zeros(0, phrases), vocabulary)


def tolerance_of(kind: str, expected: np.ndarray) -> float:
    """Allow ten times the listed deviation, more where the values are larger than the listed ones."""
    deviation, largest = DEVIATIONS[kind]
    peak = float(np.abs(expected).max()) if expected.size else 0.0
    return 10 * deviation * max(1.0, peak / largest)


def _error(found: Tensor | np.ndarray, expected: np.ndarray) -> float:
    values = np.asarray(found, dtype=np.float64)
    if values.shape != expected.shape:
        return float("inf")
    return float(np.abs(values - expected).max()) if expected.size else 0.0


def _compare(report: Report, key: str, kind: str, found: Tensor | np.ndarray, expected: np.ndarray) -> None:
    report(key, _error(found, expected), tolerance_of(kind, expected))


def check_freecp_stages(folder: Path, report: Report, encoder: GoldenEncoder | None = None) -> None:
    """Report every key of FOLDER/freecp_stages.npz.

    Args:
        folder: Folder of the golden arrays.
        report: Receives each comparison.
        encoder: Needed for A, logits_patch, cls_logits and the winners; without it they are skipped.
    """
    arrays = dict(np.load(folder / FILE))
    with np.load(folder / "inputs.npz") as inputs:
        pixels = {name: torch.from_numpy(inputs[name]) for name in inputs.files}
    for key in ("base_head", "t_rp", "t_ap"):
        report.skip(key, "an input")
    for case in sorted(key.removesuffix("/meta") for key in arrays if key.endswith("/meta")):
        for kind in ("text_raw", "text_llm_raw", "meta"):
            report.skip(f"{case}/{kind}", NOT_OURS[kind])
    windows = sorted(key.removesuffix("/A") for key in arrays if re.fullmatch(r"[^/]+/A", key))
    for window in windows:
        _check_affinity(arrays, window, report, encoder, pixels.get(window))
    for name, window in _cases(arrays):
        _check_case(_Case(arrays, name, window, pixels.get(window)), report, encoder)
    for window in sorted(key.split("/")[1] for key in arrays if re.fullmatch(r"gem/[^/]+/P", key)):
        _check_gem(arrays, window, report)


def _cases(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    for key in sorted(arrays):
        match = re.fullmatch(r"([^/]+)/([^/]+)/logits_patch", key)
        if match:
            yield match[1], match[2]


def _check_affinity(
    arrays: dict[str, np.ndarray],
    window: str,
    report: Report,
    encoder: GoldenEncoder | None,
    pixels: Tensor | None,
) -> None:
    expected = arrays[f"{window}/A"]
    if encoder is None or pixels is None:
        report.skip(f"{window}/A", "needs the encoder" if encoder is None else "no such window in inputs.npz")
    else:
        _compare(report, f"{window}/A", "A", encoder.mean_attention(pixels)[0], expected)
    _compare(report, f"{window}/T", "T", _transfer(expected), arrays[f"{window}/T"])


def _transfer(attention: np.ndarray) -> Tensor:
    single = torch.from_numpy(attention).float()[None]
    return spread(balance(single), torch.eye(single.shape[1])[None])[0]


def _check_case(case: _Case, report: Report, encoder: GoldenEncoder | None) -> None:
    for kind in ("box_margin",):
        report.skip(case.prefix + kind, NOT_OURS[kind])
    _check_logits(case, report, encoder)
    tied = _check_stages(case, report)
    _check_decisions(case, report, encoder, tied)


def _check_logits(case: _Case, report: Report, encoder: GoldenEncoder | None) -> None:
    if encoder is None or case.pixels is None:
        for key in ("logits_patch", "cls_logits"):
            report.skip(case.prefix + key, "needs the encoder and the window's pixels")
        return
    text = functional.normalize(torch.from_numpy(case.arrays[f"{case.name}/text_raw"]).float(), dim=-1)
    scale = float(case.arrays[f"{case.name}/meta"][2])
    host = str(case.arrays["base_head"]).lower()
    dense = functional.normalize(encoder.dense_features(case.pixels, host)[0].float(), dim=-1)
    whole = functional.normalize(encoder.class_features(case.pixels)[0].float(), dim=-1)
    _compare(
        report, f"{case.prefix}logits_patch", "logits_patch", scale * dense @ text.T, case.get("logits_patch")
    )
    _compare(report, f"{case.prefix}cls_logits", "cls_logits", scale * whole @ text.T, case.get("cls_logits"))


def _stages(
    logits: np.ndarray, attention: np.ndarray, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute P, Pn, q, scores and thresholded regions of every phrase, each taken as a class."""
    phrases = logits.shape[1]
    chunks = plan_chunks(np.arange(phrases), phrases)
    units = Units(torch.zeros(1, dtype=torch.int64), 1)
    scores = PhraseScores(torch.from_numpy(logits).float()[None], torch.eye(phrases), 1.0, chunks)
    statistics = softmax_statistics(scores, units)
    log_probability = class_maximum(next(iter(scores))[1], chunks[0]).sub_(statistics.log_total)
    active = active_pairs(class_peaks(log_probability, units), statistics)
    rows = collect_rows(log_probability, active, statistics, units)
    refined = refine(rows, _affinity(attention), grid, BOX_THRESHOLD)
    probability = log_probability[:, 0].exp()
    normalised = statistics.normalise(probability, torch.zeros(1, dtype=torch.int64))
    maps = torch.zeros_like(probability).index_put_((rows.pair,), refined)
    levels = quantise(normalised).view(-1, *grid)
    regions = threshold_regions(levels, levels.flatten(1).amax(1), BOX_THRESHOLD)
    return probability, normalised, maps, released_score(rows, refined), regions


def _affinity(attention: np.ndarray) -> Affinity:
    return balance(torch.from_numpy(attention).float()[None])


def _check_stages(case: _Case, report: Report) -> set[int]:
    """Compare the stages up to the score; return the classes whose mask differs by a legitimate tie."""
    grid, skip = case.grid, case.backgrounds
    attention = case.arrays[f"{case.window}/A"]
    probability, normalised, maps, scores, regions = _stages(case.get("logits_patch"), attention, grid)
    _compare(report, f"{case.prefix}P", "P", probability.unflatten(1, grid), case.get("P"))
    _compare(report, f"{case.prefix}Pn", "Pn", normalised.unflatten(1, grid), case.get("Pn"))
    boxes = component_boxes(regions[skip:], holes=True)
    masks = _union(boxes.map_index, boxes.corners, case.classes, grid)
    counts = np.bincount(boxes.map_index.numpy(), minlength=case.classes).clip(min=1)
    wrong = (masks != case.get("box_mask")).any((1, 2)) | (counts != case.get("refine_boxes_count"))
    near = case.get("box_margin") < MARGIN
    tied = set(np.flatnonzero(wrong & near).tolist())
    sure = np.array([k not in tied for k in range(case.classes)])
    report(f"{case.prefix}box_mask", int((masks != case.get("box_mask"))[sure].sum()), 0)
    report(f"{case.prefix}refine_boxes_count", int((counts != case.get("refine_boxes_count"))[sure].sum()), 0)
    _compare(report, f"{case.prefix}q", "q", maps[skip:].unflatten(1, grid)[sure], case.get("q")[sure])
    _compare(report, f"{case.prefix}rp_score", "rp_score", scores[skip:][sure], case.get("rp_score")[sure])
    return tied


def _union(index: Tensor, corners: Tensor, maps: int, grid: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((maps, *grid), dtype=bool)
    for place, (x0, y0, x1, y1) in zip(index.tolist(), corners.tolist(), strict=True):
        masks[place, y0:y1, x0:x1] = True
    return masks


def _purify(case: _Case, redundancy: float, ambiguity: float) -> ImagePurification:
    config = PurificationConfig(
        variant="released",
        thresholds="fixed",
        redundancy_threshold=redundancy,
        ambiguity_threshold=ambiguity,
        score_scale=1.0,
        box_threshold=BOX_THRESHOLD,
    )
    purifier = ClassPurifier(config, case.text(), "residual" if case.backgrounds else "none")
    side = (case.grid[0] * PATCH, case.grid[1] * PATCH)
    batch = PurificationInput(
        torch.from_numpy(case.get("logits_patch")).float()[None],
        torch.from_numpy(case.arrays[f"{case.window}/A"]).float()[None],
        case.grid,
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
        [side],
        PATCH,
        side,
    )
    return purifier.purify(batch)[0]


def _check_decisions(case: _Case, report: Report, encoder: GoldenEncoder | None, tied: set[int]) -> None:
    for i, redundancy in enumerate(case.arrays["t_rp"].tolist()):
        scores = case.get("rp_score")
        slack = tolerance_of("rp_score", scores)
        unsure = tied | set(np.flatnonzero(np.abs(scores - redundancy) < slack).tolist())
        expected = case.get(f"kept_rp/rp{i}").tolist()
        for j, ambiguity in enumerate(case.arrays["t_ap"].tolist()):
            found = _purify(case, redundancy, ambiguity)
            kept = (found.kept - case.offset).tolist()
            if j == 0:
                report(f"{case.prefix}kept_rp/rp{i}", len((set(kept) ^ set(expected)) - unsure), 0)
                _check_soft_iou(case, report, f"softiou/rp{i}", found, unsure)
            tag = f"rp{i}_ap{j}"
            report.skip(f"{case.prefix}ap_box_margin/{tag}", NOT_OURS["ap_box_margin"])
            report.skip(f"{case.prefix}ap_winner_margin/{tag}", NOT_OURS["ap_winner_margin"])
            if kept != expected or unsure & set(kept) or _edge_tie(case, f"softiou/rp{i}", ambiguity):
                for kind in ("groups", "ap_boxes", "ap_winner", "kept_final", "final_sum"):
                    report.skip(
                        f"{case.prefix}{kind}/{tag}", "a decision before it is a legitimate tie or missed"
                    )
                continue
            _check_groups(case, report, tag, found)
            _check_winners(case, report, encoder, tag, found)


def _edge_tie(case: _Case, key: str, threshold: float) -> bool:
    if case.prefix + key not in case.arrays:
        return False
    expected = case.get(key)
    return bool((np.abs(expected - threshold) < tolerance_of("softiou", expected)).any())


def _check_soft_iou(
    case: _Case, report: Report, key: str, found: ImagePurification, unsure: set[int]
) -> None:
    if case.prefix + key not in case.arrays:
        return
    kept = (found.kept - case.offset).tolist()
    names = case.get(key.replace("softiou", "kept_rp")).tolist()
    common = [k for k in names if k in kept and k not in unsure]
    ours = soft_iou(found.maps[:, 0].flatten(1)[None])[0][[kept.index(k) for k in common]]
    ours = ours[:, [kept.index(k) for k in common]]
    places = [names.index(k) for k in common]
    _compare(report, case.prefix + key, "softiou", ours, case.get(key)[np.ix_(places, places)])


def _expected_groups(case: _Case, tag: str) -> dict[int, tuple[int, ...]]:
    groups: dict[int, list[int]] = {}
    for index, group in case.get(f"groups/{tag}").tolist():
        groups.setdefault(group, []).append(index)
    return {group: tuple(sorted(members)) for group, members in groups.items() if len(members) > 1}


def _check_groups(case: _Case, report: Report, tag: str, found: ImagePurification) -> None:
    expected = _expected_groups(case, tag)
    ours = {_members(case, group): _patch_boxes(group) for group in found.groups}
    report(f"{case.prefix}groups/{tag}", len(set(expected.values()) ^ set(ours)), 0)
    margins = dict(zip(expected, case.get(f"ap_box_margin/{tag}").tolist(), strict=True))
    wrong = 0
    for group, members in expected.items():
        rows = case.get(f"ap_boxes/{tag}")
        boxes = {tuple(row[1:]) for row in rows.tolist() if row[0] == group}
        if margins[group] >= MARGIN:
            wrong += len(boxes ^ ours.get(members, set()))
    report(f"{case.prefix}ap_boxes/{tag}", wrong, 0)


def _members(case: _Case, group: GroupProposal) -> tuple[int, ...]:
    return tuple(index - case.offset for index in group.classes)


def _patch_boxes(group: GroupProposal) -> set[tuple[int, ...]]:
    return {tuple(side // PATCH for side in box) for box in group.boxes}


def _check_winners(
    case: _Case, report: Report, encoder: GoldenEncoder | None, tag: str, found: ImagePurification
) -> None:
    """Compare winners box by box; what follows starts from the stored winners, so that ties stay local."""
    stored = _stored_winners(case, tag)
    expected = _expected_groups(case, tag)
    names = {members: group for group, members in expected.items()}
    wanted = [
        [stored.get((names.get(_members(case, group), -1), _patches(box))) for box in group.boxes]
        for group in found.groups
    ]
    if encoder is None or case.pixels is None:
        report.skip(f"{case.prefix}ap_winner/{tag}", "needs the encoder and the window's pixels")
    else:
        ours = [_pick(case, encoder, group) for group in found.groups]
        pairs = [
            pair for mine, theirs in zip(ours, wanted, strict=True) for pair in zip(mine, theirs, strict=True)
        ]
        report(
            f"{case.prefix}ap_winner/{tag}",
            sum(theirs is not None and mine != theirs[0] and theirs[1] > 1e-3 for mine, theirs in pairs),
            0,
        )
    winners = [
        [None if entry is None or entry[0] < 0 else entry[0] + case.offset for entry in row] for row in wanted
    ]
    maps, _ = resolve_groups(found, winners, "released", PATCH)
    _check_final(case, report, tag, found, maps[:, 0])


def _patches(box: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // PATCH for side in box)


def _stored_winners(case: _Case, tag: str) -> dict[tuple[int, tuple[int, ...]], tuple[int, float]]:
    rows = case.get(f"ap_boxes/{tag}").tolist()
    winners = case.get(f"ap_winner/{tag}").tolist()
    margins = case.get(f"ap_winner_margin/{tag}").tolist()
    return {
        (row[0], tuple(row[1:])): (winner, margin)
        for row, winner, margin in zip(rows, winners, margins, strict=True)
    }


def _pick(case: _Case, encoder: GoldenEncoder, group: GroupProposal) -> list[int]:
    """Pick the winner of each box as a foreground index, -1 for a degenerate box."""
    assert case.pixels is not None
    real = [box for box in group.boxes if not is_degenerate(box)]
    if not real:
        return [-1] * len(group.boxes)
    crops = [
        functional.interpolate(case.pixels[:, :, y0:y1, x0:x1], (CROP, CROP), mode="bilinear")
        for x0, y0, x1, y1 in real
    ]
    features = functional.normalize(encoder.class_features(torch.cat(crops)).float(), dim=-1)
    raw = torch.from_numpy(case.arrays[f"{case.name}/text_llm_raw"]).float()[-case.classes :]
    picked = iter(
        pick_winners(features, functional.normalize(raw, dim=-1), [_members(case, group)] * len(real))
    )
    return [-1 if is_degenerate(box) else next(picked) for box in group.boxes]


def _check_final(case: _Case, report: Report, tag: str, found: ImagePurification, maps: Tensor) -> None:
    kept = found.kept - case.offset
    alive = maps.flatten(1).any(1)
    report(
        f"{case.prefix}kept_final/{tag}",
        len(set(kept[alive].tolist()) ^ set(case.get(f"kept_final/{tag}").tolist())),
        0,
    )
    sums = torch.zeros(case.classes).index_put_((kept,), maps.flatten(1).sum(1))
    _compare(report, f"{case.prefix}final_sum/{tag}", "final_sum", sums, case.get(f"final_sum/{tag}"))
    key = f"upsampled_kept_{tag}"
    if case.prefix + key in case.arrays:
        expected = case.get(key)
        size = [side * PATCH for side in case.grid]
        full = functional.interpolate(maps[alive][None], size, mode="bilinear", align_corners=False)[0]
        step = 1 if expected.shape[1:] == full.shape[1:] else -(-size[0] // expected.shape[1])
        _compare(report, case.prefix + key, "upsampled", full[:, ::step, ::step], expected)


def _check_gem(arrays: dict[str, np.ndarray], window: str, report: Report) -> None:
    """Compare the GEM path from its stored A and P on; the authors' attention there is head 0 only."""
    prefix = f"gem/{window}/"
    report.skip(
        f"{prefix}A", "the authors' GEM path purifies with attention head 0 only; ours takes the head mean"
    )
    report.skip(f"{prefix}P", "an input of the stages that follow; dense_heads.npz holds GEM's features")
    attention, probability = arrays[f"{prefix}A"], arrays[f"{prefix}P"]
    grid = (probability.shape[1], probability.shape[2])
    _compare(report, f"{prefix}T", "gem/T", _transfer(attention), arrays[f"{prefix}T"])
    classes = len(arrays[f"{prefix}rp_score"])
    logits = np.log(probability.reshape(len(probability), -1).T.clip(1e-37))
    _, _, maps, scores, _ = _stages(logits, attention, grid)
    _compare(report, f"{prefix}q", "gem/q", maps[-classes:].unflatten(1, grid), arrays[f"{prefix}q"])
    _compare(report, f"{prefix}rp_score", "gem/rp_score", scores[-classes:], arrays[f"{prefix}rp_score"])
    expected = set(arrays[f"{prefix}kept_final"].tolist())
    options = [set((scores[-classes:] > limit).nonzero()[:, 0].tolist()) for limit in arrays["t_rp"].tolist()]
    report(f"{prefix}kept_final", min(len(expected - option) for option in options), 0)
