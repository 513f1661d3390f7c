"""Compare class purification with the arrays that FreeCP's released code produced (freecp_stages.npz).

Each stage starts from the stored logits, so that deviations do not add up; with an encoder at hand the
steps before that are compared too. Nothing is assumed of the folder but its layout: cases, windows,
thresholds and host are read from the arrays.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.class_maps import ClassMaps
from ovss_core.class_purification.evidence import PhraseScores, class_maximum, plan_chunks, softmax_statistics
from ovss_core.class_purification.placement import Units
from ovss_core.class_purification.refinement import balance, refine, spread
from ovss_core.class_purification.regions import Boxes, bound_parts, quantize, threshold_regions
from ovss_core.class_purification.scores import released_score
from tests.golden_freecp_case import (
    BOX_THRESHOLD,
    FILE,
    HEAD_0_ONLY,
    MARGIN,
    NOT_OURS,
    Case,
    GoldenEncoder,
    NamedReport,
    Report,
    compare,
)
from tests.golden_freecp_decisions import check_decisions, purify_logits


def check_freecp_stages(folder: Path, report: Report, encoder: GoldenEncoder | None = None) -> None:
    """Report every key of FOLDER/freecp_stages.npz.

    Args:
        folder: Folder of the golden arrays.
        report: Receives each comparison.
        encoder: Needed for A, logits_patch, cls_logits and the winners; without it they are skipped.
    """
    arrays = dict(np.load(folder / FILE))
    report = NamedReport(report)
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
        _check_case(Case(arrays, name, window, pixels.get(window)), report, encoder)
    for window in sorted(key.split("/")[1] for key in arrays if re.fullmatch(r"gem/[^/]+/P", key)):
        _check_gem(arrays, window, report, encoder, pixels.get(window))


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
    if host_of(arrays) == "gem":
        report.skip(f"{window}/A", HEAD_0_ONLY)
    elif encoder is None or pixels is None:
        report.skip(f"{window}/A", "needs the encoder" if encoder is None else "no such window in inputs.npz")
    else:
        compare(report, f"{window}/A", "A", encoder.mean_attention(pixels)[0], expected)
    compare(report, f"{window}/T", "T", transfer(expected), arrays[f"{window}/T"])


def host_of(arrays: dict[str, np.ndarray]) -> str:
    name = str(arrays["base_head"]).lower()
    return {"vanilla": "clip"}.get(name, name)


def transfer(attention: np.ndarray) -> Tensor:
    single = torch.from_numpy(attention).float()[None]
    return spread(balance(single), torch.eye(single.shape[1])[None])[0]


def _check_case(case: Case, report: Report, encoder: GoldenEncoder | None) -> None:
    for kind in ("box_margin",):
        report.skip(case.prefix + kind, NOT_OURS[kind])
    _check_logits(case, report, encoder)
    tied = _check_stages(case, report)
    check_decisions(case, report, encoder, tied)


def _check_logits(case: Case, report: Report, encoder: GoldenEncoder | None) -> None:
    if encoder is None or case.pixels is None:
        for key in ("logits_patch", "cls_logits"):
            report.skip(case.prefix + key, "needs the encoder and the window's pixels")
        return
    text = functional.normalize(torch.from_numpy(case.arrays[f"{case.name}/text_raw"]).float(), dim=-1)
    scale = float(case.arrays[f"{case.name}/meta"][2])
    dense = encoder.dense_features(case.pixels, host_of(case.arrays))[0].float()
    dense = functional.normalize(dense, dim=-1)
    whole = functional.normalize(encoder.class_features(case.pixels)[0].float(), dim=-1)
    compare(
        report, f"{case.prefix}logits_patch", "logits_patch", scale * dense @ text.T, case.get("logits_patch")
    )
    compare(report, f"{case.prefix}cls_logits", "cls_logits", scale * whole @ text.T, case.get("cls_logits"))


def run_stages(
    logits: np.ndarray, attention: np.ndarray, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute P, Pn, q, scores and thresholded regions of every phrase, each taken as a class."""
    phrases = logits.shape[1]
    chunks = plan_chunks(np.arange(phrases), phrases)
    units = Units.of((1,))
    scores = PhraseScores(torch.from_numpy(logits).float()[None], torch.eye(phrases), 1.0, chunks)
    statistics = softmax_statistics(scores, units)
    log_probability = class_maximum(next(iter(scores))[1], chunks[0]).sub_(statistics.log_total)
    every = torch.arange(phrases)[None]
    probability = ClassMaps(units, every, log_probability.exp().transpose(0, 1))
    affinity = balance(torch.from_numpy(attention).float()[None])
    refined = refine(probability, statistics, affinity, grid, BOX_THRESHOLD)
    normalized = statistics.normalize(probability.maps)[0]
    levels = quantize(normalized)
    regions = threshold_regions(levels, levels.amax(1), BOX_THRESHOLD).unflatten(1, grid)
    return probability.maps[0], normalized, refined.maps[0], released_score(probability, refined)[0], regions


