"""Checks the further hosts against arrays of their authors' codes; see tests/golden/more/README.md.

A folder of that layout holds arrays alone: the tower, the windows and the phrases are those of a folder like
tests/golden, which `base_of` finds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.class_purification.regions import box_union, quantize, threshold_regions
from ovss_core.clip.positions import resample_positions
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace
from ovss_core.config import (
    CarConfig,
    CliperConfig,
    ClipSurgeryConfig,
    CliptraseConfig,
    HeadSettings,
    ItaClipConfig,
    PearlConfig,
    ResClipBase,
    ResClipConfig,
    RfClipConfig,
    VisualPrompt,
)
from ovss_core.dense_heads import DenseHead, HeadOptions, LastBlockHead, build_head
from ovss_core.dense_heads.base import self_attention
from ovss_core.dense_heads.cliper import CliperHead, read_along, refined_attention
from ovss_core.dense_heads.clipsurgery import ClipSurgeryHead, surgery_weights
from ovss_core.dense_heads.cliptrase import CliptraseHead, less_class, token_correlation, vote
from ovss_core.dense_heads.clusters import ENLARGED, Clusters, cluster_by_density
from ovss_core.dense_heads.label_feedback import coarse_probability, label_attention, label_patches
from ovss_core.dense_heads.pearl import center, polar_steps
from ovss_core.dense_heads.resclip import ResClipHead
from ovss_core.dense_heads.rfclip import RfClipHead, decode, guide_tokens, propagate
from ovss_core.dense_heads.scoring import EncodedWindows, ScoringHead, Words
from ovss_core.feature_purification.similarity import cut_similarity, patch_similarity
from ovss_core.images.resize import CLIP_MEAN, CLIP_STD
from ovss_core.vocabulary_filter.activation import (
    Sight,
    activation_maps,
    channel_weights,
    masks_of_words,
    spread_boxes,
)
from ovss_core.vocabulary_filter.car import FilterWords, WordFilter
from tests.golden_encoder import load_arrays, load_encoder
from tests.golden_report import Report

GOLDEN = Path(__file__).parent / "golden"
ELSEWHERE = {
    "pamr": "a refiner, no host: its checks stand in rows named pamr",
    "fsa": "a plug-in for a second tower's attention, no host here",
    "floss": "fuses the labels of several sets of templates, no host",
}
MARGIN = "how near the decisions are to flipping; not computed"
SETTING = "an input"


@dataclass(frozen=True)
class Case:
    """One file of arrays, and what its systems ran on."""

    system: str
    arrays: Mapping[str, np.ndarray]
    encoder: ImageEncoder
    windows: Mapping[str, np.ndarray]
    phrases: Tensor
    other_phrases: Tensor
    report: Report

    def window(self, name: str) -> Tensor:
        """Return a window's normalized pixels."""
        return torch.from_numpy(self.windows[name])

    def close(self, key: str, actual: object, deviation: float) -> None:
        """Compare an array within ten times what float32 cost the authors' code."""
        self.report.close(f"{self.system}/{key}", actual, self.arrays[key], 10 * deviation)

    def equal(self, key: str, actual: object) -> None:
        """Compare decisions, of which none may differ."""
        self.report.equal(f"{self.system}/{key}", actual, self.arrays[key])

    def equal_or_close(self, key: str, actual: np.ndarray, deviation: float) -> None:
        """Compare decisions, or numbers where the array holds such."""
        if self.arrays[key].dtype.kind == "f":
            self.close(key, actual, deviation)
        else:
            self.equal(key, actual)

    def skip(self, key: str, reason: str) -> None:
        """Name an array that is not checked."""
        self.report.skip(f"{self.system}/{key}", reason)

    def every(self, key: str, actual: Tensor, deviation: float) -> None:
        """Compare maps of which every n-th row and column is stored."""
        step = int(key.rsplit("_every", 1)[1])
        self.close(key, actual[:, ::step, ::step], deviation)


def is_further(folder: Path) -> bool:
    """Say whether a folder has this layout."""
    names = {path.stem for path in folder.glob("*.npz")}
    return bool(names & {*CHECKS, *ELSEWHERE}) and not (folder / "tiny_vit.npz").is_file()


