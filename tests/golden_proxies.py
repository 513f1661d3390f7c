"""Checks second towers and the hosts that read them against the reference arrays; see tests/golden_backbone/README.md."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, WindowRegions
from ovss_core.config import LabelConfig, ProxyClipConfig, WindowConfig
from ovss_core.dense_heads import DenseHead, HeadOptions, build_head
from ovss_core.dense_heads.corrclip import CorrClipHead, correlation_attention, region_class_tokens
from ovss_core.dense_heads.proxy_attention import gather_values
from ovss_core.dense_heads.proxyclip import proxy_attention
from ovss_core.dense_heads.region_scope import merge_regions, nearest_on_grid, visible_patches
from ovss_core.engine.labels import PhraseRule, label_by_probability
from ovss_core.images.resize import CLIP_MEAN, CLIP_STD
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from ovss_core.proxies.tower import IMAGENET_MEAN, IMAGENET_STD, ProxyTower
from ovss_core.regions import RegionMap, vote
from tests.golden_encoder import load_arrays, load_encoder
from tests.golden_report import Report
from tests.golden_sliding import SUM_TOLERANCE, image_of, unit_rows

HEADS = 3
POSITIONS = {"dino8": "scale", "dino16": "scale", "dino14reg": "antialias"}
OTHERS = {
    "lavg": "LaVG is no host here (its first stage is random as released)",
    "trident": "Trident is no host here (superseded at lower cost)",
    "radseg": "RADSeg is no host here (its text side needs a head that timm does not carry)",
    "gla": "GLA-CLIP is no host here (one attention over all windows of an image)",
}
PADDING = 10_000
"""The region that the released CorrCLIP makes of a window's padding."""
MULTIPLE = 56
"""The released codes pad smaller windows with zeros, symmetrically, to a multiple of so many pixels."""
NEAR_CUT = 1e-6
WINDOW, STRIDE, LOGIT_SCALE, MIN_PROBABILITY = 112, 56, 40.0, 0.2

# Deviation of the released codes in float32 (the README of the arrays); ours may have ten times as much.
DEVIATION = {
    "proxy_tokens": 3.6e-06,
    "similarity_mean": 4.1e-08,
    "attention_every5": 4.3e-07,
    "features": 2.1e-06,
    "window_logits_every4": 5.1e-07,
    "logits_every7": 1.6e-06,
}
CORRCLIP_DEVIATION = {
    "proxy_vectors": 3.3e-07,
    "attention_every5": 3.0e-07,
    "main": 2.5e-06,
    "spatial": 3.2e-06,
    "region_class_tokens": 6.0e-06,
    "semantic": 1.8e-06,
    "features": 6.7e-06,
}


def load_towers(folder: Path) -> dict[str, ProxyTower]:
    """Build the reference ViTs from their arrays; sizes are read from the shapes."""
    arrays = load_arrays(folder / "tiny_dino.npz")
    return {
        tag: ProxyTower(_model(_below(arrays, tag)), POSITIONS[tag])  # type: ignore[arg-type]
        for tag in sorted({key.split("/")[0] for key in arrays})
    }


def _below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")
    }


def _model(weights: dict[str, np.ndarray]) -> VisionTransformer:
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    places = weights["pos_embed"].shape[1] - (0 if registers else 1)
    model = VisionTransformer(
        img_size=patch * int(places**0.5),
        patch_size=patch,
        embed_dim=width,
        depth=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks.")),
        num_heads=HEADS,
        num_classes=0,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        init_values=1.0 if "blocks.0.ls1.gamma" in weights else None,
    )
    model.load_state_dict({key: torch.from_numpy(value).float() for key, value in weights.items()})
    return model


