"""The course of a run, the same for every job: check, start Ray, plan, encode the text, list, work, add up.

What can be known without Ray is decided first, and a run whose output is finished already ends there. Whether an output
is continued is asked a second time when the text is encoded, because only then the weights' hashes are known. Nothing is
written before the checks have passed but a file that shows whether the output can be written to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, TypeVar, cast

import ray

from ovss_core.clip.licenses import find_license
from ovss_core.config import ModelConfig, ProxyConfig
from ovss_core.errors import (
    ClusterError,
    ConfigError,
    ModelError,
    OvssError,
    StorageError,
    WeightsError,
)
from pipelines.run.awaiting import await_plan
from pipelines.run.capacity import Node
from pipelines.run.cluster import connected, run_near_gpu
from pipelines.run.events import displayed, log_into, say
from pipelines.run.execution import root_cause
from pipelines.run.handed_weights import among_machines
from pipelines.run.lease import held
from pipelines.run.manifest import is_read_whole, is_streamed, prepare_manifest, read_manifest
from pipelines.run.manifest_files import COMPLETE, Manifest
from pipelines.run.object_store import IMAGE_ROOM, tightest_store
from pipelines.run.options import PoolOptions, RunOptions
from pipelines.run.pools import WorkerPlan, expected_flow
from pipelines.run.progress import ProgressReport, announced
from pipelines.run.record import CLEARING, RUN, check_identity, continues_run, remove_run, write_run
from pipelines.run.retry import reopen_failed
from pipelines.run.runner import ActorStage, Job, run_job
from pipelines.run.sink import OutputTable
from pipelines.run.state_files import DamagedFileError
from pipelines.run.stopping import Stop
from pipelines.run.summary import read_markers, write_summary
from pipelines.run.verify import is_whole
from pipelines.run.weight_hashes import CLIP_HASH, PROXY_HASH, UNKNOWN, WeightHashes, hash_weights
from pipelines.sources import ImageRecord, Source
from pipelines.sources.image_words import ImageWords
from pipelines.storage import Folder, redact

_LISTED_STEP = 1000
_IMAGES_STORED = 256
"""The most rows that are stored together where each has its image's own bytes, which may be megabytes."""
Text = Any
"""What the workers need of the encoded vocabulary."""
OpenSource = TypeVar("OpenSource", bound=Source)


