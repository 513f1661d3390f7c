"""Checks the image tower, the hosts and SFP against the reference arrays; see tests/golden/README.md."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.dense_heads.similarity_guided import (
    SimilarityLayers,
    attend_guided,
    guide,
    second_stream,
)
from ovss_core.feature_purification.mitigation import repair_tokens
from ovss_core.feature_purification.outliers import (
    attention_outliers,
    local_outlier_factor,
    local_outlier_factor_outliers,
)
from tests.golden_report import Report

# Deviation of the released codes in float32 (tests/golden/README.md); ours may have ten times as much.
ENCODER_DEVIATION = {
    "cls": 2.4e-06,
    "patch": 3.4e-06,
    "embed": 4.5e-06,
    "hidden": 9.2e-06,
    "attn_mean": 5.8e-07,
    "attn_full_L1_L6_L11": 8.1e-07,
    "hidden_L11_L12": 8.7e-06,
    "hidden_L4_L9_L11_L12": 7.5e-06,
    "attn_mean_L1_L11_L12": 4.4e-07,
}
SFP_DEVIATION = {
    "attn_cls_x1.5": 9.6e-08,
    "attn_self": 3.5e-07,
    "purified_h11": 6.9e-06,
    "purified_h9": 6.4e-06,
    "S_h9_thresholded": 4.8e-07,
    "S_h4_thresholded": 5.1e-07,
    "after_S_h9": 2.9e-06,
    "last_block_attn": 5.1e-06,
    "after_S_h4": 4.6e-06,
    "multi_level_attn": 5.2e-06,
    "multi_level_after_S_h4": 5.8e-06,
    "features": 1.8e-06,
}
# host, FreeCP's form, float32 deviation
HEADS = {
    "maskclip_freecp": ("maskclip", True, 4.1e-06),
    "sclip_freecp": ("sclip", True, 5.1e-06),
    "clearclip_freecp": ("clearclip", True, 5.4e-06),
    "vanilla_freecp": ("clip", True, 3.7e-06),
    "gem_freecp": ("gem", True, 2.4e-06),
    "gem_original": ("gem", False, 2.3e-06),
    "clearclip_original": ("clearclip", False, 3.9e-06),
    "maskclip_clearclip_noresidual": ("maskclip", False, 4.0e-06),
    "sclip_original": ("sclip", False, 3.1e-06),
    "naclip_original": ("naclip", False, 3.9e-06),
    "scclip_original": ("scclip", False, 1.5e-06),
}
OTHER_HEADS = {
    "gem_clearclip_noresidual": "GEM inside ClearCLIP's repository, not a host here",
    "sclip_clearclip_noresidual": "SCLIP inside ClearCLIP's repository, not a host here",
    "naclip_arch_vanilla": "NACLIP's ablation with residual and feed-forward, not a host here",
    "kk_reduced": "NACLIP's ablation without the neighborhood, not a host here",
    "resclip_rcs_only": "a part of ResCLIP, not a host here",
}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def load_encoder(folder: Path) -> ImageEncoder:
    """Build the reference ViT from its arrays; sizes are read from the shapes."""
    weights = load_arrays(folder / "tiny_vit.npz")
    layers, width, heads, patch, resolution, output = weights.pop(
        "meta/layers_width_heads_patch_resolution_outdim"
    ).astype(int)
    visual = VisionTransformer(
        int(resolution),
        int(patch),
        int(width),
        int(layers),
        int(heads),
        4.0,
        output_dim=int(output),
        act_layer=QuickGELU,
    )
    visual.load_state_dict({key: torch.from_numpy(value).float() for key, value in weights.items()})
    return ImageEncoder(visual)


class FreeCPEncoder:
    """The reference ViT as the FreeCP checks call it."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder

    def mean_attention(self, pixels: Tensor) -> Tensor:
        """Mean over blocks 1..L-1 and heads of the patch-patch attention."""
        attention = self._encoder.trace(pixels, TraceRequest(mean_attention=True)).mean_attention
        assert attention is not None
        return attention

    def dense_features(self, pixels: Tensor, head: str) -> Tensor:
        """A host's features in FreeCP's form, not normalized."""
        chosen = build_head(head, HeadOptions(purified=True))
        return chosen.features(
            self._encoder, self._encoder.trace(pixels, chosen.request(self._encoder.depth))
        )

    def class_features(self, pixels: Tensor) -> Tensor:
        """The plain encoder's class-token features."""
        return self._encoder.class_features(pixels)


def windows_of(keys: Mapping[str, object]) -> list[str]:
    """Names of the pictures that a file's keys begin with."""
    return sorted({key.split("/")[0] for key in keys if "/" in key})


def check_encoder(folder: Path, encoder: ImageEncoder, report: Report) -> None:
    inputs = load_arrays(folder / "inputs.npz")
    for key, expected in load_arrays(folder / "vanilla_encoder.npz").items():
        name, quantity = key.split("/")
        computed = _vanilla(encoder, torch.from_numpy(inputs[name]), quantity)
        report.close(f"vanilla_encoder/{key}", computed, expected, 10 * ENCODER_DEVIATION[quantity])