@dataclass(frozen=True)
class Backbone:
    """The towers and inputs that one folder's arrays were made with."""

    encoder: ImageEncoder
    towers: dict[str, ProxyTower]
    windows: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path, base: Path, encoder: ImageEncoder) -> "Backbone":
        inputs = load_arrays(base / "inputs.npz")
        windows = {name: torch.from_numpy(values) for name, values in inputs.items() if name.startswith("w")}
        return cls(encoder, load_towers(folder), windows)

    def seen(self, window: Tensor) -> Tensor:
        """Normalize a window, which is CLIP's, for the second towers."""
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None]
            for values in (CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD)
        )
        return (window * std + mean - own_mean) / own_std

    def trace(self, window: Tensor, tag: str, head: DenseHead) -> EncoderTrace:
        request = head.request(self.encoder.depth)
        trace = self.encoder.trace(window, request)
        trace.proxy = self.towers[tag].features(self.seen(window), request.proxy)
        return trace


def check_proxies(folder: Path, base: Path, report: Report) -> None:
    """Check every file of a folder with second towers."""
    encoder = load_encoder(base)
    check_proxyclip(folder, base, encoder, report)
    check_corrclip(folder, base, encoder, report)
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in ("tiny_dino", "proxyclip", "corrclip", "tiny_vit", "inputs", "sliding_window"):
            for key in load_arrays(path):
                report.skip(f"{path.stem}/{key}", OTHERS.get(key.split("/")[0], "unknown key"))


def check_corrclip(folder: Path, base: Path, encoder: ImageEncoder, report: Report) -> None:
    arrays = load_arrays(folder / "corrclip.npz")
    backbone = Backbone.load(folder, base, encoder)
    shared = load_arrays(base / "sliding_window.npz")
    head = build_head("corrclip", HeadOptions(scoped=True))
    for key in [key for key in arrays if key.endswith("proxy_vectors")]:
        trace = backbone.trace(backbone.windows[key.split("/")[0]], "dino8", head)
        vectors = F.normalize(trace.proxy_features().vectors["query_plus_key"][0], dim=-1)
        report.close(f"corrclip/{key}", vectors, arrays[key], 10 * CORRCLIP_DEVIATION["proxy_vectors"])
    for first, second in sorted({tuple(key.split("/")[:2]) for key in arrays if key.count("/") == 2}):
        case = _below(arrays, f"{first}/{second}")
        if first == "sliding":
            photo = SlidingCase(shared, second, backbone, head, "dino8", case["regions"])
            photo.query_class = _background_first(photo.query_class)
            photo.check(case, report, f"corrclip/sliding/{second}")
            _check_vote(case, photo.labels(), report, f"corrclip/sliding/{second}")
        else:
            _check_regions(
                case, backbone, backbone.windows[first], head, report, f"corrclip/{first}/{second}"
            )


