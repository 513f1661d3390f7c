"""What a run takes of object stores, of the disk for spilling, and of the head's memory, with stages that do nothing.

A head without CPUs and its worker nodes are pretended on this machine, each node with an object store of a given size,
and the job of `pipelines.benchmark.job_costs` moves the bytes of real images and proposals through them. One stage is
made slow on purpose, so that images pile up before it as they do before a GPU. Told is how much of its pace is reached (a
store that is too small shows there first), what lay in the stores at most, what was spilled, and whether
every image has one row at the end, without which the command fails.

What lies in a store is asked of each node's raylet ten times a second. Peaks between two looks are lost, so what the
store has ever touched of its shared memory is looked up as well; of a store that is never full it is an upper bound.
Ray's exported metrics are renewed every few seconds and would miss both.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ovss_core.errors import OvssError
from pipelines.benchmark.host_costs import HostCosts, sample_vocabulary
from pipelines.benchmark.job_costs import ROW_GROUP, NoopJob, noop_corpus, noop_stages, processor_seconds
from pipelines.label.table import label_table
from pipelines.run.capacity import Node, Pool, check_capacity
from pipelines.run.cluster import connected
from pipelines.run.events import shown_by
from pipelines.run.manifest import prepare_manifest
from pipelines.run.object_store import Flow, block_room, store_need
from pipelines.run.plan import rows_of_unit
from pipelines.run.progress import ProgressReport
from pipelines.run.runner import ActorStage, Job, run_job
from pipelines.storage import Folder

_MB = 1_000_000
_HEAD_STORE = 100 * _MB
_LEAST_STORE_MB = 80
"""Ray starts no store of less than 75 MiB."""
_LOOK_S, _SLOW_LOOKS = 0.1, 10
_SPILLED = "ray_spilled_objects"
_CPUS_A_WORKER = 0.5
_ROLES = {
    "raylet/raylet": "raylet",
    "gcs_server": "control service",
    "AttemptRecord": "ledger",
    "MapWorker": "workers",
    "Agent": "agents",
    "agent": "agents",
    "dashboard": "dashboard",
    "ray::": "tasks",
}
"""What a process is called, by a part of its command line; the first that fits."""


@dataclass(frozen=True)
class SizingJob:
    """A run whose stores are looked at.

    Attributes:
        records: Images.
        image_bytes: Bytes of an image file.
        proposal_bytes: Bytes that stage 1 hands to stage 2; 0 leaves out stage 2.
        batch: Images of a call.
        actors: Workers of each stage, all nodes together.
        unit_rows: Images of a read task at most.
        fragment_rows: Images that are stored together.
        nodes: Worker nodes.
        cpus: Logical CPUs of a worker node; what workers leave of them, four read or write tasks share.
        slow: The stage that is slow.
        speed: Images a second that the workers of the slow stage can do together.
        source: Files of a folder, or rows of a table, of which a read task takes 1,024.
        dashboard: Whether the head has Ray's dashboard, 0 or 1.
    """

    records: int = 640
    image_bytes: int = 800_000
    proposal_bytes: int = 1_400_000
    batch: int = 16
    actors: int = 2
    unit_rows: int = 1024
    fragment_rows: int = 32
    nodes: int = 1
    cpus: float = 4.0
    slow: str = "propose"
    speed: float = 32.0
    source: str = "folder"
    dashboard: int = 1

    @property
    def noop(self) -> NoopJob:
        """The same as a job of `pipelines.benchmark.job_costs`."""
        mine = {
            entry.name: getattr(self, entry.name) for entry in fields(NoopJob) if hasattr(self, entry.name)
        }
        return NoopJob(**mine)

    @property
    def pools(self) -> list[Pool]:
        """The workers of a node."""
        return [replace(stage.pool, actors=math.ceil(self.actors / self.nodes)) for stage in self.stages()]

    def stages(self, **waits: float) -> list[ActorStage]:
        """Return the stages; arguments as for `noop_stages`."""
        return noop_stages(self.noop, num_cpus=_CPUS_A_WORKER, **waits)

    @property
    def rule(self) -> int:
        """Bytes that a node's store should have by `pipelines.run.object_store`."""
        rows = rows_of_unit(self.records, self.actors, self.batch, self.unit_rows)
        if self.source == "table":
            rows = max(rows, min(self.records, ROW_GROUP))
        room = block_room(self.unit_rows)
        flow = Flow(rows, self.batch, room, self.image_bytes, self.proposal_bytes or self.image_bytes)
        return store_need(flow, self.pools)


