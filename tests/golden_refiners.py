"""Checks the refiners against the reference arrays of PAMR and of PEARL's propagation."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.config import PamrConfig, TlpConfig, WindowConfig
from ovss_core.dense_heads import build_head
from ovss_core.images.neighbors import neighbor_weights, spread_to_neighbors
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.refiners import Guide, Refiner, ScoreMaps
from ovss_core.refiners.pamr import PamrRefiner
from ovss_core.refiners.tlp import TlpRefiner, own_similarity
from tests.golden_encoder import load_arrays, load_encoder
from tests.golden_report import Report

# Deviation of the released codes in float32 (the README beside the arrays); ours may have ten times as much.
PAMR_DEVIATION = {
    "scores_low": 1.8e-07,
    "affinity_8_16": 1.9e-07,
    "pamr_8_16_it1": 3.3e-07,
    "pamr_8_16_it1_sum": 7.4e-04,
    "pamr_8_16_it10": 2.1e-06,
    "pamr_8_16_it10_sum": 1.0e-03,
    "pamr_8_16_it10_from_low": 1.9e-06,
    "pamr_1_2_4_8_12_24_it10": 1.3e-06,
    "pamr_1_2_4_8_12_24_it10_sum": 1.6e-03,
    "pamr_1_2_it3": 6.4e-07,
    "pamr_1_2_it3_sum": 7.6e-04,
}
TLP_DEVIATION = {"": 1.2e-06, "sum": 1.0e-03, "S_diagonal": 8.0e-08}
FIRST_PHRASE, PHRASES = 3, 8
"""The arrays' maps are cosines with so many phrases of the vocabulary of 20 classes, from this one on."""


def has_refiners(folder: Path) -> bool:
    """Say whether a folder holds arrays of refiners."""
    return (folder / "pamr.npz").is_file()


def check_refiners(folder: Path, report: Report) -> None:
    """Check `pamr.npz`, and the keys of `pearl.npz` that belong to its refiner.

    Windows, weights and text vectors are those of a folder like tests/golden: this one, the one above or beside it, or
    ours.
    """
    base = base_of(folder)
    pamr, windows = load_arrays(folder / "pamr.npz"), load_arrays(base / "inputs.npz")
    for key, expected in pamr.items():
        name, quantity = key.split("/")
        plain, _, step = quantity.partition("_every")
        window, low = torch.from_numpy(windows[name]), pamr[f"{name}/scores_low"]
        found = _pamr(plain.removesuffix("_sum"), window, low, base)
        if plain.endswith("_sum"):
            found = found.double().sum((1, 2))
        elif step:
            found = found[:, :: int(step), :: int(step)]
        report.close(f"pamr/{key}", found, expected, 10 * PAMR_DEVIATION[plain])
    if (folder / "pearl.npz").is_file():
        _check_tlp(folder, base, pamr, windows, report)


def _pamr(quantity: str, window: Tensor, low: np.ndarray, base: Path) -> Tensor:
    """Compute one quantity on a window [1, 3, height, width] from its score maps on the patch grid."""
    if quantity == "scores_low":
        encoder, head = load_encoder(base), build_head("naclip")
        features = head.features(encoder, encoder.trace(window, head.request(encoder.depth)))[0]
        cosines = _vectors(base) @ F.normalize(features, dim=-1).T
        return cosines.view(*low.shape)
    dilations = tuple(map(int, re.findall(r"_(\d+)(?=_|$)", quantity)))
    if quantity.startswith("affinity"):
        return neighbor_weights(window[0], dilations)
    iterations = int(re.findall(r"_it(\d+)", quantity)[0])
    if quantity.endswith("_from_low"):
        size = window.shape[2:]
        maps = F.interpolate(torch.from_numpy(low).float()[None], size, mode="bilinear", align_corners=True)[
            0
        ]
        weights = neighbor_weights(window[0], dilations)
        for _ in range(iterations):
            maps = spread_to_neighbors(maps, weights, dilations)
        return maps
    refiner = PamrRefiner(PamrConfig(iterations, dilations))
    return _refined(refiner, low, window[0], tuple(window.shape[2:]))


def _check_tlp(
    folder: Path,
    base: Path,
    pamr: dict[str, np.ndarray],
    windows: dict[str, np.ndarray],
    report: Report,
) -> None:
    arrays = load_arrays(folder / "pearl.npz")
    vectors = _vectors(base)
    for key in [key for key in arrays if "/tlp_grid" in key]:
        name, quantity = key.split("/")
        plain, _, every = quantity.partition("_every")
        step = int(every or 1)
        grid, _, what = plain.removeprefix("tlp_grid").partition("_")
        label = f"pearl/{key}"
        if what == "margin_min":
            report.skip("pearl/tlp_margin_min", "how near labels are to flipping; not computed")
            continue
        if what == "S_diagonal":
            report.close(label, own_similarity(vectors.double()), arrays[key], 10 * TLP_DEVIATION[what])
            continue
        size = arrays[f"{name}/tlp_grid{grid}_label"].shape
        window = torch.from_numpy(windows[name])[0]
        found = _refined(
            TlpRefiner(TlpConfig(grid=int(grid))), pamr[f"{name}/scores_low"], window, size, vectors
        )
        if what == "label":
            report.equal(label, found.argmax(0), arrays[key])
        elif what == "sum":
            report.close(label, found.double().sum((1, 2)), arrays[key], 10 * TLP_DEVIATION[what])
        else:
            report.close(label, found[:, ::step, ::step], arrays[key], 10 * TLP_DEVIATION[what])


def _refined(
    refiner: Refiner,
    scores: np.ndarray,
    window: Tensor,
    size: tuple[int, ...],
    vectors: Tensor | None = None,
) -> Tensor:
    """Refine one window's score maps [maps, rows, columns] as those of an image that is one window."""
    height, width = window.shape[1:]
    layout = WindowLayout.of(height, width, WindowConfig(size=max(height, width), stride=max(height, width)))
    stitcher = Stitcher((layout,), scores.shape[1:], ((size[0], size[1]),))
    tiled = stitcher.tile(torch.from_numpy(scores).float().flatten(1)[None])[0]
    maps = ScoreMaps(tiled, stitcher, torch.zeros(len(tiled), 1) if vectors is None else vectors)
    result = torch.full((len(tiled), *stitcher.size), torch.nan)
    for piece in refiner.refine(maps, Guide(window, stitcher.size)):
        result[piece.maps, piece.rows, piece.columns] = piece.values
    return result


def _vectors(base: Path) -> Tensor:
    raw = torch.from_numpy(load_arrays(base / "freecp_stages.npz")["k20/text_raw"]).float()
    return F.normalize(raw, dim=-1)[FIRST_PHRASE : FIRST_PHRASE + PHRASES]


def base_of(folder: Path) -> Path:
    """Find the tower and the windows of a folder."""
    beside = [folder.parent / folder.name.replace("_more", ""), folder.parent / "golden"]
    for candidate in (folder, folder.parent, *beside):
        if all((candidate / f"{name}.npz").is_file() for name in ("tiny_vit", "inputs", "freecp_stages")):
            return candidate
    return Path(__file__).parent / "golden"