@dataclass(frozen=True)
class Course:
    """What a job adds to the course of a run.

    Attributes:
        table: The output table.
        identity: Gives what decides the results, from the weights' hashes (`UNKNOWN` where no model decides).
        stages: Gives the stages, from the plan and the text.
        model: Whose weights decide the results.
        encode: Called as ``encode(*encode_arguments, device)`` near a GPU; returns the text and the weights' hashes. Comes
            with a model.
        encoding: What is said meanwhile.
        details: What else `run.json` says of this start.
        adjust: Changes the plan to what the job's batches take.
        two_stages: Whether stage 2 has work of its own.
        max_bytes: Image files with more bytes are refused.
        fetch_timeout_s: Seconds that one image may take to arrive.
        patience: Factor on the seconds in which something must move.
        proxy: The second tower whose weights decide the results as well, or None.
        begin: Called with the output once it is known to be the run's.
        reports: Files of the job beside its table, removed when it starts anew.
        words: Reads the words that images bring along; None where they bring none.
    """

    source: Source
    run: RunOptions
    pools: PoolOptions
    table: OutputTable
    identity: Callable[[WeightHashes], dict[str, Any]]
    stages: Callable[[WorkerPlan, Text], Sequence[ActorStage]]
    model: ModelConfig | None = None
    encode: Callable[..., tuple[Text, WeightHashes]] | None = None
    encoding: str = "loading the model and encoding the vocabulary"
    encode_arguments: tuple[Any, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    adjust: Callable[[WorkerPlan], WorkerPlan] = lambda plan: plan
    two_stages: bool = False
    max_bytes: int = 1 << 28
    fetch_timeout_s: float = 60.0
    patience: float = 1.0
    begin: Callable[[Folder], None] = lambda output: None
    reports: tuple[str, ...] = ()
    proxy: ProxyConfig | None = None
    words: ImageWords | None = None

    @property
    def output(self) -> Folder:
        """Where the run writes."""
        return Folder(self.run.output)


def carry_out(course: Course) -> tuple[dict[str, Any], Manifest]:
    """Run a job from its checks to its summary, and return the summary and the manifest.

    Raises:
        ConfigError: Before any worker starts: an output of another run.
        StorageError: Before any worker starts: no images, or an output that cannot be written.
        ModelError: Before any worker starts: an architecture that cannot be used.
        WeightsError: Before any worker starts: the model's weights are missing.
        ClusterError: Before any worker starts: Ray cannot start, or the cluster is too small.
        OvssError: The run stopped, or its counts do not add up.
    """
    stop = Stop(course.run.grace_s)
    with displayed(course.run), ExitStack() as lease:
        with _refusing_in_one_line():
            known = course.identity(UNKNOWN)
            if not course.run.overwrite:  # another run's output is refused before anything is written there
                continues_run(course.output, known, but=(CLIP_HASH, PROXY_HASH))
            course.output.check_writable()
        with announced(f"taking the lease of {course.output.public_uri}") as tell:
            lease.enter_context(held(course.output, stop.fail, tell))
        return _carry_out(course, known, stop)


def _carry_out(course: Course, known: Mapping[str, Any], stop: Stop) -> tuple[dict[str, Any], Manifest]:
    """Run a job on an output that no other driver works on.

    Args:
        known: The run's identity without its weights. Asked again here: another driver may have ended since.
    """
    output, run = course.output, course.run
    with _refusing_in_one_line():
        replaces = run.overwrite or not continues_run(output, known, but=(CLIP_HASH, PROXY_HASH))
        manifest = None if replaces else _extend_finished(course)
    if manifest and _is_finished(course, manifest):
        with stopping_in_one_line():
            return write_summary(output, manifest, _this_start(0, 0.0)), manifest
    with connected(run.address, run.verbose) as joined, among_machines(joined):
        plan, nodes = _plan(course, joined)
        text, hashes = _encode(course, plan)
        identity = course.identity(hashes)
        replaces = replaces or not continues_run(output, identity)
        with stopping_in_one_line():
            if replaces:
                remove_run(output, course.table.name)
                for name in course.reports:
                    output.remove(name)
            write_run(output, identity, _details(course, plan, nodes))
            log_into(output)
            course.begin(output)
            manifest = manifest or _list(course)
            return _work(course, manifest, plan, nodes, text, stop)


def open_source(uri: str | None, open_it: Callable[[], OpenSource], run: RunOptions) -> OpenSource:
    """Open a source, and see that it holds an image, where that is known before all of it is listed.

    Raises:
        StorageError: It holds none.
    """
    with _refusing_in_one_line(), announced(f"looking into {redact(uri or '')}"):
        source = open_it()
        late = is_streamed(source) or getattr(source, "lists_at_once", False)
        if not late and next(iter(source.records()), None) is None:
            raise StorageError(
                f"no image in {source.describe()['uri']}; check the path and the files' extensions"
            )
    return source


@contextmanager
def _refusing_in_one_line() -> Iterator[None]:
    """Turn what the system says against a place into the error of a command that has not begun."""
    try:
        yield
    except OvssError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise StorageError(f"{place}{error.strerror or root_cause(error)}") from error


@contextmanager
def stopping_in_one_line() -> Iterator[None]:
    """Turn what goes wrong once a run has begun into an error that says it can go on; it is no refusal then."""
    try:
        yield
    except (ConfigError, ModelError, ClusterError, OSError, ray.exceptions.RayError) as error:
        raise OvssError(
            f"the run stopped: {root_cause(error)}; put that right, and the same command goes on"
        ) from error


def _extend_finished(course: Course) -> Manifest | None:
    """Bring the manifest of a finished output up to date without Ray; None where there is work to be done anyway."""
    output = course.output
    if output.exists(CLEARING) or not output.exists(RUN) or not output.exists(COMPLETE):
        return None
    try:
        if not _is_finished(course, read_manifest(output)):
            return None
    except DamagedFileError:  # the run that comes now repairs it
        return None
    hashes = UNKNOWN
    if course.model is not None:
        with announced("everything is done; comparing the weights"):
            try:
                hashes = hash_weights(course.model, course.proxy)
            except (ModelError, WeightsError):  # they may lie on the cluster's nodes only
                return None
    check_identity(output, course.identity(hashes))
    return _list(course)


def _is_finished(course: Course, manifest: Manifest) -> bool:
    if not is_whole(course.output, manifest, course.table.name):
        return False
    failed = any(marker["failed"] for marker in read_markers(course.output, manifest))
    return not (course.run.retry_failed and failed)


def _list(course: Course) -> Manifest:
    with announced(f"listing {course.source.describe()['uri']}") as tell:
        counted = cast(Source, _Counted(course.source, tell))
        manifest = prepare_manifest(course.output, counted, course.run.shard_size)
    if manifest.appended is not None:
        kind = "shards" if manifest.streamed else "images"
        gone = f", {manifest.gone:,} of those that were ever listed are gone" if manifest.gone else ""
        fields = {"new": manifest.appended, "gone": manifest.gone, "of": kind}
        say(f"{manifest.appended:,} {kind} new since the last run{gone}", "listed", **fields)
    return manifest


class _Counted:
    """A source that says how many images it has listed."""

    def __init__(self, source: Source, tell: Callable[[str], None]) -> None:
        self._source, self._tell = source, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def records(self, *arguments: Any, **options: Any) -> Iterator[ImageRecord]:
        for count, record in enumerate(self._source.records(*arguments, **options), 1):
            if count % _LISTED_STEP == 0:
                self._tell(f"{count:,} images so far")
            yield record


def _plan(course: Course, joined: bool) -> tuple[WorkerPlan, list[Node]]:
    run = course.run
    if not joined:
        plan, nodes = await_plan(course.pools, course.two_stages, 0.0, joined=False)
        return course.adjust(plan), nodes
    with announced("looking for workers") as tell:
        plan, nodes = await_plan(course.pools, course.two_stages, run.cluster_wait_s, tell)
    return course.adjust(plan), nodes


def _encode(course: Course, plan: WorkerPlan) -> tuple[Text, WeightHashes]:
    """Encode what the workers need of the text, where the job has any."""
    if course.encode is None:
        return None, UNKNOWN
    with announced(course.encoding):
        text, hashes = run_near_gpu(course.encode, *course.encode_arguments, use_gpu=plan.on_gpus)
    return text, hashes


def _details(course: Course, plan: WorkerPlan, nodes: Sequence[Node]) -> dict[str, Any]:
    return {
        **course.details,
        **({"weights_license": find_license(course.model).to_dict()} if course.model else {}),
        "pools": asdict(plan),
        "cluster": [asdict(node) for node in nodes],
        "run": {**asdict(course.run), "output": course.output.public_uri, "address": None},
    }


def _work(
    course: Course, manifest: Manifest, plan: WorkerPlan, nodes: Sequence[Node], text: Text, stop: Stop
) -> tuple[dict[str, Any], Manifest]:
    output, run, source = course.output, course.run, course.source
    if run.retry_failed:
        manifest = reopen_failed(output, source, manifest, course.table, run.shard_size)
    work = Job(
        output,
        source,
        course.stages(plan, text),
        course.table,
        max_bytes=course.max_bytes,
        fetch_timeout_s=course.fetch_timeout_s,
        shard_size=run.shard_size,
        file_bytes=run.file_bytes,
        unit_rows=plan.unit_rows,
        fragment_rows=min(plan.fragment_rows, _IMAGES_STORED)
        if course.table.keeps_images
        else plan.fragment_rows,
        no_progress_s=run.no_progress_s * course.patience,
        words=course.words,
    )
    room = (1 + course.table.keeps_images) * IMAGE_ROOM
    flow = expected_flow(plan, manifest.images, room, room, is_read_whole(source), is_streamed(source))
    store = tightest_store(flow, plan.pools, nodes)
    if store.advice:
        say(f"the object store of a node has {store}: {store.advice}")
    start = monotonic()
    workers = ", ".join(f"{pool.size} x {pool.name}" for pool in plan.pools)
    say(f"starting workers ({workers}{' on GPUs' if plan.on_gpus else ''})")
    waiting = "loading the model in the workers" if course.model else "waiting for the first ones"
    with ProgressReport(manifest.images, final=not manifest.unlisted, waiting=waiting) as progress:
        manifest = run_job(work, manifest, progress, stop=stop)
    stop.check()
    seconds = monotonic() - start
    return write_summary(output, manifest, _this_start(progress.fresh, seconds)), manifest


def _this_start(images: int, seconds: float) -> dict[str, Any]:
    speed = images / seconds if seconds else 0.0
    return {"images": images, "seconds": round(seconds, 3), "images_per_second": round(speed, 3)}
