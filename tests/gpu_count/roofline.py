"""Print what tower and head would take a window, from shapes alone: `python -m tests.gpu_count.roofline`.

The way of a GPU is run on tensors that have shapes and no numbers. Each operation, and each launch of one of the core's own
kernels, costs what takes longest: its bytes through memory, its products, or its start. Bytes are those of the tensors that
it is given and gives, each once; products those of all tiles that a kernel works on, rows behind the last included. Nothing
else is in the figure, neither exponentials nor a cache that keeps a tensor for the next operation, so it is a floor under
what can be measured in some places and above it in others.
"""

import argparse
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import prod
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ovss_core.clip.blocks import Stream
from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig, Precision
from ovss_core.dense_heads import HeadOptions, build_head
from ovss_core.engine.engine import DTYPES
from ovss_core.kernels import plain_forms, products
from tests.gpu_count.pretended import GPU, HOPPER_SHARED, GpuTensor, PretendedGpu, pretended_gpu
from tests.gpu_count.stand_ins import stand_ins

MEMORY = 4.0e12
"""Bytes a second that large passes reach on an H200, of 4.8e12 on paper."""
PRODUCTS = {torch.bfloat16: 600e12, torch.float16: 600e12, torch.float32: 45e12, torch.float64: 30e12}
"""Floating-point operations a second that large matrix products reach there."""
ATTENTION = 350e12
START = 2.5e-6
"""Seconds between two launches."""
MATRICES = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Which arguments are multiplied."""
ALIGNED, UNALIGNED = 8, 4.0
"""Batches of products whose rows in half precision are no multiple of so many numbers take so many times as long."""
PROGRAMS: Mapping[str, Callable[[Any], float]] = {
    "head_mean": lambda given: 2 * given.heads * given.ROWS * given.COLUMNS * given.DEPTH,
    "similarity": lambda given: 2 * given.ROWS * given.COLUMNS * given.channels,
    "average": lambda given: 2 * given.ROWS * given.COLUMNS * -(-given.count // given.STEP) * given.STEP,
    "quick_gelu_product": lambda given: 2 * given.ROWS * given.COLUMNS * given.width,
}
"""Products of one program of each kernel that multiplies matrices, from its arguments."""
TRACE, HEAD, BLOCKS, PLAIN = "tower", "SFP head", "twelve blocks alone", "twelve blocks by PyTorch's forms"
WHAT = "bytes", "products", "seconds"
T = TypeVar("T")


@dataclass(frozen=True)
class Priced:
    """What one operation costs.

    Attributes:
        name: The operation, or the kernel.
        bytes: Through memory.
        products: Floating-point operations of matrix products.
        seconds: By the model.
    """

    name: str
    bytes: int
    products: float
    seconds: float


class PricingGpu(PretendedGpu):
    """A pretended GPU of tensors without numbers that notes what each operation costs.

    Attributes:
        priced: Operations so far; clear it to begin anew.
    """

    def __init__(self) -> None:
        super().__init__("meta")
        self.priced: list[Priced] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give attention the layout that a GPU's has, tokens before heads: joining the heads then copies nothing."""
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.name == "aten::scaled_dot_product_attention" and isinstance(made, GpuTensor):
            made = GpuTensor(torch.empty_like(made.held.transpose(1, 2).contiguous()).transpose(1, 2))
        return made

    def kernel_modules(self) -> Mapping[str, Any]:
        """Leave the modules of kernels in their places: `kernels_that_are_priced` runs their launches as they are."""
        return {}

    def note_traffic(self, name: str, given: Sequence[Tensor], made: Any) -> None:
        """Price an operation of torch's."""
        name = name.strip("_")
        inputs = [tensor for tensor in given if isinstance(tensor, GpuTensor)]
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        products, rate = 0.0, PRODUCTS.get(results[0].dtype, PRODUCTS[torch.float32])
        if name in MATRICES:
            one, other = (inputs[place] for place in MATRICES[name])
            products = 2.0 * one.numel() * other.shape[-1]
            if one.dim() == 3 and (one.shape[-1] % ALIGNED or other.shape[-1] % ALIGNED):
                rate /= UNALIGNED if one.element_size() == 2 else 1
        elif "attention" in name:
            query, key = inputs[:2]
            products, rate = 4.0 * query.numel() * key.shape[-2], ATTENTION
            results = results[:1]  # the others are a row of sums, or nothing
        self._price(name, _sizes(inputs) + sum(map(_size, results)), products, rate)

    def launcher(self, kernel: Any) -> Callable[..., None]:
        """Return a function of a kernel's grid and arguments that prices it."""
        name, names = (
            kernel.fn.__name__.removesuffix("_kernel"),
            list(inspect.signature(kernel.fn).parameters),
        )
        source = inspect.getsource(kernel.fn)
        changed = [one for one in names if all(f"tl.{do}({one} " in source for do in ("load", "store"))]

        def launch(grid: Sequence[int], *arguments: Any, **options: Any) -> None:
            given = dict(zip(names, arguments, strict=False)) | options
            tensors = {one: value for one, value in given.items() if isinstance(value, Tensor)}
            size = _sizes(list(tensors.values()))
            for one in changed:
                # where there is nothing to add to, another argument stands in its place
                others = [value for key, value in tensors.items() if key != one]
                size += _size(tensors[one]) if all(value is not tensors[one] for value in others) else 0
            multiplies = PROGRAMS.get(name)
            products = prod(grid) * multiplies(SimpleNamespace(**given)) if multiplies else 0.0
            self._price(name, size, products, PRODUCTS[next(iter(tensors.values())).dtype])

        return launch

    def _price(self, name: str, size: int, products: float, rate: float) -> None:
        self.priced.append(Priced(name, size, products, max(size / MEMORY, products / rate, START)))