@dataclass
class Taken:
    """What a run took; bytes.

    Attributes:
        store: Size of a worker node's object store.
        used: The most that lay in the store of one worker node.
        touched: The most of its shared memory that any of them ever wrote to.
        head_used: The most that lay in the head's store.
        spilled: Bytes that were written to disk for want of room, all nodes together.
        restored: Bytes that were read back.
        on_disk: The most of them that lay on the disk of one node, with objects that were made there at once.
        pace: Images a second, as a share of what the slow stage can do, once a quarter is stored.
        rows: Images with a row at the end.
        head: Memory of the head's processes by what they are, without what they share of the store.
        worker: The same of a worker node.
    """

    store: int = 0
    used: int = 0
    touched: int = 0
    head_used: int = 0
    spilled: int = 0
    restored: int = 0
    on_disk: int = 0
    pace: float = 0.0
    rows: int = 0
    head: dict[str, int] = field(default_factory=dict)
    worker: dict[str, int] = field(default_factory=dict)


def measure(job: SizingJob, store: int) -> Taken:
    """Run the job on nodes with stores of so many bytes each.

    Raises:
        OvssError: An image has no row, or more than one.
    """
    noop = job.noop
    waits = {f"wait_{'first' if job.slow == 'propose' else 'last'}": job.actors / job.speed}
    with tempfile.TemporaryDirectory() as root, _nodes(job, store) as nodes, connected(nodes[0].address):
        source = noop_corpus(noop, Path(root), job.records).open()
        output = Folder(f"{root}/out")
        manifest = prepare_manifest(output, source, 256)
        work = Job(
            output,
            source,
            job.stages(**waits),
            label_table(sample_vocabulary(HostCosts.classes)),
            unit_rows=job.unit_rows,
            fragment_rows=job.fragment_rows,
        )
        with Watch(nodes) as watch, shown_by(), _Timed(manifest.images) as progress:
            run_job(work, manifest, progress)
        rows = count_rows(Path(root, "out"), job.records)
    return replace(watch.taken, store=store, pace=progress.pace / job.speed, rows=rows)


class _Timed(ProgressReport):
    """Notes when images were stored."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._stored: list[tuple[float, int]] = []

    def advance(self, labelled: int, failed: int, reasons: Mapping[str, int] | None = None) -> None:
        super().advance(labelled, failed, reasons)
        self._stored.append((time.monotonic(), self.done))

    @property
    def pace(self) -> float:
        """Images a second from when a quarter was stored to the end."""
        (begun, first), (ended, last) = (
            next(entry for entry in self._stored if entry[1] >= self.total / 4),
            self._stored[-1],
        )
        return (last - first) / (ended - begun)


def count_rows(output: Path, wanted: int) -> int:
    """Count the rows of a finished output.

    Raises:
        OvssError: They are not one an image.
    """
    ids = [
        name
        for file in output.glob("labels/*.parquet")
        for name in pq.read_table(file, columns=["image_id"])["image_id"].to_pylist()
    ]
    if len(ids) != wanted or len(set(ids)) != wanted:
        raise OvssError(f"{wanted:,} images gave {len(ids):,} rows of {len(set(ids)):,} images")
    return len(ids)


@dataclass(frozen=True)
class _Node:
    """A node that is pretended here; the first is the head."""

    address: str
    host: str
    port: int
    raylet: int
    session: Path


@contextmanager
def _nodes(job: SizingJob, store: int) -> Iterator[list[_Node]]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": bool(job.dashboard), "object_store_memory": _HEAD_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        workers = [cluster.add_node(num_cpus=job.cpus, object_store_memory=store) for _ in range(job.nodes)]
        yield [_known(cluster.address, node) for node in (cluster.head_node, *workers)]
    finally:
        cluster.shutdown()


def _known(address: str, node: Any) -> _Node:
    [raylet] = node.all_processes["raylet"]
    return _Node(
        address,
        node.node_ip_address,
        node.node_manager_port,
        raylet.process.pid,
        Path(node.get_session_dir_path()),
    )


class Watch:
    """Looks at nodes while the block runs.

    Attributes:
        taken: What was seen, complete when the block has ended.
    """

    def __init__(self, nodes: Sequence[_Node]) -> None:
        self.taken = Taken()
        self._nodes = nodes
        self._spilled: dict[int, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.taken.spilled = sum(spilled for spilled, _ in self._spilled.values())
        self.taken.restored = sum(restored for _, restored in self._spilled.values())

    def _watch(self) -> None:
        looks = 0
        while not self._stop.wait(_LOOK_S):
            for place, node in enumerate(self._nodes):
                with suppress(Exception):  # a node that is too busy to answer must not end the run
                    self._look(place, node)
            if looks % _SLOW_LOOKS == 0:
                self._look_at_memory()
            looks += 1

    def _look(self, place: int, node: _Node) -> None:
        from ray._private.internal_api import node_stats

        found = node_stats(node.host, node.port, include_memory_info=False).store_stats
        self._spilled[place] = found.spilled_bytes_total, found.restored_bytes_total
        if place == 0:
            self.taken.head_used = max(self.taken.head_used, found.object_store_bytes_used)
            return
        disk = found.object_store_bytes_fallback + _folder_bytes(node.session)
        self.taken.used = max(self.taken.used, found.object_store_bytes_used)
        self.taken.touched = max(self.taken.touched, _touched(node.raylet))
        self.taken.on_disk = max(self.taken.on_disk, disk)

    def _look_at_memory(self) -> None:
        parents, raylets = dict(_parents()), {node.raylet: place for place, node in enumerate(self._nodes)}
        found: defaultdict[tuple[bool, str], int] = defaultdict(int)
        for number, line, _ in processor_seconds():
            ancestor = number
            while ancestor in parents and ancestor not in raylets:
                ancestor = parents[ancestor]
            found[raylets.get(ancestor, 0) == 0, role(line)] += own_memory(number)
        for (on_head, kind), size in found.items():
            own = self.taken.head if on_head else self.taken.worker
            own[kind] = max(own.get(kind, 0), size if on_head else size // (len(self._nodes) - 1))


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            _, _, rest = (folder / "stat").read_text(errors="replace").rpartition(") ")
            yield int(folder.name), int(rest.split()[1])


def role(line: str) -> str:
    """Say what a process is, from its command line, in which Ray's workers write what they do."""
    return next(
        (role for sign, role in _ROLES.items() if sign in line), line if line == "driver" else "other"
    )


