"""Compare FreeCP's decisions with the reference arrays: kept classes, groups, boxes, winners, final maps."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ovss_core.class_purification.class_maps import WindowBatch
from ovss_core.class_purification.groups import soft_iou
from ovss_core.class_purification.placement import Placement
from ovss_core.class_purification.purifier import ClassPurifier
from ovss_core.class_purification.winners import pick_winners
from ovss_core.config import PurificationConfig
from tests.class_purification.scenes import Found, FoundGroup, by_image
from tests.golden_freecp_case import (
    BOX_THRESHOLD,
    CROP,
    MARGIN,
    NOT_OURS,
    PATCH,
    Case,
    CaseText,
    GoldenEncoder,
    Report,
    case_text,
    compare,
    tolerance_of,
)


def purify(
    text: CaseText,
    logits: np.ndarray,
    attention: np.ndarray,
    grid: tuple[int, int],
    redundancy: float,
    ambiguity: float,
) -> Found:
    """Purify one window in the released form, from logits."""
    config = PurificationConfig(
        variant="released",
        thresholds="fixed",
        redundancy_threshold=redundancy,
        ambiguity_threshold=ambiguity,
        score_scale=1.0,
        box_threshold=BOX_THRESHOLD,
    )
    purifier = ClassPurifier(config, text, "none" if text.vocabulary.background_index is None else "residual")
    side = (grid[0] * PATCH, grid[1] * PATCH)
    batch = WindowBatch(
        torch.from_numpy(logits).float()[None],
        torch.from_numpy(attention).float()[None],
        Placement.of((1,), ((0, 0),), (side,), grid, PATCH, side),
    )
    return by_image(purifier.purify(batch), batch)[0]


def purify_logits(
    logits: np.ndarray,
    attention: np.ndarray,
    grid: tuple[int, int],
    classes: int,
    redundancy: float,
    ambiguity: float,
) -> tuple[set[int], set[int]]:
    """Return the foreground classes that are kept and those of them that are ambiguous."""
    text = case_text(classes, logits.shape[1] - classes)
    offset = int(logits.shape[1] > classes)
    found = purify(text, logits, attention, grid, redundancy, ambiguity)
    ambiguous = {index - offset for group in found.groups for index in group.classes}
    return set((found.kept - offset).tolist()), ambiguous


def check_decisions(case: Case, report: Report, encoder: GoldenEncoder | None, tied: set[int]) -> None:
    for i, redundancy in enumerate(case.arrays["t_rp"].tolist()):
        scores = case.get("rp_score")
        slack = tolerance_of("rp_score", scores)
        unsure = tied | set(np.flatnonzero(np.abs(scores - redundancy) < slack).tolist())
        expected = case.get(f"kept_rp/rp{i}").tolist()
        for j, ambiguity in enumerate(case.arrays["t_ap"].tolist()):
            attention = case.arrays[f"{case.window}/A"]
            logits = case.get("logits_patch")
            found = purify(case.text(), logits, attention, case.grid, redundancy, ambiguity)
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
            if _check_groups(case, report, tag, found):
                _check_winners(case, report, encoder, tag, found)
            else:
                for kind in ("ap_winner", "kept_final", "final_sum"):
                    report.skip(f"{case.prefix}{kind}/{tag}", "a region of its group is a legitimate tie")


def _edge_tie(case: Case, key: str, threshold: float) -> bool:
    if case.prefix + key not in case.arrays:
        return False
    expected = case.get(key)
    return bool((np.abs(expected - threshold) < tolerance_of("softiou", expected)).any())


def _check_soft_iou(case: Case, report: Report, key: str, found: Found, unsure: set[int]) -> None:
    if case.prefix + key not in case.arrays:
        return
    kept = (found.kept - case.offset).tolist()
    names = case.get(key.replace("softiou", "kept_rp")).tolist()
    common = [k for k in names if k in kept and k not in unsure]
    ours = soft_iou(found.maps[:, 0].flatten(1)[None])[0][[kept.index(k) for k in common]]
    ours = ours[:, [kept.index(k) for k in common]]
    places = [names.index(k) for k in common]
    compare(report, case.prefix + key, "softiou", ours, case.get(key)[np.ix_(places, places)])


def _expected_groups(case: Case, tag: str) -> dict[int, tuple[int, ...]]:
    groups: dict[int, list[int]] = {}
    for index, group in case.get(f"groups/{tag}").tolist():
        groups.setdefault(group, []).append(index)
    return {group: tuple(sorted(members)) for group, members in groups.items() if len(members) > 1}


def _check_groups(case: Case, report: Report, tag: str, found: Found) -> bool:
    """Compare groups and their boxes; tell whether no group differs by a legitimate tie."""
    expected = _expected_groups(case, tag)
    ours = {_members(case, group): _patch_boxes(group) for group in found.groups}
    listed = set(case.get(f"groups/{tag}")[:, 0].tolist())
    kept = set((found.kept - case.offset).tolist())
    report(f"{case.prefix}groups/{tag}", len(set(expected.values()) ^ set(ours)) + len(listed ^ kept), 0)
    margins = dict(zip(expected, case.get(f"ap_box_margin/{tag}").tolist(), strict=True))
    wrong = ties = 0
    for group, members in expected.items():
        rows = case.get(f"ap_boxes/{tag}")
        boxes = {tuple(row[1:]) for row in rows.tolist() if row[0] == group}
        different = len(boxes ^ ours.get(members, set()))
        wrong += different if margins[group] >= MARGIN else 0
        ties += different if margins[group] < MARGIN else 0
    report(f"{case.prefix}ap_boxes/{tag}", wrong, 0)
    return ties == 0


def _members(case: Case, group: FoundGroup) -> tuple[int, ...]:
    return tuple(index - case.offset for index in group.classes)


def _patch_boxes(group: FoundGroup) -> set[tuple[int, ...]]:
    return {tuple(side // PATCH for side in box) for box in group.boxes}


def _check_winners(case: Case, report: Report, encoder: GoldenEncoder | None, tag: str, found: Found) -> None:
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
    _check_final(case, report, tag, found, _without_losers(found, winners))


def _without_losers(found: Found, winners: list[list[int | None]]) -> Tensor:
    """Zero the maps [kept, rows, columns] of losers, as the engine's `remove_losers` does, box by stored box."""
    maps = found.maps[:, 0].clone()
    for group, decided in zip(found.groups, winners, strict=True):
        if None not in decided:
            lost = [index not in decided and index in group.classes for index in found.kept.tolist()]
            maps[torch.tensor(lost)] = 0
    return maps


