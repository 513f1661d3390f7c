"""A pretended GPU: tensors that say `cuda:7` and are computed on the CPU, and a record of what a real one is asked for.

The engine cannot tell the difference, so it takes the way it takes on a GPU. To torch's dispatcher the tensors are
"meta" tensors, which any build of torch has; what they hold is a CPU tensor beside it. An operation is what the
dispatcher hands down: about one kernel, for sorting and the like a few. A launch of one of the core's own kernels counts
as one.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ovss_core import kernels
from tests.gpu_count.stand_ins import stand_ins

GPU = torch.device("cuda", 7)
"""No real one: the core remembers tables by device, and a real GPU must not find pretended ones there."""
HOPPER_SHARED = 227 << 10
NOTHING_TO_DO = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WAITS = {
    # what torch's CUDA code reads back before it goes on: a number, or how large its result is
    "_local_scalar_dense": 1,
    "equal": 1,
    "masked_select": 1,
    "nonzero": 1,
    "repeat_interleave": 1,
    "_unique2": 2,
    "unique_consecutive": 2,
    "unique_dim": 2,
    "bincount": 2,
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        operations: Operations that compute or write; views are free.
        uploads: Copies to the device.
        downloads: Copies to CPU memory.
        awaited: Events that the CPU awaited: a result it had asked for before.
        waits: How often the CPU had to wait for all that was queued, by the line of the core that made it.
        places: Operations by the line of the core that asked for them.
    """

    operations: int = 0
    uploads: int = 0
    downloads: int = 0
    awaited: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)