def own_memory(process: int) -> int:
    """Return a process's own bytes and its share of those that several processes have in common, without the store's."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return 1024 * sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_File") if name in sizes)
    return 0


def _touched(raylet: int) -> int:
    """Return the bytes of shared memory that the store of a raylet ever wrote to; it gives none of them back."""
    size = 0
    for file in Path(f"/proc/{raylet}/fd").iterdir():
        with suppress(OSError):
            if "plasma" in os.readlink(file):  # noqa: PTH115 (the file is deleted, so no path leads there)
                size += 512 * file.stat().st_blocks
    return size


def _folder_bytes(session: Path) -> int:
    size = 0
    for file in session.glob(f"{_SPILLED}*/*"):
        with suppress(OSError):
            size += file.stat().st_size
    return size


def as_row(job: SizingJob, taken: Taken) -> str:
    """Return a line of the table."""
    given = f"{job.image_bytes / 1000:g} + {job.proposal_bytes / 1000:g}"
    shape = f"{job.nodes} x ({job.cpus:g} CPU, {job.actors / job.nodes:g} + {job.actors / job.nodes:g})"
    sizes = (job.rule, taken.store, taken.used, taken.touched, taken.spilled, taken.restored, taken.on_disk)
    told = " | ".join(f"{size / _MB:,.0f}" for size in sizes)
    return f"| {given} | {shape} | {job.slow} | {told} | {taken.pace:.2f} | {taken.rows:,} |"


HEADER = (
    "| kB an image + a proposal | nodes x (CPUs, workers) | slow | rule MB | store | used | touched | spilled | restored "
    "| on disk | pace | rows |\n|" + "---|" * 12
)


def as_memory(name: str, taken: Mapping[str, int]) -> str:
    """Return the memory of a node's processes as a line."""
    parts = ", ".join(f"{role} {size / _MB:,.0f}" for role, size in sorted(taken.items()))
    return f"{name}: {parts}; all {sum(taken.values()) / _MB:,.0f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.sizing", description=__doc__)
    parser.add_argument(
        "--of-rule",
        type=float,
        nargs="+",
        default=[2, 1, 0.5],
        help="Stores, as shares of what the rule says.",
    )
    parser.add_argument("--store-mb", type=float, nargs="+", help="Stores in MB, instead.")
    for name, default in vars(SizingJob()).items():
        choices = {"slow": ("propose", "finish"), "source": ("folder", "table")}.get(name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices
        )
    parser.add_argument(
        "--json", action="store_true", help="Print what was found for programs, a line a store."
    )
    given = vars(parser.parse_args(arguments))
    as_json, stores, shares = (given.pop(name) for name in ("json", "store_mb", "of_rule"))
    job = SizingJob(**given)
    check_capacity(job.pools, [Node(job.cpus, 0)])  # else it would wait for ever
    stores = stores or [max(_LEAST_STORE_MB, share * job.rule / _MB) for share in shares]
    if not as_json:
        print(HEADER)
    for store in stores:  # in a process of its own: the driver's memory is measured, too
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            taken = process.submit(measure, job, int(store * _MB)).result()
        print(
            json.dumps(asdict(job) | {"rule": job.rule} | asdict(taken)) if as_json else as_row(job, taken),
            flush=True,
        )
        if not as_json:
            print(
                as_memory("head", taken.head),
                as_memory("worker node", taken.worker),
                sep="\n",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