def _vanilla(encoder: ImageEncoder, window: Tensor, quantity: str) -> Tensor:
    depth = encoder.depth
    trace = encoder.trace(window, TraceRequest(hidden=frozenset(range(depth))))
    inputs = [trace.hidden[layer] for layer in range(depth)]
    last = encoder.blocks[-1].forward(trace.tokens)
    if quantity == "cls":
        return encoder.class_features(window)[0]
    if quantity == "patch":
        return encoder.project(last)[0, 1:]
    if quantity == "embed":
        return inputs[0][0]
    layers = [int(part[1:]) for part in quantity.split("_") if part[0] == "L"] or list(range(1, depth + 1))
    if quantity.startswith("hidden"):
        return torch.stack([[*inputs[1:], last][layer - 1][0] for layer in layers])
    if quantity.startswith("attn_mean"):
        return torch.stack(
            [encoder.blocks[i - 1].forward_with_attention(inputs[i - 1])[1][0] for i in layers]
        )
    maps = []
    for layer in layers:
        query, key, _ = encoder.blocks[layer - 1].query_key_value(inputs[layer - 1])
        maps.append((encoder.blocks[layer - 1].scale * query @ key.transpose(-1, -2)).softmax(-1)[0])
    return torch.stack(maps)


def check_heads(folder: Path, encoder: ImageEncoder, report: Report) -> None:
    inputs = load_arrays(folder / "inputs.npz")
    for key, expected in load_arrays(folder / "dense_heads.npz").items():
        name, quantity = key.split("/")
        window, label = torch.from_numpy(inputs[name]), f"dense_heads/{key}"
        if quantity in OTHER_HEADS:
            report.skip(f"dense_heads/{quantity}", OTHER_HEADS[quantity])
        elif quantity in HEADS:
            host, purified, deviation = HEADS[quantity]
            head = build_head(host, HeadOptions(purified=purified))
            features = head.features(encoder, encoder.trace(window, head.request(encoder.depth)))
            report.close(label, features[0], expected, 10 * deviation)
        else:
            patches = encoder.trace(window, TraceRequest()).tokens[:, 1:]
            if quantity == "scclip_lof_scores":
                report.close(label, local_outlier_factor(patches)[0], expected, 10 * 3.3e-05)
            elif quantity == "scclip_lof_outliers":
                report.equal(
                    label, local_outlier_factor_outliers(patches)[0].nonzero()[:, 0], np.sort(expected)
                )
            else:
                report.skip(label, "unknown key")


def check_sfp(folder: Path, encoder: ImageEncoder, report: Report) -> None:
    inputs = load_arrays(folder / "inputs.npz")
    arrays = load_arrays(folder / "sfp_released.npz")
    for name in windows_of(arrays):
        window = torch.from_numpy(inputs[name])
        stages = _sfp_stages(encoder, window)
        for key in [key for key in arrays if key.startswith(f"{name}/")]:
            quantity, label = key.split("/")[1], f"sfp_released/{key}"
            if quantity == "margins":
                report.skip("sfp_released/margins", "how near the decisions are to flipping; not computed")
            elif quantity == "all_features_nan":
                finite = bool(stages["features"].isfinite().all())
                report(
                    f"sfp_released/{name}/features are finite where the released code's are not",
                    not finite,
                    0,
                )
            elif quantity == "purified_h11_is_zero":
                kept = _isolated_unchanged(encoder, window, arrays[key])
                report(f"sfp_released/{name}/enclosed outlier is left unchanged", not kept, 0)
            elif quantity in ("outliers_ranked", "n_candidates"):
                report.equal(label, stages[quantity], arrays[key])
            else:
                report.close(label, stages[quantity], arrays[key], 10 * SFP_DEVIATION[quantity])


def _sfp_stages(encoder: ImageEncoder, window: Tensor) -> dict[str, Tensor]:
    """Every intermediate of the released form, by the names of the reference arrays."""
    head, layers, last = build_head("sfp"), SimilarityLayers.of(encoder.depth), encoder.depth - 1
    trace = encoder.trace(window, head.request(encoder.depth))
    attention, own = trace.class_attention[last], trace.self_attention[last]
    outliers = attention_outliers(attention, own, 1.5, 10)
    guidance = guide(trace, layers, outliers, attend_before_cut=False)
    aggregated = guidance.semantic.apply(guidance.patches)
    class_token = trace.tokens[:, :1]
    attended = attend_guided(encoder, aggregated, class_token, ("key", "query"), guidance.attention)
    assert trace.hidden_sum is not None
    summed_class = trace.hidden_sum[:, :1]
    second = attend_guided(encoder, trace.hidden_sum[:, 1:], summed_class, (), guidance.attention)
    found = outliers[0].nonzero()[:, 0]
    return {
        "attn_cls_x1.5": 1.5 * attention[0],
        "attn_self": own[0],
        "n_candidates": attention_outliers(attention, own, 1.5)[0].sum(),
        "outliers_ranked": found[attention[0, found].argsort(descending=True)],
        "purified_h11": guidance.patches[0],
        "purified_h9": repair_tokens(trace.hidden[layers.semantic][:, 1:], outliers, trace.grid)[0],
        "S_h9_thresholded": guidance.semantic.weights[0],
        "S_h4_thresholded": guidance.spatial.weights[0],
        "after_S_h9": aggregated[0],
        "last_block_attn": (attended - 0.3 * class_token)[0],
        "after_S_h4": guidance.spatial.apply(attended)[0],
        "multi_level_attn": (second - 0.3 * summed_class)[0],
        "multi_level_after_S_h4": second_stream(encoder, trace, guidance, ())[0],
        "features": head.features(encoder, trace)[0],
    }


def _isolated_unchanged(encoder: ImageEncoder, window: Tensor, patches: np.ndarray) -> bool:
    head = build_head("sfp")
    trace = encoder.trace(window, head.request(encoder.depth))
    last = encoder.depth - 1
    outliers = attention_outliers(trace.class_attention[last], trace.self_attention[last], 1.5, 10)
    repaired = repair_tokens(trace.tokens, outliers, trace.grid)
    index = torch.from_numpy(patches) + 1
    return torch.equal(repaired[:, index], trace.tokens[:, index])
