"""The one place that talks to Ray Data: manifest parts through a read stage, actor pools and the sink.

A run goes in rounds. A round sends every image that has no fragment yet through the pools; parts are merged as
soon as their count is reached. Should a round leave images behind (a worker that died between two blocks may
lose one), the next one does them; a round that brings nothing new ends the run with an error.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.data.exceptions

from ovss_core.errors import OvssError
from pipelines.capacity import READ_CPUS, WRITE_CPUS, Pool
from pipelines.ledger import AttemptLedger
from pipelines.manifest import Manifest, part_name, read_part
from pipelines.progress import ProgressReport
from pipelines.reading import ReadImages, pack_slice
from pipelines.sink import DONE, FRAGMENTS, OutputTable, WriteFragments, finished_ids, merge_part
from pipelines.sources import Source
from pipelines.storage import Folder
from pipelines.summary import read_markers

_LOG = logging.getLogger(__name__)
_MAX_ROUNDS = 4
_MAX_BLOCKS = 4096
_PARTS_PER_PARQUET_TASK = 8
_MERGES_AT_ONCE = 4
_SLICE_ROWS = 64
_SLICES_PER_ACTOR = 16
_BLOCK_BYTES = 16 << 20
_COLOURS = re.compile(r"\x1b\[\d+m")
_ERROR_LINE = re.compile(r"(?!ray\.)[A-Za-z_][\w.]*: \S")


@dataclass(frozen=True)
class ActorStage:
    """A stage that holds state, such as a model, in a pool of actors.

    Attributes:
        name: For messages; the worker's own failures carry the name that it chooses.
        worker: Callable class over Arrow tables; gets `arguments` and ``ledger``.
        batch_size: Images of one call.
    """

    name: str
    worker: type
    arguments: Mapping[str, Any]
    pool: Pool
    batch_size: int


@dataclass(frozen=True)
class Job:
    """Everything a run needs besides the images themselves.

    Attributes:
        stages: Applied in order; the last one fills the column ``result``.
        table: The output table.
        fragment_rows: Images that are stored together while a part is unfinished; what a kill can cost.
        no_progress_s: Give up when Ray moves nothing for so long.
        progress_s: Seconds between progress lines.
    """

    output: Folder
    source: Source
    stages: Sequence[ActorStage]
    table: OutputTable
    image_column: str | None = None
    max_bytes: int = 1 << 28
    fetch_timeout_s: float = 60.0
    fragment_rows: int = 16
    no_progress_s: float = 300.0
    progress_s: float = 10.0


@dataclass
class _Round:
    """What one round still waits for."""

    expected: dict[int, int]
    stored: Counter[int] = field(default_factory=Counter)
    merges: list[Any] = field(default_factory=list)


def run_job(job: Job, manifest: Manifest, progress: ProgressReport) -> None:
    """Bring every part of the manifest to its finished files.

    Raises:
        OvssError: Images are missing after all rounds, or a stage failed as a whole.
    """
    before = None
    for _ in range(_MAX_ROUNDS):
        pending = _pending_parts(job.output, manifest)
        if not pending:
            break
        finished = _finished_masks(job.output, pending)
        missing = sum(int((~mask).sum()) for mask in finished.values())
        if before is None:
            failed = sum(marker["failed"] for marker in read_markers(job.output, manifest))
            progress.resume(manifest.images - missing, failed)
        else:
            _LOG.warning("%d images are still missing; running again for them", missing)
        if missing == before:
            break
        before = missing
        try:
            _run_round(job, finished, progress)
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            raise OvssError(f"the job stopped: {root_cause(error)}; the same command goes on") from error
    left = _pending_parts(job.output, manifest)
    if left:
        raise OvssError(
            f"{len(left)} of {len(manifest.counts)} parts are unfinished, such as {part_name(left[0])}; run the same "
            "command again, and report it if that does not help"
        )
    job.output.remove_folder(FRAGMENTS)


def _run_round(job: Job, finished: Mapping[int, np.ndarray], progress: ProgressReport) -> None:
    state = _Round({part: int((~mask).sum()) for part, mask in finished.items()})
    merge = ray.remote(num_cpus=0, max_retries=3)(merge_part)
    table = ray.put(job.table)
    for part in [part for part, count in state.expected.items() if count == 0]:
        _merge(state, merge, job, part, table)
    slices = plan_slices(finished, job)
    if slices:
        for row in _written(job, slices):
            progress.advance(row["labelled"], row["failed"])
            state.stored[row["part"]] += row["labelled"] + row["failed"]
            if state.stored[row["part"]] == state.expected.get(row["part"]):
                _merge(state, merge, job, row["part"], table)
    for part in list(state.expected):
        _merge(state, merge, job, part, table)
    ray.get(state.merges)


def _merge(state: _Round, merge: Any, job: Job, part: int, table: Any) -> None:
    del state.expected[part]
    state.stored.pop(part, None)
    if len(state.merges) >= _MERGES_AT_ONCE:
        ready, state.merges = ray.wait(state.merges, num_returns=1)
        ray.get(ready)
    state.merges.append(merge.remote(job.output.uri, part, table))


def plan_work(job: Job, manifest: Manifest) -> list[dict[str, Any]]:
    """List what a run would read now: the slices of all unfinished parts."""
    return plan_slices(_finished_masks(job.output, _pending_parts(job.output, manifest)), job)


def _pending_parts(output: Folder, manifest: Manifest) -> list[int]:
    done = set(output.names(DONE))
    return [part for part in range(len(manifest.counts)) if f"{part_name(part)}.json" not in done]


def _finished_masks(output: Folder, parts: Sequence[int]) -> dict[int, np.ndarray]:
    started = set(output.folders(FRAGMENTS))

    def mask(part: int) -> np.ndarray:
        ids = read_part(output, part, ["image_id"])["image_id"]
        if part_name(part) not in started:
            return np.zeros(len(ids), bool)
        stored = finished_ids(output, part)
        return np.array([image_id in stored for image_id in ids.to_pylist()], bool)

    with ThreadPoolExecutor(8) as threads:
        return dict(zip(parts, threads.map(mask, parts), strict=True))


def plan_slices(finished: Mapping[int, np.ndarray], job: Job) -> list[dict[str, Any]]:
    """Cut the unfinished parts into the slices that one read task takes at a time.

    Slices are small enough that every actor gets several of them, and hold a batch at least.
    """
    missing = sum(int((~mask).sum()) for mask in finished.values())
    actors = max(stage.pool.actors for stage in job.stages)
    batch = max(stage.batch_size for stage in job.stages)
    rows = max(batch, min(_SLICE_ROWS, math.ceil(missing / (_SLICES_PER_ACTOR * actors))))
    slices = []
    for part, mask in finished.items():
        step = len(mask) if job.image_column else rows
        for start in range(0, len(mask), step):
            piece = mask[start : start + step]
            if not piece.all():
                slices.append(pack_slice(part, start, start + len(piece), piece))
    return slices


def _written(job: Job, slices: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    reader = ReadImages(
        job.output.uri, job.source.uri, job.image_column, job.max_bytes, timeout_s=job.fetch_timeout_s
    )
    writer = WriteFragments(job.output.uri, job.table)
    ledger = AttemptLedger.start()
    together = _PARTS_PER_PARQUET_TASK if job.image_column else 1
    with _context(job):
        blocks = min(_MAX_BLOCKS, math.ceil(len(slices) / together))
        rows = ray.data.from_items(list(slices), override_num_blocks=blocks)
        rows = rows.map_batches(reader.read, batch_size=1, batch_format="pyarrow", num_cpus=READ_CPUS)
        for stage in job.stages:
            rows = rows.map_batches(
                stage.worker,
                fn_constructor_kwargs={**stage.arguments, "ledger": ledger},
                batch_size=stage.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=stage.pool.actors),
                num_cpus=stage.pool.num_cpus,
                num_gpus=stage.pool.num_gpus,
            )
        written = rows.map_batches(
            writer.write, batch_size=job.fragment_rows, batch_format="pyarrow", num_cpus=WRITE_CPUS
        )
        yield from written.iter_rows()


@contextmanager
def _context(job: Job) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    names = ("target_max_block_size", "execution_no_progress_timeout_s", "enable_progress_bars")
    before = {name: getattr(context, name) for name in names}
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = job.no_progress_s
    context.enable_progress_bars = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def root_cause(error: BaseException) -> str:
    """Find the line of Ray's report that names the error of our own code or of a library."""
    text = _COLOURS.sub("", str(error))
    named = [line for line in text.splitlines() if _ERROR_LINE.match(line)]
    lines = [line for line in text.splitlines() if line.strip()]
    return named[-1] if named else (lines[0] if lines else type(error).__name__)