def base_of(folder: Path) -> Path:
    """Find the tower and the windows of a folder: in it, above it, in a folder of like name beside it, or ours."""
    beside = [folder.parent / folder.name.replace("_more", ""), folder.parent / "golden"]
    for candidate in (folder, folder.parent, *beside):
        if (candidate / "tiny_vit.npz").is_file() and (candidate / "inputs.npz").is_file():
            return candidate
    return GOLDEN


def check_further(folder: Path, report: Report) -> None:
    """Report every array of every file of FOLDER."""
    base = base_of(folder)
    with torch.inference_mode(False):  # CaR's gradients run through the weights
        encoder = load_encoder(base)
    windows = load_arrays(base / "inputs.npz")
    with np.load(base / "freecp_stages.npz") as stages:
        phrases, others = (_unit(stages[f"k20/{name}"]) for name in ("text_raw", "text_llm_raw"))
    for path in sorted(folder.glob("*.npz")):
        if path.stem in ELSEWHERE:
            for key in np.load(path).files:
                report.skip(f"{path.stem}/{key}", ELSEWHERE[path.stem])
        elif path.stem in CHECKS:
            case = Case(path.stem, load_arrays(path), encoder, windows, phrases, others, report)
            CHECKS[path.stem](case)


def _unit(values: np.ndarray) -> Tensor:
    return F.normalize(torch.from_numpy(values).float(), dim=-1)


def _head(name: str, settings: HeadSettings | None = None) -> DenseHead:
    return build_head(name, HeadOptions(settings=settings))


def _trace(case: Case, head: DenseHead, window: str, **changes: object) -> EncoderTrace:
    request = replace(head.request(case.encoder.depth), **changes)  # type: ignore[arg-type]
    return case.encoder.trace(case.window(window), request)


def _tokens(case: Case, head: DenseHead, window: str) -> Tensor:
    """Compute features of all tokens of a window; the class token's too where the head changes the last block alone."""
    trace = _trace(case, head, window)
    if not isinstance(head, LastBlockHead):
        return head.features(case.encoder, trace)[0]
    block = case.encoder.blocks[-1]
    return case.encoder.project(head.combine(block, trace.tokens, head.attend(block, trace)))[0]


def _patches(case: Case, key: str, features: Tensor, deviation: float) -> None:
    """Compare features of patches; the class token's, which heads do not compute, is left out."""
    case.report.close(f"{case.system}/{key}", features, case.arrays[key][1:], 10 * deviation)


def check_clipsurgery(case: Case) -> None:
    """CLIP Surgery: its path, and the similarity that its paper calls feature surgery."""
    head = _head("clipsurgery")
    for key in case.arrays:
        window, _, quantity = key.rpartition("/")
        if quantity.startswith("positions_bilinear"):
            rows, columns = map(int, quantity.rsplit("_", 1)[1].split("x"))
            encoder = case.encoder
            table = load_table(encoder)
            case.close(key, resample_positions(table, encoder.base_grid, (rows, columns), "bilinear"), 3.6e-7)
        elif quantity == "features_released_positions":
            trace = _trace(case, head, window, resampling="bilinear")
            class_token = case.encoder.class_features(case.window(window), "bilinear")
            case.close(key, torch.cat([class_token, head.features(case.encoder, trace)[0]]), 3.3e-6)
        elif quantity == "features":
            case.close(key, _surgery_tokens(case, head, window), 3.0e-6)
        elif quantity.startswith("stream"):
            case.close(key, _surgery_stream(case, _trace(case, head, window)), 7.7e-6)
        elif quantity in ("class_weight", "similarity"):
            surgery = ClipSurgeryHead(HeadOptions(settings=ClipSurgeryConfig(feature_surgery=True)))
            encoded, _ = _encoded(case, surgery, window)
            words = Words(case.phrases, torch.zeros(len(case.phrases), dtype=torch.bool), case.phrases[:0])
            if quantity == "class_weight":
                case.close(key, surgery_weights(encoded.evidence["class_token"], words)[0][0], 6.9e-7)
            else:
                scores = surgery.scores(case.encoder, encoded, words).phrases[0].T
                _patches(case, key, scores - scores.mean(1, keepdim=True), 1.5e-6)
        elif quantity == "similarity_redundant":
            background = len(case.phrases) - 20
            named = case.phrases[background : background + case.arrays[key].shape[1]]
            tokens = F.normalize(_surgery_tokens(case, head, window), dim=-1)
            case.close(key, tokens @ (named - case.other_phrases[:1]).T, 7.3e-7)
        else:
            case.skip(key, "a display of single words and prompts drawn from it, not part of labelling")