def _check_stages(case: Case, report: Report) -> set[int]:
    """Compare the stages up to the score; return the classes whose mask differs by a legitimate tie."""
    grid, skip = case.grid, case.backgrounds
    attention = case.arrays[f"{case.window}/A"]
    probability, normalized, maps, scores, regions = run_stages(case.get("logits_patch"), attention, grid)
    compare(report, f"{case.prefix}P", "P", probability.unflatten(1, grid), case.get("P"))
    compare(report, f"{case.prefix}Pn", "Pn", normalized.unflatten(1, grid), case.get("Pn"))
    boxes = bound_parts(regions[skip:], holes=True)
    masks = _union(boxes, case.classes, grid)
    counts = boxes.used.sum(1).numpy().clip(min=1)
    wrong = (masks != case.get("box_mask")).any((1, 2)) | (counts != case.get("refine_boxes_count"))
    near = case.get("box_margin") < MARGIN
    tied = set(np.flatnonzero(wrong & near).tolist())
    sure = np.array([k not in tied for k in range(case.classes)])
    report(f"{case.prefix}box_mask", int((masks != case.get("box_mask"))[sure].sum()), 0)
    report(f"{case.prefix}refine_boxes_count", int((counts != case.get("refine_boxes_count"))[sure].sum()), 0)
    compare(report, f"{case.prefix}q", "q", maps[skip:].unflatten(1, grid)[sure], case.get("q")[sure])
    compare(report, f"{case.prefix}rp_score", "rp_score", scores[skip:][sure], case.get("rp_score")[sure])
    return tied


def _union(boxes: Boxes, maps: int, grid: tuple[int, int]) -> np.ndarray:
    masks = np.zeros((maps, *grid), dtype=bool)
    for place, row in boxes.used.nonzero().tolist():
        x0, y0, x1, y1 = boxes.corners[place, row].tolist()
        masks[place, y0:y1, x0:x1] = True
    return masks


def _check_gem(
    arrays: dict[str, np.ndarray],
    window: str,
    report: Report,
    encoder: GoldenEncoder | None,
    pixels: Tensor | None,
) -> None:
    """Compare the GEM path from its stored A and P on; the authors' attention there is head 0 only."""
    prefix = f"gem/{window}/"
    report.skip(f"{prefix}A", HEAD_0_ONLY)
    _check_gem_probability(arrays, window, report, encoder, pixels)
    attention, probability = arrays[f"{prefix}A"], arrays[f"{prefix}P"]
    grid = (probability.shape[1], probability.shape[2])
    compare(report, f"{prefix}T", "gem/T", transfer(attention), arrays[f"{prefix}T"])
    classes = len(arrays[f"{prefix}rp_score"])
    logits = np.log(probability.reshape(len(probability), -1).T.clip(1e-37))
    _, _, maps, scores, _ = run_stages(logits, attention, grid)
    compare(report, f"{prefix}q", "gem/q", maps[-classes:].unflatten(1, grid), arrays[f"{prefix}q"])
    compare(report, f"{prefix}rp_score", "gem/rp_score", scores[-classes:], arrays[f"{prefix}rp_score"])
    expected = set(arrays[f"{prefix}kept_final"].tolist())
    wrong = [
        _count_wrong(purify_logits(logits, attention, grid, classes, redundancy, ambiguity), expected)
        for redundancy in arrays["t_rp"].tolist()
        for ambiguity in arrays["t_ap"].tolist()
    ]
    report(f"{prefix}kept_final", min(wrong), 0)


def _count_wrong(found: tuple[set[int], set[int]], expected: set[int]) -> int:
    """Count classes that cannot be right: the file does not say which thresholds and winners it took."""
    kept, ambiguous = found
    return len(expected - kept) + len(kept - ambiguous - expected)


def _check_gem_probability(
    arrays: dict[str, np.ndarray],
    window: str,
    report: Report,
    encoder: GoldenEncoder | None,
    pixels: Tensor | None,
) -> None:
    """Compare P of GEM's features with the texts of the case that has as many phrases."""
    key = f"gem/{window}/P"
    expected = arrays[key]
    texts = {
        name.removesuffix("/text_raw"): array for name, array in arrays.items() if name.endswith("/text_raw")
    }
    cases = [name for name, array in texts.items() if len(array) == len(expected)]
    if encoder is None or pixels is None or not cases:
        report.skip(key, "needs the encoder, the window's pixels and a case with as many phrases")
        return
    dense = functional.normalize(encoder.dense_features(pixels, "gem")[0].float(), dim=-1)
    found = [
        (
            arrays[f"{case}/meta"][2]
            * dense
            @ functional.normalize(torch.from_numpy(texts[case]).float(), dim=-1).T
        )
        .softmax(-1)
        .T.unflatten(1, expected.shape[1:])
        for case in cases
    ]
    nearest = min(found, key=lambda probability: np.abs(probability.numpy() - expected).max())
    compare(report, key, "gem/P", nearest, expected)
