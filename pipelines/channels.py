"""Finds the channels of an image tower that dominate patches, on any images: what RF-CLIP needs of a checkpoint."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ovss_core.clip.timm_tower import open_tower
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import TraceRequest
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, WindowConfig
from ovss_core.errors import ImageError
from ovss_core.feature_purification.channels import channel_shares
from ovss_core.images.decode import decode_image
from ovss_core.images.resize import normalize, resize_image
from ovss_core.images.windows import WindowLayout
from pipelines.channel_options import ChannelOptions
from pipelines.faults import Failure
from pipelines.run.options import SourceOptions

logger = logging.getLogger(__name__)
MAX_PIXELS = 100_000_000
_WINDOWS = 8
_SHOWN = 16
Report = Callable[[int], None]


@dataclass(frozen=True)
class ChannelCounts:
    """What was seen of every channel.

    Attributes:
        images: Images that were looked at.
        patches: Patches of their windows.
        dominated: Patches that each channel dominates after each block.
        largest: Largest share that each channel has of any patch, in equal shares (1 / width).
        options: What counted as domination.
    """

    images: int
    patches: int
    dominated: Int[np.ndarray, "blocks channels"]
    largest: Float[np.ndarray, " channels"]
    options: ChannelOptions

    @property
    def rates(self) -> Float[np.ndarray, " channels"]:
        """Share of all patches, blocks counted apart, that each channel dominates."""
        rates: np.ndarray = self.dominated.sum(0) / (self.patches * len(self.dominated))
        return rates

    @property
    def channels(self) -> list[int]:
        """The over-activated channels, ascending."""
        return np.flatnonzero(self.rates >= self.options.least).tolist()

    def lines(self) -> Iterator[str]:
        """Yield a table of the channels that dominate most, and what to do with them."""
        blocks, width = self.dominated.shape
        yield (
            f"{self.images:,} images, {self.patches:,} patches after each of {blocks} blocks; a channel dominates a patch "
            f"with more than {self.options.threshold:g} / {width} of it"
        )
        yield ""
        yield "| channel | patches dominated | largest share | by block, from the first |"
        yield "|---|---|---|---|"
        order = np.lexsort((-self.largest, -self.dominated.sum(0)))[: max(_SHOWN, len(self.channels))]
        for channel in order.tolist():
            by_block = " ".join(f"{100 * rate:.1f}" for rate in self.dominated[:, channel] / self.patches)
            yield (
                f"| {channel} | {100 * self.rates[channel]:.2f} % | {self.largest[channel]:.1f} / {width} | {by_block} % |"
            )
        yield ""
        if self.channels:
            yield f"--rfclip.channels [{','.join(map(str, self.channels))}]"
        else:
            yield f"no channel dominates {100 * self.options.least:g} % of the patches: --rfclip.channels []"


def measure_channels(
    source: SourceOptions,
    model: ModelConfig,
    options: ChannelOptions,
    windows: WindowConfig | None = None,
    report: Report | None = None,
) -> ChannelCounts:
    """Run images through the plain tower, windows as everywhere, and count which channels dominate patches.

    Images that cannot be read are passed over, with a warning each.

    Raises:
        StorageError: There is no image at the source.
        ImageError: None of them can be read.
    """
    clip = load_clip(model)
    encoder = open_tower(clip.model.visual.to(options.device))
    cut = windows or WindowConfig()
    images, patches = 0, 0
    dominated = torch.zeros(encoder.depth, encoder.width, dtype=torch.int64)
    largest = torch.zeros(encoder.width)
    for picture in _pictures(source, options.count):
        resized = resize_image(picture, cut.short_side, cut.long_side, encoder.patch_size)
        pixels = torch.from_numpy(WindowLayout.of_image(resized, cut).cut(resized))
        for part in pixels.split(_WINDOWS):
            normalized = normalize(part.to(options.device), clip.image_mean, clip.image_std)
            counted, peaks, seen = _count(encoder, normalized, options.threshold)
            dominated += counted
            largest = torch.maximum(largest, peaks)
            patches += seen
        images += 1
        if report:
            report(images)
    if not images:
        raise ImageError("no image could be read; the warnings above say why")
    return ChannelCounts(images, patches, dominated.numpy(), largest.numpy(), options)


@torch.inference_mode()
def _count(encoder: ImageEncoder, windows: Tensor, threshold: float) -> tuple[Tensor, Tensor, int]:
    """Count one batch: domination by block and channel, largest share by channel in equal shares, patches."""
    trace = encoder.trace(windows, TraceRequest(hidden=frozenset(range(1, encoder.depth))))
    outputs = [trace.hidden[layer] for layer in range(1, encoder.depth)]
    outputs.append(encoder.blocks[-1].forward(trace.tokens))
    counted, peaks = [], []
    for tokens in outputs:
        shares = channel_shares(tokens[:, encoder.prefix :]).flatten(0, 1) * encoder.width
        counted.append((shares > threshold).sum(0))
        peaks.append(shares.amax(0))
    patches = outputs[0].shape[0] * (outputs[0].shape[1] - encoder.prefix)
    return torch.stack(counted).cpu(), torch.stack(peaks).amax(0).cpu(), patches


def _pictures(source: SourceOptions, count: int) -> Iterator[np.ndarray]:
    """Read the first images of a source, decoded; those that cannot be read are named and passed over."""
    opened = source.open()
    fetcher = opened.fetcher(source.max_bytes, source.fetch_timeout_s)
    records = islice(opened.records(), count)
    with ThreadPoolExecutor(2) as pool:
        while rows := [asdict(record) for record in islice(records, _WINDOWS)]:
            for row, found in zip(rows, fetcher.fetch(rows, pool), strict=True):
                picture = _decoded(row["image_id"], found)
                if picture is not None:
                    yield picture


def _decoded(name: str, found: bytes | Failure) -> np.ndarray | None:
    if isinstance(found, Failure):
        logger.warning("%s is passed over: %s", name, found.reason)
        return None
    try:
        return decode_image(found, MAX_PIXELS)
    except ImageError as error:
        logger.warning("%s is passed over: %s", name, error)
        return None