def _check_regions(
    case: dict[str, np.ndarray],
    backbone: Backbone,
    window: Tensor,
    head: DenseHead,
    report: Report,
    label: str,
) -> None:
    assert isinstance(head, CorrClipHead)
    encoder, trace = backbone.encoder, backbone.trace(window, "dino8", head)
    fine = trace.proxy_features().grid
    trace.regions = window_regions(case["regions"], fine)
    unit = F.normalize(trace.proxy_features().vectors["query_plus_key"], dim=-1)
    merged = merge_regions(unit, trace.regions.ids, trace.regions.count, head.settings.merge_distance)
    similarity = unit @ unit.mT
    attention = correlation_attention(unit, merged, head.settings.gain)
    coarse = nearest_on_grid(merged, fine, trace.grid)
    tokens = region_class_tokens(encoder, trace, coarse, trace.regions.count)[0]
    middle = torch.stack(
        [trace.hidden[layer] for layer in range(encoder.depth // 2, encoder.depth - 1)]
    ).mean(0)
    after = encoder._visual.ln_post
    owner = nearest_on_grid(coarse, trace.grid, fine)[0]
    block, grids = encoder.blocks[-1], (trace.grid, fine)
    stages = {
        "merged_regions": _as_released(merged[0], np.unique(_nearest(case["regions"], fine))).reshape(fine),
        "allowed": visible_patches(similarity, merged)[0],
        "attention_every5": attention[0, ::5],
        "main": after(gather_values(block, trace.tokens, attention, grids))[0],
        "spatial": after(gather_values(block, middle, attention, grids))[0],
        "region_class_tokens": tokens[coarse.unique()],
        "semantic": after(tokens)[owner],
        "features": head.features(encoder, trace)[0],
    }
    for key, expected in case.items():
        if key == "regions":
            report.skip("corrclip/regions", "what the case is made of, not computed")
        elif key in ("merged_regions", "allowed"):
            report.equal(f"{label}/{key}", stages[key], expected)
        elif key in stages:
            report.close(f"{label}/{key}", stages[key], expected, 10 * CORRCLIP_DEVIATION[key])
        else:
            report.skip(f"{label}/{key}", "unknown key")


def window_regions(regions: np.ndarray, grid: tuple[int, int]) -> WindowRegions:
    """Number a window's regions as the released code takes them: its smallest is the gap, even where it is a region."""
    table = _nearest(regions, grid)
    names = np.unique(table)
    return WindowRegions(torch.from_numpy(np.searchsorted(names, table).reshape(1, -1)), len(names) - 1)


def _as_released(merged: Tensor, names: np.ndarray) -> np.ndarray:
    """Name merged regions 10000, 10001, ... by their smallest member, unless there is one region alone."""
    found = merged.numpy()
    if len(names) < 3:
        found_names: np.ndarray = names.astype(np.int64)[found]
        return found_names
    kept = [number for number in np.unique(found) if number]
    named: np.ndarray = np.where(found == 0, int(names[0]), 10_000 + np.searchsorted(kept, found))
    return named


def _background_first(query_class: Tensor) -> Tensor:
    """The released CorrCLIP takes all queries but the last classes - 1 for the background's."""
    classes = int(query_class.max()) + 1
    behind = len(query_class) - (classes - 1)
    return torch.cat([torch.zeros(behind, dtype=torch.int64), torch.arange(1, classes)])


def check_proxyclip(folder: Path, base: Path, encoder: ImageEncoder, report: Report) -> None:
    arrays = load_arrays(folder / "proxyclip.npz")
    backbone = Backbone.load(folder, base, encoder)
    shared = load_arrays(base / "sliding_window.npz")
    cases = sorted(
        {tuple(key.split("/")[:2]) for key in arrays} - {("nan_case", key.split("/")[-1]) for key in arrays}
    )
    for tag, name in cases:
        case = _below(arrays, f"{tag}/{name}")
        if tag == "sliding":
            head = build_head("proxyclip")
            windows = SlidingCase(shared, name, backbone, head, "dino8")
            windows.check(case, report, f"proxyclip/sliding/{name}")
        else:
            _check_window(case, backbone, tag, name, unit_rows(shared["text_raw"]), report)
    _check_nan_case(_below(arrays, "nan_case"), backbone, report)


def _check_window(
    case: dict[str, np.ndarray], backbone: Backbone, tag: str, name: str, text: Tensor, report: Report
) -> None:
    window = backbone.windows[name]
    near = case["row_margin"] < NEAR_CUT  # such a row may gain or lose one entry in float32
    for key, expected in case.items():
        label, quantity = f"proxyclip/{tag}/{name}/{key}", key.rsplit("/", 1)[-1]
        settings = ProxyClipConfig()
        if "/" in key:
            beta, gamma = key.split("/")[0].split("_")
            settings = ProxyClipConfig(float(beta.removeprefix("beta")), float(gamma.removeprefix("gamma")))
        head = build_head("proxyclip", HeadOptions(settings=settings))
        trace = backbone.trace(window, tag, head)
        tokens = trace.proxy_features().vectors["tokens"]
        unit = F.normalize(tokens[0], dim=-1)
        attention = proxy_attention(tokens, settings.beta, settings.gamma)[0]
        if quantity == "row_margin":
            report.skip("proxyclip/row_margin", "says which rows rounding may change; used, not computed")
        elif quantity == "kept_share":
            slack = near.sum() / len(near) ** 2
            report.close(label, (attention > 0).double().mean(), expected, slack)
        elif quantity == "proxy_tokens":
            report.close(label, tokens[0], expected, 10 * DEVIATION[quantity])
        elif quantity == "similarity_mean":
            report.close(label, (unit @ unit.mT).mean(), expected, 10 * DEVIATION[quantity])
        elif quantity == "attention_every5":
            rows = ~near[::5]
            report.close(label, attention[::5][rows], expected[rows], 10 * DEVIATION[quantity])
        elif quantity == "features":
            features = head.features(backbone.encoder, trace)[0]
            report.close(label, features[~near], expected[~near], 10 * DEVIATION[quantity])
        elif quantity == "window_logits_every4":
            features = F.normalize(head.features(backbone.encoder, trace), dim=-1)
            maps = (text @ features.mT).unflatten(2, trace.proxy_features().grid)
            upsampled = F.interpolate(maps, size=window.shape[2:], mode="bilinear", align_corners=False)
            report.close(label, upsampled[0, :, ::4, ::4], expected, 10 * DEVIATION[quantity])
        else:
            report.skip(label, "unknown key")


def _check_nan_case(case: dict[str, np.ndarray], backbone: Backbone, report: Report) -> None:
    """Where the released code is NaN all over, ours must be finite, every patch seeing itself at least."""
    if not case:
        return
    tokens = torch.from_numpy(case["proxy_tokens"])[None].float()
    unit = F.normalize(tokens[0], dim=-1)
    report.close(
        "proxyclip/nan_case/similarity_mean", (unit @ unit.mT).mean(), case["similarity_mean"], 10 * 8.7e-08
    )
    attention = proxy_attention(tokens, ProxyClipConfig().beta, ProxyClipConfig().gamma)[0]
    report.skip("proxyclip/nan_case/proxy_tokens", "what the case is made of, not computed")
    sound = bool(attention.isfinite().all()) and bool((attention.diagonal() > 0).all())
    failed = bool(case["all_features_nan"]) and not sound
    report(
        "proxyclip/nan_case/all_features_nan: rows are finite where the released code's are not", failed, 0
    )


class SlidingCase:
    """One photograph through windows as the released codes have them: padded with zeros where it is too small."""

    def __init__(
        self,
        shared: dict[str, np.ndarray],
        name: str,
        backbone: Backbone,
        head: DenseHead,
        tag: str,
        regions: np.ndarray | None = None,
    ) -> None:
        photo = _below(shared, name)
        image = image_of(photo["input_bgr_u8"])
        self.original = int(photo["ori_shape"][0]), int(photo["ori_shape"][1])
        self.layout = WindowLayout.of(
            image.shape[2], image.shape[3], WindowConfig(size=WINDOW, stride=STRIDE)
        )
        self.text, self.query_class = unit_rows(shared["text_raw"]), torch.from_numpy(shared["query_idx"])
        resized = None if regions is None else _nearest(regions, self.layout.image_size)
        total = torch.zeros(len(self.text), *self.layout.image_size)
        count = torch.zeros(self.layout.image_size)
        height, width = self.layout.window_size
        for top, left in self.layout.origins:
            place = slice(top, top + height), slice(left, left + width)
            total[:, place[0], place[1]] += self._window_logits(
                image[..., place[0], place[1]],
                backbone,
                head,
                tag,
                None if resized is None else resized[place],
            )
            count[place] += 1
        self.logits = F.interpolate(
            (total / count)[None], size=self.original, mode="bilinear", align_corners=False
        )[0]

    def _window_logits(
        self, window: Tensor, backbone: Backbone, head: DenseHead, tag: str, regions: np.ndarray | None
    ) -> Tensor:
        (above, below), (left, right) = (_padding(side) for side in window.shape[2:])
        padded = F.pad(window, (left, right, above, below))
        trace = backbone.trace(padded, tag, head)
        if regions is not None:
            around = np.pad(
                regions.astype(np.int64), ((above, below), (left, right)), constant_values=PADDING
            )
            trace.regions = window_regions(around, trace.proxy_features().grid)
        features = F.normalize(head.features(backbone.encoder, trace), dim=-1)
        maps = (self.text @ features.mT).unflatten(2, trace.proxy_features().grid)
        logits = F.interpolate(maps, size=padded.shape[2:], mode="bilinear", align_corners=False)[0]
        return logits[:, above : above + window.shape[2], left : left + window.shape[3]]

    def check(self, case: dict[str, np.ndarray], report: Report, label: str) -> None:
        """Compare stitched logits and labels."""
        report.close(
            f"{label}/logits_every7",
            self.logits[:, ::7, ::7],
            case["logits_every7"],
            10 * DEVIATION["logits_every7"],
        )
        magnitude = self.logits.double().abs().sum((1, 2)).numpy().max()
        sums = self.logits.double().sum((1, 2)).numpy()
        difference = np.abs(sums - case["logits_query_sum"]).max() / magnitude
        report(f"{label}/logits_query_sum", difference, SUM_TOLERANCE)
        clear = ~case["near_tie_mask"]
        report.skip(
            f"{label.split('/')[0]}/sliding/near_tie_mask", "says where labels may differ; used, not computed"
        )
        if "label_before_vote" not in case:
            report.equal(f"{label}/label", self.labels()[clear], case["label"][clear])

    def labels(self) -> np.ndarray:
        """Label by probability, synonyms by maximum, below the threshold class 0."""
        return labels_of(self.logits, self.query_class)


def labels_of(logits: Tensor, query_class: Tensor) -> np.ndarray:
    """Run the label rule on maps that lie at the image's size already: every pixel a patch of one window."""
    height, width = logits.shape[1:]
    layout = WindowLayout.of(height, width, WindowConfig(size=max(height, width), stride=max(height, width)))
    stitcher = Stitcher((layout,), (height, width), ((height, width),))
    rule = PhraseRule(query_class, int(query_class.max()) + 1, 0)
    config = LabelConfig(logit_scale=LOGIT_SCALE, min_probability=MIN_PROBABILITY, background="first_class")
    tiled = stitcher.tile(logits.flatten(1)[None])
    return label_by_probability(tiled, rule, stitcher, config).label_maps[0].numpy()


def _nearest(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(new) * old // new for old, new in zip(regions.shape, size, strict=True))
    nearest: np.ndarray = regions[rows][:, columns]
    return nearest


def _padding(side: int) -> tuple[int, int]:
    missing = -side % MULTIPLE
    return missing // 2, missing - missing // 2


def _check_vote(case: dict[str, np.ndarray], before: np.ndarray, report: Report, label: str) -> None:
    """The vote of the released labels must be the released vote; that of ours wherever near ties cannot turn it."""
    near = case["near_tie_mask"]
    report.equal(f"{label}/label_before_vote", before[~near], case["label_before_vote"][~near])
    regions = case["regions"].astype(np.int32) - int(case["regions"].min())
    map_ = RegionMap.of_array(regions)
    voted, votes = vote(case["label_before_vote"], map_)
    report.equal(f"{label}/label", voted, case["label"])
    report.equal(f"{label}/vote_top2", _largest_two(case["label_before_vote"], regions), case["vote_top2"])
    counted = [(entry.pixels, round(entry.agreement * entry.pixels)) for entry in votes]
    sizes = np.bincount(regions.reshape(-1))[1:]
    report.equal(
        f"{label}/vote_top2, as counted", counted, list(zip(sizes, case["vote_top2"][:, 0], strict=True))
    )
    doubtful = [
        number
        for number, (most, second) in enumerate(case["vote_top2"], 1)
        if most - second <= 2 * near[regions == number].sum()
    ]
    settled = ~np.isin(regions, [0, *doubtful]) | ((regions == 0) & ~near)
    report.equal(f"{label}/label, of our own labels", vote(before, map_)[0][settled], case["label"][settled])


def _largest_two(labels: np.ndarray, regions: np.ndarray) -> list[list[int]]:
    found = []
    for number in range(1, int(regions.max()) + 1):
        counts = np.sort(np.bincount(labels[regions == number], minlength=2))[::-1]
        found.append([int(counts[0]), int(counts[1])])
    return found
