"""What a labelling run would cost, before it starts: the corpus listed, a sample labelled, and nothing written."""

import heapq
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ovss_core.config import SegmenterConfig
from ovss_core.errors import ClusterError, StorageError
from ovss_core.images.resize import resized_size
from ovss_core.images.windows import WindowLayout
from pipelines.faults import Failure
from pipelines.label.job import LabelJob, encode_text, image_words, opened, stages_of
from pipelines.preflight import fetch_weights
from pipelines.run.awaiting import await_plan
from pipelines.run.cluster import connected, run_near_gpu
from pipelines.run.execution import root_cause
from pipelines.run.fragments import encode_parquet
from pipelines.run.handed_weights import among_machines
from pipelines.run.manifest import is_read_whole, is_streamed
from pipelines.run.object_store import Store, tightest_store
from pipelines.run.pools import WorkerPlan, expected_flow
from pipelines.run.progress import announced, duration
from pipelines.run.schema import WORDS_CARRIER
from pipelines.run.shards import shard_bytes
from pipelines.run.share import place_of
from pipelines.sources import Source
from pipelines.sources.image_words import ImageWords, Texts
from pipelines.sources.record import ImageRecord
from pipelines.sources.tar_stream import TarImage, stream_tar
from pipelines.transport.patient_stream import open_patiently

_SAMPLE_BATCHES, _WARM = 2, 2
_MOST = 256
_SHARDS_SIZED = 64
_ID_BYTES, _PART_BYTES = 48, 700


@dataclass(frozen=True)
class Corpus:
    """What a source holds, as far as that was found out.

    Attributes:
        images: How many; an estimate for shards.
        parts: Parts of the run's manifest.
        counted: Whether every image was listed.
        sample: Rows of `WORDS_CARRIER` of images at random.
        sampled: How many were fetched, those that could not be had included.
    """

    images: int
    parts: int
    counted: bool
    sample: pa.Table
    sampled: int

    @property
    def image_bytes(self) -> float:
        """Mean bytes of an image."""
        sizes = [len(image) for image in self.sample["image"].to_pylist() if image is not None]
        return float(np.mean(sizes)) if sizes else 0.0


@dataclass(frozen=True)
class StageTime:
    """How fast all workers of a stage were together.

    Attributes:
        workers: How many there are.
        images_per_second: Of all workers at once, each on the whole sample.
        by_node: Workers by the node that Ray put them on.
    """

    workers: int
    images_per_second: float
    by_node: tuple[int, ...]


@dataclass(frozen=True)
class Forecast:
    """What a run would be.

    Attributes:
        plan: Its workers.
        stages: How fast they were.
        windows: Mean windows of an image.
        failed: Images of the sample that failed, read or labelled.
        row_bytes: Mean bytes of an image's row in the output.
        driver_bytes: Memory that the driver will take, about.
        store: The object store of the node where it is tightest.
    """

    corpus: Corpus
    plan: WorkerPlan
    stages: tuple[StageTime, ...]
    windows: float
    failed: int
    row_bytes: float
    driver_bytes: float
    store: Store

    @property
    def hours(self) -> tuple[float, float]:
        """Hours of the run: where its stages do not slow each other down, and where they share what they compute on."""
        each = [self.corpus.images / stage.images_per_second / 3600 for stage in self.stages]
        return max(each), sum(each)

    @property
    def gpus(self) -> float:
        """GPUs that the workers reserve."""
        return sum(pool.actors * pool.num_gpus for pool in self.plan.pools)

    def lines(self) -> Iterator[str]:
        """Say it."""
        corpus, (least, most) = self.corpus, self.hours
        about = "" if corpus.counted else "about "
        share = f" ({self.failed} of {corpus.sampled} sampled failed)" if self.failed else ""
        yield f"images           {about}{corpus.images:,}{share}"
        yield f"bytes            about {_size(corpus.images * corpus.image_bytes)} ({_size(corpus.image_bytes)} an image)"
        yield f"windows          about {corpus.images * self.windows:,.0f} ({self.windows:.1f} an image)"
        for pool, stage in zip(self.plan.pools, self.stages, strict=True):
            nodes = Counter(stage.by_node)
            spread = ", ".join(
                f"{count} on {held} node{'s' * (held > 1)}" for count, held in sorted(nodes.items())
            )
            yield (
                f"{pool.name:<17}{pool.size} workers of {pool.num_cpus:g} CPU and {pool.num_gpus:g} GPU ({spread}); "
                f"{stage.images_per_second / stage.workers:.2f} images/s a worker"
            )
        yield f"time             {_hours(least)} to {_hours(most)}"
        yield f"GPU time         {least * self.gpus:.1f} to {most * self.gpus:.1f} GPU hours"
        yield f"output           about {_size(corpus.images * self.row_bytes)} ({_size(self.row_bytes)} an image)"
        yield f"driver           about {_size(self.driver_bytes)} of memory, {corpus.parts:,} parts"
        yield f"object store     a node has {self.store}"
        if self.store.advice:
            yield f"                 {self.store.advice}"


