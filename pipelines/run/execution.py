"""The one place that talks to Ray Data: units of work through a read stage, actor pools and the sink."""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.data.exceptions

from ovss_core.errors import OvssError
from pipelines.run.capacity import READ_CPUS, WRITE_CPUS, Pool
from pipelines.run.ledger import AttemptLedger
from pipelines.run.manifest import is_streamed
from pipelines.run.object_store import block_room
from pipelines.run.options import FETCH_SHARE
from pipelines.run.plan import UNIT_ROWS
from pipelines.run.publish import publish
from pipelines.run.reading import ReadImages
from pipelines.run.sink import OutputTable, WriteFragments, merge_parts
from pipelines.run.work_units import Unit, pack_units
from pipelines.sources import Source
from pipelines.sources.image_words import ImageWords
from pipelines.storage import Folder

_MAX_BLOCKS = 4096
_MERGES_AT_ONCE = 4
_PARTS_A_MERGE, _MERGE_S = 32, 1.0
"""The most parts that one task merges, and how often one begins where fewer are ready: a task costs the driver 2 ms."""
_FILES_AT_ONCE = 2
_COLORS = re.compile(r"\x1b\[\d+m")
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
        fetch_timeout_s: Seconds that one file may take to arrive; at most a third of `no_progress_s`, as a table of
            files that all fail may take twice as long.
        shard_size: Images of a part of a shard that is listed while it is read.
        unit_rows: Images of a read task where there are many. The driver's work is by the task and block: of 1,024
            images it took 2.7 times as much an image as of 4,096; what is under way when a run is killed is done again.
        file_bytes: Parts are put together in files of about so many bytes at the end.
        fragment_rows: Images that are stored together while a part is unfinished; what a kill can cost.
        no_progress_s: Give up when Ray moves nothing for so long.
        words: Reads the words that images bring along; None where they bring none.
    """

    output: Folder
    source: Source
    stages: Sequence[ActorStage]
    table: OutputTable
    max_bytes: int = 1 << 28
    fetch_timeout_s: float = 60.0
    shard_size: int = 256
    unit_rows: int = UNIT_ROWS
    fragment_rows: int = 16
    file_bytes: int = 1 << 28
    no_progress_s: float = 300.0
    words: ImageWords | None = None


class Execution(Protocol):
    """What moves the images; `RayExecution`, or a plain loop in tests."""

    def written(self, units: Sequence[Unit]) -> Iterator[Mapping[str, Any]]:
        """Do the work, and yield rows of `pipelines.run.sink.WRITTEN` as fragments are stored."""

    def merge(self, part: str) -> None:
        """Begin to merge a part whose rows are all stored."""

    def publish(self, number: int, parts: Mapping[str, int]) -> None:
        """Begin to write a file for readers: rows of each part, in order."""

    def wait(self) -> None:
        """Wait until all that `merge` and `publish` were called for is there."""

    def stop(self) -> None:
        """Begin no further image, so that `written` ends when what was begun is stored."""

    def finished(self) -> int:
        """Return how many images the last stage has finished, stored or not."""

    def noted(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Return, of some images, those that a stage began and never finished, with that stage."""

    def close(self) -> None:
        """Let go of what served all rounds; nothing is asked for afterwards."""


class RayExecution:
    """Moves images with Ray Data; one ledger serves all rounds of the run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._ledger = AttemptLedger.start()
        self._merge = ray.remote(num_cpus=0, max_retries=3)(merge_parts)
        self._publish = ray.remote(num_cpus=0, max_retries=3)(publish)
        self._table = ray.put(job.table)
        self._merges: list[Any] = []
        self._complete: list[str] = []
        self._merged = float("-inf")

    def written(self, units: Sequence[Unit]) -> Iterator[Mapping[str, Any]]:
        """Send units through all stages."""
        job = self.job
        reader = ReadImages(
            job.output.uri,
            job.source.fetcher(job.max_bytes, min(job.fetch_timeout_s, job.no_progress_s / FETCH_SHARE)),
            fields=getattr(job.source, "fields", None),
            shard_size=job.shard_size,
            ledger=self._ledger,
            keep_images=job.table.keeps_images,
            words=job.words,
        )
        writer = WriteFragments(job.output.uri, job.table)
        with _reported(), _context(job):
            rows = ray.data.from_items(
                pack_units(units), override_num_blocks=min(_MAX_BLOCKS, math.ceil(len(units)))
            )
            rows = rows.map_batches(reader.read, batch_size=1, batch_format="pyarrow", num_cpus=READ_CPUS)
            for stage in job.stages:
                rows = rows.map_batches(
                    stage.worker,
                    fn_constructor_kwargs={**stage.arguments, "ledger": self._ledger},
                    batch_size=stage.batch_size,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(
                        min_size=stage.pool.actors, max_size=stage.pool.largest
                    ),
                    num_cpus=stage.pool.num_cpus,
                    num_gpus=stage.pool.num_gpus,
                )
            written = rows.map_batches(
                writer.write, batch_size=job.fragment_rows, batch_format="pyarrow", num_cpus=WRITE_CPUS
            )
            written.set_name(f"ovss_{job.table.name}")
            yield from written.iter_rows()

    def merge(self, part: str) -> None:
        """Merge in a task; a few at once. Parts that come fast are merged by the second, many in one task."""
        self._complete.append(part)
        if len(self._complete) >= _PARTS_A_MERGE or time.monotonic() - self._merged > _MERGE_S:
            self._begin_merge()

    def _begin_merge(self) -> None:
        self._begin(_MERGES_AT_ONCE, self._merge, self._complete, self._table)
        self._complete, self._merged = [], time.monotonic()

    def publish(self, number: int, parts: Mapping[str, int]) -> None:
        """Write in a task; two at once, for each holds its file in memory."""
        table = self.job.table
        self._begin(_FILES_AT_ONCE, self._publish, table.name, table.schema, number, dict(parts))

    def _begin(self, at_once: int, task: Any, *arguments: Any) -> None:
        with _reported():
            while len(self._merges) >= at_once:
                ready, self._merges = ray.wait(self._merges, num_returns=1)
                ray.get(ready)
            self._merges.append(task.remote(self.job.output.uri, *arguments))

    def wait(self) -> None:
        """Wait for merges and files."""
        if self._complete:
            self._begin_merge()
        with _reported():
            ray.get(self._merges)
        self._merges = []

    def stop(self) -> None:
        """Tell the ledger, which readers and stages ask."""
        self._ledger.stop()

    def finished(self) -> int:
        """Ask the ledger."""
        return self._ledger.finished(self.job.stages[-1].name)

    def noted(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Ask the ledger."""
        return self._ledger.noted(ids)

    def close(self) -> None:
        """End the ledger, which outlives the run otherwise: what Ray Data keeps of a run in the driver refers to it."""
        self._ledger.close()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        raise OvssError(f"the job stopped: {root_cause(error)}; the same command goes on") from error


@contextmanager
def _context(job: Job) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    names = ("target_max_block_size", "execution_no_progress_timeout_s", "enable_progress_bars")
    before = {name: getattr(context, name) for name in names}
    context.target_max_block_size = block_room(job.unit_rows, is_streamed(job.source))
    context.execution_no_progress_timeout_s = job.no_progress_s
    context.enable_progress_bars = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def root_cause(error: BaseException) -> str:
    """Find the line of Ray's report that names the error of our own code or of a library."""
    text = _COLORS.sub("", str(error))
    named = [line for line in text.splitlines() if _ERROR_LINE.match(line)]
    lines = [line for line in text.splitlines() if line.strip()]
    return named[-1] if named else (lines[0] if lines else type(error).__name__)