def _patches(box: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // PATCH for side in box)


def _stored_winners(case: Case, tag: str) -> dict[tuple[int, tuple[int, ...]], tuple[int, float]]:
    rows = case.get(f"ap_boxes/{tag}").tolist()
    winners = case.get(f"ap_winner/{tag}").tolist()
    margins = case.get(f"ap_winner_margin/{tag}").tolist()
    return {
        (row[0], tuple(row[1:])): (winner, margin)
        for row, winner, margin in zip(rows, winners, margins, strict=True)
    }


def _pick(case: Case, encoder: GoldenEncoder, group: FoundGroup) -> list[int]:
    """Pick the winner of each box as a foreground index, -1 for a degenerate box."""
    assert case.pixels is not None
    real = [box for box in group.boxes if _has_area(box)]
    if not real:
        return [-1] * len(group.boxes)
    crops = [
        functional.interpolate(case.pixels[:, :, y0:y1, x0:x1], (CROP, CROP), mode="bilinear")
        for x0, y0, x1, y1 in real
    ]
    features = functional.normalize(encoder.class_features(torch.cat(crops)).float(), dim=-1)
    raw = torch.from_numpy(case.arrays[f"{case.name}/text_llm_raw"]).float()[-case.classes :]
    members = _members(case, group)
    candidates = torch.tensor([members] * len(real))
    picked = iter(pick_winners(features, functional.normalize(raw, dim=-1), candidates).tolist())
    return [members[next(picked)] if _has_area(box) else -1 for box in group.boxes]


def _has_area(box: tuple[int, ...]) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _check_final(case: Case, report: Report, tag: str, found: Found, maps: Tensor) -> None:
    kept = found.kept - case.offset
    alive = maps.flatten(1).any(1)
    report(
        f"{case.prefix}kept_final/{tag}",
        len(set(kept[alive].tolist()) ^ set(case.get(f"kept_final/{tag}").tolist())),
        0,
    )
    sums = torch.zeros(case.classes).index_put_((kept,), maps.flatten(1).sum(1))
    compare(report, f"{case.prefix}final_sum/{tag}", "final_sum", sums, case.get(f"final_sum/{tag}"))
    key = f"upsampled_kept_{tag}"
    if case.prefix + key in case.arrays:
        expected = case.get(key)
        size = [side * PATCH for side in case.grid]
        full = functional.interpolate(maps[alive][None], size, mode="bilinear", align_corners=False)[0]
        step = 1 if expected.shape[1:] == full.shape[1:] else -(-size[0] // expected.shape[1])
        compare(report, case.prefix + key, "upsampled", full[:, ::step, ::step], expected)