class _Kernel:
    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch = launch

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        return partial(self._launch, grid)


@contextmanager
def pricing() -> Iterator[PricingGpu]:
    """Let torch have a GPU that notes prices, until the end of the block."""
    with pretended_gpu(PricingGpu()) as gpu, ExitStack() as stack:
        assert isinstance(gpu, PricingGpu)
        for name in stand_ins(gpu.enter):
            module = import_module(name)
            for key, value in list(vars(module).items()):
                if key.endswith("_kernel"):
                    stack.enter_context(patch.object(module, key, _Kernel(gpu.launcher(value))))
                elif key == "shared_memory":
                    stack.enter_context(patch.object(module, key, lambda device: HOPPER_SHARED))
        yield gpu


@dataclass(frozen=True)
class Floor:
    """What batches of windows cost by the model.

    Attributes:
        windows: Windows of a batch.
        steps: Operations by the part of the way that asks for them.
    """

    windows: int
    steps: dict[str, list[Priced]]

    def microseconds(self, part: str) -> float:
        """Return what a part takes a window."""
        return 1e6 * sum(step.seconds for step in self.steps[part]) / self.windows

    @property
    def whole(self) -> float:
        """Microseconds a window of all that labelling by SFP and FreeCP asks of the encoder."""
        return self.microseconds(TRACE) + self.microseconds(HEAD)


def price(model: str, windows: int, precision: Precision = "bfloat16", fused: bool = False) -> Floor:
    """Run tower and head on windows of 224 pixels.

    Args:
        fused: With the kernel of `ovss_core.kernels.products`, which a worker takes where it won on its card.
    """
    encoder_of = load_clip(ModelConfig(model, "random")).model.visual
    with pricing() as gpu, torch.inference_mode(), ExitStack() as stack:
        encoder = ImageEncoder(encoder_of.to(GPU, DTYPES[precision]))
        weight = encoder.blocks[0].quick_gelu_weight
        if fused and weight is not None:
            stack.enter_context(products.tiled(weight, products.TILES[0]))
        head = build_head("sfp", HeadOptions(purified=True))
        request = head.request(encoder.depth).with_mean_attention()
        pixels = torch.empty(windows, 3, 224, 224, device=GPU)
        encoder.trace(pixels, request)  # what is remembered between calls
        steps: dict[str, list[Priced]] = {}

        def part(name: str, run: Callable[[], T]) -> T:
            gpu.priced.clear()
            made = run()
            steps[name] = list(gpu.priced)
            return made

        trace = part(TRACE, lambda: encoder.trace(pixels, request))
        part(HEAD, lambda: F.normalize(head.features(encoder, trace).float(), dim=-1))
        tokens = encoder.embed(pixels)
        part(BLOCKS, lambda: _blocks(encoder, tokens))
        with plain_forms():
            part(PLAIN, lambda: _blocks(encoder, tokens))
        return Floor(windows, steps)


def _blocks(encoder: ImageEncoder, tokens: Tensor) -> Tensor:
    stream = Stream(tokens)
    for block in encoder.blocks:
        stream = block.advance(stream)
    return stream.joined()


def _size(tensor: Tensor) -> int:
    """Return the bytes that reading a tensor takes; an axis that repeats numbers counts once."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(length for length, step in steps if step) * tensor.element_size()


def _sizes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of tensors; one that is given twice counts once."""
    places = {
        (t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()): _size(t) for t in tensors
    }
    return sum(places.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what each step takes, and the sums beside those of plain blocks."""
    parser = argparse.ArgumentParser("python -m tests.gpu_count.roofline", description=__doc__)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--windows", type=int, default=256, help="windows of a batch")
    parser.add_argument("--precision", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument(
        "--fused",
        action="store_true",
        help="with QuickGELU in the product before it, as on a card where that won",
    )
    given = parser.parse_args(arguments)
    floor = price(given.model, given.windows, given.precision, given.fused)
    print("| part | step | launches | MB a window | GFLOP a window | microseconds a window |")
    print("|---|---|---|---|---|---|")
    for part, steps in floor.steps.items():
        for name, count in Counter(step.name for step in steps).most_common():
            own = [step for step in steps if step.name == name]
            size, products, seconds = (sum(getattr(step, what) for step in own) for what in WHAT)
            print(
                f"| {part} | {name} | {count} | {size / floor.windows / 1e6:.2f} | "
                f"{products / floor.windows / 1e9:.2f} | {1e6 * seconds / floor.windows:.2f} |"
            )
        print(f"| {part} | all | {len(steps)} | | | {floor.microseconds(part):.1f} |")
    print(f"\n{TRACE} and {HEAD}: {floor.whole:.1f} microseconds a window")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