class GpuTensor(Tensor):
    """A tensor of the pretended device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "GpuTensor":
        # a view of an ordinary tensor is an ordinary tensor, in inference mode too
        with torch.inference_mode(held.is_inference()):
            made: GpuTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=torch.device("meta"),
            )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or GPU)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on a tensor of a pretended GPU that is not there any more")


class PretendedGpu(TorchDispatchMode):
    """Computes what is asked of `GPU`, and notes it; `pretended_gpu` enters it.

    Args:
        holder: Where it computes: a CPU, or "meta", which knows shapes alone and so takes any size.

    Attributes:
        counts: What was asked for; put a new one here to begin anew.
    """

    def __init__(self, holder: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()
        self._holder = torch.device(holder)
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the CPU, and note it where the device would have run it."""
        kwargs = dict(kwargs or {})
        operation = _operation(func)
        name = operation.name
        leaves = list(_leaves((args, kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        target = next((leaf.type for leaf in leaves if isinstance(leaf, torch.device)), None)
        if not any(isinstance(tensor, GpuTensor) for tensor in tensors) and target in (None, "cpu"):
            return self._on_cpu(func, args, kwargs)
        if operation.is_composite and name != "scaled_dot_product_attention":
            # inference mode hands composite operations down whole; attention alone is one kernel on a GPU
            with self:
                return func.decompose(*args, **kwargs)
        if name == "_scaled_dot_product_flash_attention":
            return self.enter(1, _flash_attention)(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs, target)
        if name not in INDEXING and any(t.dim() and not isinstance(t, GpuTensor) for t in tensors):
            raise RuntimeError(f"{name} on tensors of two devices, in {_place()}")
        if not (operation.is_view or name in NOTHING_TO_DO):
            if name != "_local_scalar_dense":  # a copy of one number
                self._note_operation(name)
            self._note_waits(name, args)
        held_args, held_kwargs = _mapped(self._held, (args, kwargs))
        made = func(*held_args, **held_kwargs)
        made = _written(func, args, kwargs) if operation.writes else _mapped(_on_gpu, made)
        if not (operation.is_view or name in NOTHING_TO_DO):
            self.note_traffic(name, tensors, made)
        return made

    def kernel_modules(self) -> Mapping[str, Any]:
        """Return what stands for the modules of kernels, by their names: a kernel runs on a real GPU only."""
        return stand_ins(self.enter)

    def note_traffic(self, name: str, given: Sequence[Tensor], made: Any) -> None:
        """Take note of an operation's tensors and its result, or results; nobody asks for them here."""

    def enter(self, launches: int, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function of CPU tensors one of this GPU's, which counts so many operations."""

        def launch(*args: Any, **kwargs: Any) -> Any:
            self.counts.operations += launches
            self.counts.places[f"{_place()} ({function.__name__})"] += launches
            made = function(*_mapped(self._held, args), **_mapped(self._held, kwargs))
            given = {
                id(self._held(leaf)): leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)
            }
            made = _mapped(lambda leaf: given.get(id(leaf)) if id(leaf) in given else _on_gpu(leaf), made)
            self.note_traffic(function.__name__, list(given.values()), made)
            return made

        return launch

    def _held(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cpu" else self._holder
        return value.held if isinstance(value, GpuTensor) else value

    def _on_cpu(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        pinned = kwargs.pop("pin_memory", None)
        made = func(*args, **kwargs)
        if pinned:
            self._pinned.append(made)
        return made

    def _copy(
        self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], target: str | None
    ) -> Any:
        """Copy within the device, to it or from it; `_to_copy` makes a tensor, `copy_` fills one."""
        fills = name == "copy_"
        source = args[1] if fills else args[0]
        up = not isinstance(source, GpuTensor)
        down = not isinstance(args[0], GpuTensor) if fills else target == "cpu"
        beside = kwargs.pop("non_blocking", False) or (fills and len(args) > 2 and args[2])
        if up or down:
            self.counts.uploads += up
            self.counts.downloads += down
            # only memory that stays where it is lets the CPU go on while the device copies
            ours = source if up else args[0] if fills else None
            if not (beside and ours is not None and self._is_pinned(ours)):
                self.counts.waits[f"{_place()} (copy to the {'device' if up else 'CPU'})"] += 1
        elif not fills and kwargs.get("dtype") in (None, source.dtype) and not kwargs.get("memory_format"):
            return source  # the dispatcher takes it for a meta tensor, and so for one that has to move
        else:
            self._note_operation(name)
        held_args, held_kwargs = _mapped(self._held, (args, kwargs))
        made = func(*held_args, **held_kwargs)
        result = args[0] if fills else made if down else GpuTensor(made)
        if not (up or down):
            self.note_traffic(name, [source], result)
        return result

    def _is_pinned(self, tensor: Tensor) -> bool:
        start = tensor.untyped_storage().data_ptr()
        return any(start == memory.untyped_storage().data_ptr() for memory in self._pinned)

    def _note_operation(self, name: str) -> None:
        self.counts.operations += 1
        self.counts.places[f"{_place()} ({name})"] += 1

    def _note_waits(self, name: str, args: Sequence[Any]) -> None:
        count = WAITS.get(name, 0)
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            count = int(masks or any(not isinstance(index, GpuTensor) for index in indices))
        if count:
            self.counts.waits[f"{_place()} ({name})"] += count


@contextmanager
def pretended_gpu(given: PretendedGpu | None = None) -> Iterator[PretendedGpu]:
    """Let torch have a GPU, `GPU`, until the end of the block."""
    gpu, original = given or PretendedGpu(), torch.tensor

    class Event:
        """Stands for torch.cuda.Event; whatever is queued is done at once."""

        def __init__(self, enable_timing: bool = False) -> None:
            pass

        def elapsed_time(self, other: "Event") -> float:
            return 0.0

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            gpu.counts.awaited += 1

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        # torch's own goes to the device below anything that can be pretended
        made = original(data, **options)
        return made if device is None else made.to(device)

    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "Event", Event),
        patch.object(torch, "tensor", tensor),
        patch.object(kernels, "_has_triton", lambda: True),
        patch.dict(sys.modules, gpu.kernel_modules()),
        patch("ovss_core.kernels.attention.shared_memory", lambda device: HOPPER_SHARED),
        gpu,
    ):
        yield gpu


def _on_gpu(value: Any) -> Any:
    return GpuTensor(value) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _Operation:
    """What does not change from call to call: its name, and what its schema says of its results and arguments."""

    name: str
    is_composite: bool
    is_view: bool
    writes: bool


@cache
def _operation(func: Any) -> _Operation:
    returns, arguments = (
        [entry.alias_info for entry in entries if entry.alias_info is not None]
        for entries in (func._schema.returns, func._schema.arguments)
    )
    return _Operation(
        func._schema.name.removeprefix("aten::"),
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        any(not info.is_write for info in returns),
        any(info.is_write for info in arguments),
    )


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what tuples, lists and dictionaries hold, as torch's `tree_leaves` does in ten times the time."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what tuples, lists and dictionaries hold, as torch's `tree_map`, which takes named tuples."""
    if type(value) in (tuple, list):
        return type(value)([_mapped(function, item) for item in value])
    if type(value) is dict:
        return {key: _mapped(function, item) for key, item in value.items()}
    return tree_map(function, value) if isinstance(value, (tuple, list)) else function(value)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the arguments that an operation wrote into, which are its results."""
    targets = [
        kwargs[entry.name] if entry.name in kwargs else args[position]
        for position, entry in enumerate(func._schema.arguments)
        if entry.alias_info is not None and entry.alias_info.is_write
    ]
    if not func._schema.returns:
        return None
    return targets[0] if len(targets) == 1 else tuple(targets)


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)


def _place() -> str:
    """Return the innermost line of the core that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        inside = _inside_the_core(frame.f_code.co_filename)
        if inside:
            return f"{inside}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside the core"


@cache
def _inside_the_core(file: str) -> str | None:
    parts = Path(file).parts
    return "/".join(parts[parts.index("ovss_core") :]) if "ovss_core" in parts else None