def load_table(encoder: ImageEncoder) -> Tensor:
    """Return the learned positions of a tower, class token first."""
    return encoder._positions_for(encoder.base_grid, "scale").float()


def _surgery_tokens(case: Case, head: DenseHead, window: str) -> Tensor:
    class_token = case.encoder.class_features(case.window(window))
    return torch.cat([class_token, head.features(case.encoder, _trace(case, head, window))[0]])


def _surgery_stream(case: Case, trace: EncoderTrace) -> Tensor:
    first = min(trace.hidden)
    stream, found = trace.hidden[first], []
    for layer in range(first, case.encoder.depth):
        block = case.encoder.blocks[layer]
        value = block.value(trace.hidden[layer])
        stream = stream + block.output(self_attention(block, value, value))
        found.append(stream[0])
    return torch.stack(found)


CLIPTRASE_DEVIATION = {"features": 4.1e-6, "correlation_L11": 5.4e-7, "W": 7.4e-7}


def check_cliptrase(case: Case) -> None:
    """CLIPtrase: its features, clusters, and labels before and after they vote."""
    head = CliptraseHead(HeadOptions(settings=CliptraseConfig(clustering=True)))
    for window in _windows(case):
        trace = _trace(case, head, window)
        tokens = _tokens(case, head, window)
        correlation = token_correlation(case.encoder, trace)
        found = {"features": tokens, "correlation_L11": correlation[0], "W": less_class(correlation)[0]}
        for setting in sorted({key.split("/")[1] for key in case.arrays if key.startswith(f"{window}/c")}):
            if f"{window}/{setting}/eps_min" in case.arrays:
                distance, neighbors = case.arrays[f"{window}/{setting}/eps_min"]
                clusters = cluster_by_density(found["W"][None], trace.grid, float(distance), int(neighbors))
                size = case.window(window).shape[2], case.window(window).shape[3]
                found |= {
                    f"{setting}/{name}": value for name, value in _voted(case, clusters, tokens, size).items()
                }
        for key in (key for key in case.arrays if key.startswith(f"{window}/")):
            quantity = key.removeprefix(f"{window}/")
            if quantity.endswith("eps_min"):
                case.skip(key, SETTING)
            elif "margin" in quantity:
                case.skip(key, MARGIN)
            elif quantity in CLIPTRASE_DEVIATION:
                case.close(key, found[quantity], CLIPTRASE_DEVIATION[quantity])
            elif quantity.endswith("bg_label_before"):
                # stored after the background's phrases became one; what they were one by one is not contractual
                case.report.equal(f"cliptrase/{key}", found[quantity], case.arrays[key].clip(max=20))
            elif quantity.endswith("cluster_maps_median"):
                case.close(key, found[quantity], 5.0e-7)
            else:
                case.equal(key, found[quantity])


