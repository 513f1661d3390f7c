"""Measure what each host costs beside the plain encoder, in one run: `python -m tests.measure_systems [WINDOWS]`.

A ViT-B/16 with random weights on one CPU thread, windows of 224 pixels, the best of three. The plain encoder is the
class token of the same windows. Scoring heads score 21 words.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest, WindowRegions
from ovss_core.clip.weights import load_clip
from ovss_core.config import (
    CliptraseConfig,
    HeadSettings,
    ModelConfig,
    ProxyConfig,
    ResClipConfig,
    RfClipConfig,
)
from ovss_core.dense_heads import DenseHead, HeadOptions, build_head
from ovss_core.dense_heads.scoring import EncodedWindows, Words, as_scorer
from ovss_core.head_names import clip_hosts, proxy_hosts
from ovss_core.proxies.loading import load_proxy
from ovss_core.proxies.tower import ProxyTower

SIDE, WORDS, ROUNDS = 224, 21, 3
SETTINGS: dict[str, HeadSettings] = {"rfclip": RfClipConfig((133, 166))}
FURTHER: dict[str, tuple[str, HeadSettings]] = {
    "cliptrase, clustering": ("cliptrase", CliptraseConfig(clustering=True)),
    "resclip, feedback": ("resclip", ResClipConfig(feedback=True)),
}


def best_seconds(call: Callable[[], object]) -> float:
    """Return the least of some times."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def cases() -> Iterator[tuple[str, str, HeadSettings | None, str | None]]:
    """Yield what is measured: its name, host, settings, and second tower."""
    for host in clip_hosts():
        yield host, host, SETTINGS.get(host), None
    for name, (host, settings) in FURTHER.items():
        yield name, host, settings, None
    for host in sorted(proxy_hosts()):
        yield f"{host}, dino_vitb16", host, None, "dino_vitb16"


@dataclass(frozen=True)
class Bench:
    """What every system is measured on."""

    encoder: ImageEncoder
    windows: Tensor
    words: Words

    def run(self, head: DenseHead, proxy: ProxyTower | None, request: TraceRequest) -> None:
        """Compute a head's features, and a scoring head's scores."""
        trace = self.encoder.trace(self.windows, request)
        if proxy is not None:
            trace.proxy = proxy.features(self.windows, request.proxy)
            patches = trace.proxy.grid[0] * trace.proxy.grid[1]
            trace.regions = WindowRegions(torch.arange(patches).expand(len(self.windows), -1) // 28 + 1, 7)
        features = F.normalize(head.features(self.encoder, trace), dim=-1)
        if scorer := as_scorer(head):
            kept = EncodedWindows(trace.grid, features, scorer.evidence(self.encoder, trace, self.windows))
            scorer.scores(self.encoder, kept, self.words)


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    count = int(arguments[0]) if arguments else 2
    encoder = ImageEncoder(load_clip(ModelConfig("ViT-B-16", "random")).model.visual)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    rows = F.normalize(torch.randn(WORDS, encoder.output_dim, generator=generator), dim=1)
    bench = Bench(encoder, windows, Words(rows, torch.arange(WORDS) == 0, rows[:0]))
    with torch.inference_mode():
        encoder.class_features(windows)
        plain = best_seconds(partial(encoder.class_features, windows))
        print(f"plain encoder: {1000 * plain / count:.0f} ms a window\n")
        print("| system | ratio | with FreeCP's mean attention |\n|---|---|---|")
        for name, host, settings, tower in cases():
            head = build_head(host, HeadOptions(settings=settings, scoped=tower is not None))
            proxy = load_proxy(ProxyConfig(tower, "random")).tower("cpu", torch.float32) if tower else None
            asked = head.request(encoder.depth)
            ratios = [
                best_seconds(partial(bench.run, head, proxy, request)) / plain
                for request in (asked, asked.with_mean_attention())
            ]
            print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