def forecast_label(job: LabelJob) -> Forecast:
    """Find out what a run would cost; nothing is written.

    Raises:
        ConfigError, StorageError, WeightsError, ClusterError: As `run_label`.
    """
    job = replace(job, segmenter=fetch_weights(job.segmenter))
    source, _ = opened(job)
    chosen = job.selection.of(source)
    two_stages = job.segmenter.purification.needs_crops
    with connected(job.run.address, job.run.verbose) as joined, among_machines(joined):
        with announced("looking for workers") as tell:
            wait = job.run.cluster_wait_s if joined else 0.0
            plan, nodes = await_plan(job.pools, two_stages, wait, tell, joined=joined)
        wanted = min(_MOST, max(2 * _WARM, _SAMPLE_BATCHES * plan.batch_size))
        with announced(f"listing {chosen.describe()['uri']}") as tell:
            corpus = _look(chosen, job, image_words(job, source), wanted, tell)
        with announced(f"loading the model and encoding {job.phrases:,} phrases"):
            text, _ = run_near_gpu(encode_text, job.segmenter, job.known, job.sentences, use_gpu=plan.on_gpus)
        rows, stages, sizes = corpus.sample, [], []
        for stage in stages_of(job, plan, text):
            sizes.append(rows.nbytes / rows.num_rows)
            with announced(f"labelling {corpus.sampled} images ({stage.name})"):
                time_, rows = _calibrate(
                    stage.name, stage.worker, dict(stage.arguments), stage.pool, stage.batch_size, rows
                )
            stages.append(time_)
    labelled = pa.Table.from_struct_array(rows["result"].combine_chunks().drop_null())
    if not labelled.num_rows:
        reason = next(entry["reason"] for entry in rows["failure"].to_pylist() if entry)
        raise StorageError(f"none of {corpus.sampled} sampled images could be labelled, such as: {reason}")
    memory = _memory() + _ID_BYTES * corpus.images + _PART_BYTES * corpus.parts
    kept = corpus.image_bytes * job.columns.embed_images
    moved = [size + kept for size in sizes]
    whole, streamed = is_read_whole(source), is_streamed(source)
    flow = expected_flow(plan, corpus.images, moved[0], moved[-1], whole, streamed)
    return Forecast(
        corpus,
        plan,
        tuple(stages),
        _windows(labelled, job.segmenter),
        corpus.sampled - labelled.num_rows,
        len(encode_parquet(labelled)) / labelled.num_rows + kept,
        memory,
        tightest_store(flow, plan.pools, nodes),
    )