def _voted(case: Case, clusters: Clusters, tokens: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Label the pixels of a window in the authors' three ways, before and after the clusters vote."""
    background = len(case.phrases) - 20
    ordered = torch.cat([case.phrases[background:], case.phrases[:background]])
    logits = 100 * F.normalize(tokens, dim=-1) @ ordered.T
    grid = clusters.maps.shape[2] // ENLARGED, clusters.maps.shape[3] // ENLARGED
    index = clusters.index_at(size)
    found = {
        "labels": clusters.numbers[0],
        "cluster_maps_median": clusters.maps[0],
        "cluster_index": index[0],
    }
    ways = {"plain": logits[1:, :20], "cls": logits[1:, :20] * logits[:1, :20], "bg": logits[1:]}
    for way, maps in ways.items():
        large = F.interpolate(maps.T.unflatten(1, grid)[None], size=size, mode="bilinear")
        before = large.argmax(1)
        merged = before.clamp_max(20)
        after = vote(merged.flatten(1), index.flatten(1), clusters, len(ordered))
        found[f"{way}_label_before"] = merged[0]
        found[f"{way}_label"] = after.view(size)
    return found


RESCLIP_DEVIATION = {"resclip": 3.4e-6, "clearclip": 2.8e-6, "sclip": 2.9e-6}
RESCLIP_CASES = "voc20,ade,obj"


def check_resclip(case: Case) -> None:
    """ResCLIP: residual attention on three heads, and the labels that it feeds back."""
    known: dict[str, dict[str, Tensor]] = {}
    for key in case.arrays:
        window, _, rest = key.partition("/")
        quantity, _, stage = rest.partition("/")
        named = re.fullmatch(r"(resclip|clearclip|sclip)_(rcs_lambda([\d.]+)|\w+)", quantity)
        if "tau_lambda" in key or key.startswith("temp_thd"):
            case.skip(key, SETTING)
        elif "margin" in stage:
            case.skip(key, MARGIN)
        elif named and named[3]:
            head = ResClipHead(HeadOptions(settings=ResClipConfig(_base(named[1]), float(named[3]), 2.0)))
            features = head.features(case.encoder, _trace(case, head, window))[0]
            _patches(case, key, features, RESCLIP_DEVIATION[named[1]])
        elif named:
            if f"{window}/{quantity}" not in known:
                known[f"{window}/{quantity}"] = _feedback_stages(case, window, named[1], named[2])
            found = known[f"{window}/{quantity}"]
            if stage == "features":
                _patches(case, key, found[stage], RESCLIP_DEVIATION[named[1]])
            elif stage == "patch_label":
                case.equal(key, found[stage])
            elif stage == "attn_sfr":
                case.close(key, found[stage], 1.3e-8)
            else:
                case.every(key, found["coarse_prob"], 1.0e-5)


def _base(name: str) -> ResClipBase:
    return "naclip" if name == "resclip" else name  # type: ignore[return-value]


def _feedback_stages(case: Case, window: str, name: str, setting: str) -> dict[str, Tensor]:
    place = RESCLIP_CASES.split(",").index(setting)
    (gain, share), (feedback_gain, weight) = (
        case.arrays[f"{kind}_tau_lambda/{RESCLIP_CASES}"][place].tolist() for kind in ("rcs", "sfr")
    )
    threshold = float(case.arrays[f"temp_thd/{RESCLIP_CASES}"][place])
    settings = ResClipConfig(_base(name), share, gain, True, weight, feedback_gain, threshold)
    head = ResClipHead(HeadOptions(settings=settings))
    encoded, trace = _encoded(case, head, window)
    first = case.phrases @ encoded.features.mT
    label = label_patches(first, case.window(window), encoded.grid, threshold)
    attention = label_attention(label, encoded.grid)
    kept = encoded.evidence
    return {
        "coarse_prob": coarse_probability(first, case.window(window), encoded.grid)[0],
        "patch_label": label[0].view(encoded.grid),
        "attn_sfr": attention[0],
        "features": head._read(case.encoder, trace.tokens, kept["residual"], encoded.grid, attention)[0],
    }


def check_itaclip(case: Case) -> None:
    """ITACLIP: its attention."""
    deviations = {"features": (True, 3.2e-6), "features_attn_self_off": (False, 2.2e-6)}
    for key in case.arrays:
        window, _, quantity = key.partition("/")
        if quantity in deviations:
            own, deviation = deviations[quantity]
            head = _head("itaclip", ItaClipConfig(self_attention=own))
            features = head.features(case.encoder, _trace(case, head, window))[0]
            _patches(case, key, features, deviation)
        else:
            case.skip(key, "ITACLIP's changed pictures, which no host sees")


def check_pearl(case: Case) -> None:
    """PEARL: its alignment, by its steps and exact."""
    for key in case.arrays:
        window, _, quantity = key.partition("/")
        named = re.fullmatch(r"pa_(polar|svd)_a(\d+)p(\d+)", quantity)
        block = case.encoder.blocks[-1]
        if named:
            weight = float(f"{named[2]}.{named[3]}")
            settings = PearlConfig(named[1], centered_weight=weight)  # type: ignore[arg-type]
            case.close(key, _tokens(case, _head("pearl", settings), window), 6.4e-6)
        elif quantity.startswith("tlp"):
            case.skip(key, "a refiner, no host: its checks stand in rows named tlp")
        else:
            query, key_vectors, _ = block.query_key_value(_trace(case, _head("pearl"), window).tokens)
            centered_query, centered_key = center(query, key_vectors)
            covariance = centered_key.mT @ centered_query
            if quantity == "cross_covariance":
                case.close(key, covariance[0], 5.2e-5)
            else:
                steps = re.search(r"rotation_(\d+)", quantity)
                rotation = polar_steps(covariance, int(steps[1]) if steps else 5)[0]
                values = quantity.endswith("singular_values")
                found = torch.linalg.svdvals(rotation) if values else rotation
                case.close(key, found, 2.7e-7 if values else 5.8e-7)


RFCLIP_DEVIATION = {
    "guide": 4.5e-6,
    "guide_cosine": 3.4e-7,
    "decoded_first": 3.9e-6,
    "decoded_second": 3.5e-6,
    "features": 2.0e-6,
    "class_feature": 1.5e-6,
}


def check_rfclip(case: Case) -> None:
    """RF-CLIP: the repaired tower, its guide and what is decoded along it."""
    channels = tuple(case.arrays["channels"].tolist())
    head = RfClipHead(
        HeadOptions(settings=RfClipConfig(channels, channel_threshold=float(case.arrays["sigma"][0])))
    )
    stages = {name: _rfclip_stages(case, head, name) for name in _windows(case)}
    for key in case.arrays:
        window, _, quantity = key.partition("/")
        if key in ("channels", "sigma"):
            case.skip(key, SETTING)
        elif "margin" in quantity:
            case.skip(key, MARGIN)
        elif quantity.startswith("refocus"):
            case.skip(key, "attention refocusing, which the authors' code leaves off")
        elif quantity.startswith("text"):
            case.skip(key, "RF-CLIP's adjusted words, not built")
        elif quantity.startswith("distractors"):
            case.equal(key, stages[window]["distractors"])
        else:
            case.close(key, stages[window][quantity], RFCLIP_DEVIATION[quantity])


def _windows(case: Case) -> list[str]:
    return sorted({key.split("/")[0] for key in case.arrays if "/" in key})


def _rfclip_stages(case: Case, head: RfClipHead, window: str) -> dict[str, Tensor]:
    encoder, repair = case.encoder, head.repair
    trace = _trace(case, head, window)
    guide = guide_tokens(encoder, trace, repair)
    cosine = patch_similarity(guide[:, 1:])
    similarity = cut_similarity(cosine)
    decoded = decode(encoder, trace, [propagate(similarity, tokens) for tokens in (trace.tokens, guide)])
    # what each block gives before it is repaired, from what the block before it gave after that
    inputs = encoder.trace(
        case.window(window), replace(head.request(encoder.depth), hidden=frozenset(range(encoder.depth)))
    ).hidden
    outputs = [encoder.blocks[layer].forward(inputs[layer]) for layer in range(encoder.depth)]
    return {
        "guide": guide[0],
        "guide_cosine": cosine[0],
        "decoded_first": decoded[0][0],
        "decoded_second": decoded[1][0],
        "features": head.features(encoder, trace)[0],
        "class_feature": encoder.project(encoder.blocks[-1].class_token(trace.tokens))[0, 0],
        "distractors": torch.cat([repair.distracted(output[:, 1:]) for output in outputs]),
    }


CLIPER_SETTINGS = {"voc21": (0.1, 100.0), "stuff": (0.2, 50.0)}
CLIPER_DEVIATION = {
    "voc21/seg": 2.3e-6,
    "stuff/seg": 4.1e-6,
    "voc21/final_score": 2.0e-6,
    "stuff/final_score": 7.6e-7,
}
CLIPER_LABELS = {"voc21": (0.7, 0.6, True), "ade": (0.3, 0.3, False), "city": (0.0, 0.0001, False)}


def check_cliper(case: Case) -> None:
    """CLIPer: its attention and feature sets, its scores, and labels by its own thresholds on them."""
    background = len(case.phrases) - 20
    words = Words(case.phrases, torch.arange(len(case.phrases)) < background, case.phrases[:0])
    scored: dict[tuple[str, str], Tensor] = {}
    for key in case.arrays:
        window, _, quantity = key.partition("/")
        setting, _, output = quantity.partition("/")
        if setting == "slide112":
            case.skip(key, "CLIPer's own sliding, which averages attention over the windows of a whole image")
        elif output:
            threshold, scale = CLIPER_SETTINGS[setting]
            if (window, setting) not in scored:
                head = CliperHead(HeadOptions(settings=CliperConfig(scale, threshold)))
                encoded, _ = _encoded(case, head, window)
                maps = head.scores(case.encoder, encoded, words).phrases[0, background:]
                scored[window, setting] = maps.unflatten(1, encoded.grid)
            maps = scored[window, setting]
            if output == "seg":
                case.close(key, maps, CLIPER_DEVIATION[quantity])
            elif output == "final_score":
                case.close(key, maps.amax((1, 2)), CLIPER_DEVIATION[quantity])
            else:
                _, rule, size = output.split("_")
                rows, columns = map(int, size.split("x"))
                case.equal(key, cliper_labels(maps, (rows, columns), *CLIPER_LABELS[rule]))
        else:
            head = CliperHead(HeadOptions())
            encoded, trace = _encoded(case, head, window)
            if quantity == "attn_last_head_mean":
                case.close(key, encoded.evidence["affinity"][0], 2.4e-7)
            elif quantity == "attn_last_heads":
                *_, last = refined_attention(trace, case.encoder.depth)
                case.close(key, last[0], 4.9e-7)
            else:
                # the class token's row, which the head does not compute, is left out
                whole = _cliper_sets(case, trace)
                chosen = whole if quantity == "features_all" else whole[[0, 6, 11]]
                case.report.close(f"cliper/{key}", chosen, case.arrays[key][:, 1:], 4.3e-5)


def _encoded(case: Case, head: ScoringHead, window: str) -> tuple[EncodedWindows, EncoderTrace]:
    trace = _trace(case, head, window)
    features = F.normalize(head.features(case.encoder, trace), dim=-1)
    evidence = head.evidence(case.encoder, trace, case.window(window))
    return EncodedWindows(trace.grid, features, evidence), trace


def _cliper_sets(case: Case, trace: EncoderTrace) -> Tensor:
    encoder, found = case.encoder, []
    for layer, attention in enumerate(refined_attention(trace, encoder.depth)):
        last = layer == encoder.depth - 1
        tokens = trace.tokens if last else encoder.blocks[layer].normalize(trace.hidden[layer])
        found.append(read_along(encoder, trace, tokens, attention)[0])
    return torch.stack(found)


def cliper_labels(
    maps: Tensor, size: tuple[int, int], score: float, background: float, normalize: bool
) -> Tensor:
    """Label by CLIPer's thresholds: 0 where no class is left, else 1 + the class."""
    large = F.interpolate(maps[None], size=size, mode="bilinear")[0]
    peaks = maps.amax((1, 2))
    large = large / (large.amax((1, 2), keepdim=True) + 1e-5) * peaks[:, None, None]
    large[peaks <= score] = 0
    if normalize:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        large = (large - low) / (high - low).clamp_min(1e-12)
    large = torch.where(large < background, 0, large)
    return torch.where(large.amax(0) > 0, large.argmax(0) + 1, 0)


CAR_WORDS, CAR_SCALE, CAR_THRESHOLD, CAR_TEMPLATES = 12, 10.0, 0.079, 2.0
CAR_DEVIATION = {
    "cam": 2.1e-6,
    "refined": 2.8e-7,
    "affinity_L5_L12": 9.9e-8,
    "image_probability": 1.4e-7,
    "channel_weights": 3.8e-10,
}
CAR_PROMPTS: dict[str, VisualPrompt] = {"circle_blur": "circle_blur", "blur_gray": "blur_gray"}


def check_car(case: Case) -> None:
    """CaR: the maps of its words from gradients, their pictures, and the rounds in which they leave."""
    background = len(case.phrases) - 20
    words = [
        phrases[background : background + CAR_WORDS]
        for phrases in (case.phrases, case.phrases, case.other_phrases)
    ]
    others = case.phrases[None, :background].expand(len(words), -1, -1)
    given = FilterWords(tuple(range(CAR_WORDS)), torch.stack(words), others)
    sights = {name: Sight.of(case.encoder, case.window(name)) for name in _windows(case)}
    for key in case.arrays:
        window, _, quantity = key.partition("/")
        prompt, _, output = quantity.partition("/")
        if quantity == "pixels":
            case.skip(key, SETTING)
        elif "margin" in quantity:
            case.skip(key, MARGIN)
        elif output:
            picture = case.arrays[f"{window}/pixels"]
            case.equal_or_close(
                key, _car_rounds(case, given, sights[window], picture, prompt)[output], 1.2e-7
            )
        else:
            size = case.window(window).shape[2], case.window(window).shape[3]
            found = _car_maps(case, given, sights[window], size)
            name = quantity.split("_every")[0]
            if name == "box_mask":
                case.equal(key, found[name])
            elif name == "proposal":
                case.every(key, found[name], 1.6e-6)
            else:
                case.close(key, found[name], CAR_DEVIATION[name])


def _car_maps(case: Case, given: FilterWords, sight: Sight, size: tuple[int, int]) -> dict[str, Tensor]:
    words, others, count = given.words[0], given.background[0], len(given.classes)
    weights, _, probability = channel_weights(
        case.encoder, sight, torch.cat([words, others]), count, CAR_SCALE
    )
    maps = activation_maps(case.encoder, sight, words, others, CAR_SCALE)
    levels = quantize(maps)
    regions = threshold_regions(levels, levels.amax(1), 0.4).unflatten(1, sight.grid)
    refined = spread_boxes(maps, sight, 0.4)
    return {
        "cam": maps.unflatten(1, sight.grid),
        "channel_weights": weights,
        "image_probability": probability,
        "affinity_L5_L12": sight.affinity.attention[0],
        "box_mask": box_union(regions),
        "refined": refined.unflatten(1, sight.grid),
        "proposal": masks_of_words(refined, sight.grid, size),
    }


def _car_rounds(
    case: Case, given: FilterWords, sight: Sight, picture: np.ndarray, prompt: str
) -> dict[str, np.ndarray]:
    """Go through the rounds, and keep what each of them saw and decided."""
    config = CarConfig(CAR_THRESHOLD, CAR_TEMPLATES, prompt=CAR_PROMPTS[prompt], last_block=False)
    rounds = WordFilter(config, given, CAR_WORDS, case.encoder, (CLIP_MEAN, CLIP_STD), CAR_SCALE, 0.4, 64)
    every = range(CAR_WORDS)
    first = masks_of_words(rounds.maps(sight, every, 0), sight.grid, (picture.shape[0], picture.shape[1]))
    shown = rounds.pictures(sight, picture, every, 0)
    found = {"mask_class0": (first[0] > config.mask_threshold).numpy(), "prompted_image_class0": next(shown)}
    [outcome] = rounds.filter([torch.from_numpy(picture)])
    for place, (words, scores) in enumerate(outcome.history):
        found |= {f"round{place}_classes": np.array(words), f"round{place}_scores": scores}
    return found | {"rounds": np.array([outcome.rounds]), "kept": np.array(outcome.kept)}


CHECKS: dict[str, Callable[[Case], None]] = {
    "clipsurgery": check_clipsurgery,
    "cliptrase": check_cliptrase,
    "resclip": check_resclip,
    "itaclip": check_itaclip,
    "pearl": check_pearl,
    "rfclip": check_rfclip,
    "cliper": check_cliper,
    "car": check_car,
}