def _look(
    source: Source, job: LabelJob, reader: ImageWords | None, wanted: int, tell: Callable[[str], None]
) -> Corpus:
    size = job.run.shard_size
    if is_streamed(source):
        return _look_into_shards(source, job, reader, wanted)
    count = 0

    def counted() -> Iterator[ImageRecord]:
        nonlocal count
        for record in source.records():
            count += 1
            if count % 10_000 == 0:
                tell(f"{count:,} images so far")
            yield record

    chosen = heapq.nsmallest(wanted, counted(), lambda record: place_of(str(job.part.seed), record.image_id))
    if not chosen:
        raise StorageError(f"no image in {source.describe()['uri']}; check the path")
    fetcher = source.fetcher(job.source.max_bytes, job.source.fetch_timeout_s)
    with ThreadPoolExecutor(8) as threads:
        rows = [asdict(record) for record in chosen]
        fetched = fetcher.fetch(rows, threads)
        words: list[Texts | Failure] = [None] * len(rows) if reader is None else reader.read(rows, threads)
    ids = [(record.image_id, record.uri) for record in chosen]
    return Corpus(count, -(-count // size), True, _carrier(ids, fetched, words), len(chosen))


def _look_into_shards(source: Source, job: LabelJob, reader: ImageWords | None, wanted: int) -> Corpus:
    """Read the first images of shards at random, and take how many images their bytes hold for all shards."""
    names = sorted(source.containers() or (), key=lambda name: place_of(str(job.part.seed), name))
    fields: Any = source.fields  # type: ignore[attr-defined]
    with ThreadPoolExecutor(8) as threads:
        some = names[:_SHARDS_SIZED]
        sizes = [size for size in threads.map(lambda name: shard_bytes(source.uri, name), some) if size]
    ids: list[tuple[str, str]] = []
    fetched: list[bytes | Failure] = []
    words: list[Texts | Failure] = []
    read = 0
    for name in names[:4]:
        with open_patiently(source.uri, name, job.source.fetch_timeout_s) as stream:
            items = stream_tar(stream, fields, job.source.max_bytes)
            left = islice((item for item in items if isinstance(item, TarImage)), wanted - len(fetched))
            for image in left:
                ids.append((f"{name}/{image.key}", name))
                fetched.append(image.data or Failure("read", "ImageError", image.problem or "no bytes"))
                words.append(None if reader is None else reader.of_beside(image.beside))
            read += stream.tell()
        if len(fetched) >= wanted:
            break
    if not fetched or not sizes:
        raise StorageError(f"no image in the first shards of {source.describe()['uri']}; check the path")
    images = max(len(fetched), round(float(np.mean(sizes)) * len(names) * len(fetched) / max(read, 1)))
    parts = max(len(names), -(-images // job.run.shard_size))
    return Corpus(images, parts, False, _carrier(ids, fetched, words), len(fetched))


def _carrier(
    ids: Sequence[tuple[str, str]], fetched: Sequence[bytes | Failure], words: Sequence[Texts | Failure]
) -> pa.Table:
    rows = []
    for (image_id, uri), value, own in zip(ids, fetched, words, strict=True):
        failed = next((entry for entry in (value, own) if isinstance(entry, Failure)), None)
        rows.append(
            {
                "part": "",
                "image_id": image_id,
                "uri": uri,
                "image": None if failed else value,
                "failure": failed.to_dict() if failed else None,
                "own_words": None if failed else own,
            }
        )
    return pa.Table.from_pylist(rows, schema=WORDS_CARRIER)


def _calibrate(
    name: str, worker: type, arguments: Mapping[str, Any], pool: Any, batch_size: int, rows: pa.Table
) -> tuple[StageTime, pa.Table]:
    """Let all workers of a stage work on the sample at once, as they will; each warms up first.

    Raises:
        ClusterError: They did not come up, or failed.
    """
    options = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
    actor = ray.remote(**options)(_Calibrator)
    given, table = ray.put(dict(arguments)), ray.put(rows)
    workers = [actor.remote(worker, given, batch_size) for _ in range(pool.actors)]
    try:
        nodes = ray.get([each.warm.remote(table) for each in workers])
        begun = time.monotonic()
        done = [each.run.remote(table) for each in workers]
        ray.wait(done, num_returns=len(done))
        seconds = time.monotonic() - begun
        result: pa.Table = ray.get(done[0])
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a worker of {name} could not label the sample: {root_cause(error)}") from error
    finally:
        for each in workers:
            ray.kill(each)
    rate = pool.actors * rows.num_rows / max(seconds, 1e-9)
    return StageTime(pool.actors, rate, tuple(Counter(nodes).values())), result


class _Calibrator:
    """A worker of a stage, outside Ray Data."""

    def __init__(self, worker: Callable[..., Any], arguments: Mapping[str, Any], batch_size: int) -> None:
        self._stage, self._batch = worker(**arguments), batch_size

    def warm(self, rows: pa.Table) -> str:
        """Load what is loaded with the first batch; returns the node."""
        self._stage(rows.slice(0, _WARM))
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def run(self, rows: pa.Table) -> pa.Table:
        """Work on the sample in batches."""
        starts = range(0, rows.num_rows, self._batch)
        return pa.concat_tables([self._stage(rows.slice(start, self._batch)) for start in starts])


def _windows(labelled: pa.Table, segmenter: SegmenterConfig) -> float:
    config = segmenter.windows
    layouts = [
        WindowLayout.of(*resized_size((height, width), config.short_side, config.long_side), config)
        for height, width in zip(labelled["height"].to_pylist(), labelled["width"].to_pylist(), strict=True)
    ]
    return float(np.mean([len(layout) for layout in layouts]))


def _memory() -> float:
    """Return the most memory that this process has taken so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else 1024 * most)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _hours(hours: float) -> str:
    return duration(3600 * hours) if hours < 48 else f"{hours:,.0f} hours"
