"""A run, from what is left to do until nothing is left.

A run goes in rounds. A round sends every image that has no fragment yet through the stages; parts are merged as
soon as all their rows are stored. Should a round leave images behind (a worker that died between two blocks may
lose one, a finished file may turn out to be damaged), the next one does them; a round that brings nothing new ends
the run with an error.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from ovss_core.errors import OvssError
from pipelines.run import metrics
from pipelines.run.execution import ActorStage, Execution, Job, RayExecution
from pipelines.run.fragments import FRAGMENTS, finished_ids
from pipelines.run.manifest import prepare_manifest, refresh_manifest
from pipelines.run.manifest_files import FOLDER as MANIFEST
from pipelines.run.manifest_files import Manifest, read_part
from pipelines.run.plan import Plan, plan_work
from pipelines.run.progress import ProgressReport, beside
from pipelines.run.publish import PARTS, free_numbers, plan_files, read_published
from pipelines.run.record import LOGS, PREVIEWS, REPORT
from pipelines.run.sink import DONE, FAILED, read_marker
from pipelines.run.state_files import DamagedFileError
from pipelines.run.stopping import Stop
from pipelines.run.summary import read_markers
from pipelines.run.verify import foreign_files, reopen_damaged
from pipelines.run.work_units import ShardTask

__all__ = ["ActorStage", "Job", "plan_job", "run_job"]
_LOG = logging.getLogger(__name__)
_MAX_ROUNDS = 20
_POLL_S = 0.5
_NAMED = 3


def run_job(
    job: Job,
    manifest: Manifest,
    progress: ProgressReport,
    start: Callable[[Job], Execution] = RayExecution,
    stop: Stop | None = None,
) -> Manifest:
    """Bring every part of the manifest to its finished files.

    Args:
        stop: Ends the run early and in order; never, unless given.

    Returns:
        The manifest with all that was listed on the way.

    Raises:
        OvssError: Images are missing after all rounds, or a stage failed as a whole.
        Interrupted: By `stop`; what was finished is stored.
    """
    stop = stop or Stop()
    begun = time.monotonic()
    execution: Execution | None = None

    def begun_execution() -> Execution:
        nonlocal execution
        execution = execution or start(job)
        return execution

    before = None
    for _ in range(_MAX_ROUNDS):
        manifest = replace(refresh_manifest(job.output, manifest), fresh=manifest.fresh and before is None)
        reopen_damaged(job.output, manifest, job.table)
        try:
            plan = plan_job(job, manifest)
        except DamagedFileError as error:
            _LOG.warning("%s; the images are listed again", error)
            manifest = prepare_manifest(job.output, job.source, job.shard_size, relist=True)
            plan = plan_job(job, manifest)
        if before is None:
            count_finished(job, manifest, plan, progress)
        if plan.is_empty:
            break
        if plan.state == before:
            raise OvssError(_left_behind(job, plan, execution))
        if before is not None:
            _LOG.warning("%d images have no row yet; running again for them", sum(plan.missing.values()))
        before = plan.state
        working = begun_execution()
        with _polled(progress, working), stop.obeyed(working.stop):
            run_round(manifest, plan, working, progress, stop)
        stop.end()
    else:
        raise OvssError(_left_behind(job, plan, execution))
    progress.expect(manifest.images, final=True)
    _publish(job, manifest, begun_execution)
    if execution:
        execution.close()
    _tidy(job, time.monotonic() - begun)
    if not manifest.images:
        raise OvssError(
            f"no image in the {len(manifest.containers)} shards of {job.source.describe()['uri']} ({manifest.ignored} "
            "other members passed over); check the path and which field of a sample is its image"
        )
    return manifest


def plan_job(job: Job, manifest: Manifest) -> Plan:
    """Find out what a run would do now."""
    return plan_work(
        job.output,
        job.source,
        manifest,
        job.table,
        max(stage.pool.largest for stage in job.stages),
        max(stage.batch_size for stage in job.stages),
        job.unit_rows,
    )


def run_round(
    manifest: Manifest, plan: Plan, execution: Execution, progress: ProgressReport, stop: Stop
) -> None:
    """Send what is left through the stages, and merge parts as soon as all their rows are stored."""
    counts = _Counts(manifest, plan)
    for part in [part for part, missing in plan.missing.items() if missing == 0]:
        execution.merge(part)
    if plan.units:
        for row in execution.written(plan.units):
            stop.check()
            progress.advance(row["labelled"], row["failed"], reasons := json.loads(row["reasons"]))
            _measure(progress, row, reasons)
            if counts.add(row):
                execution.merge(row["part"])
            if plan.unlisted:
                progress.expect(counts.known, final=False)
    execution.wait()


def _measure(progress: ProgressReport, row: Mapping[str, Any], reasons: Mapping[str, int]) -> None:
    metrics.count("ovss_images", row["labelled"], result="done")
    metrics.count("ovss_images", row["failed"], result="failed")
    for reason, failed in reasons.items():
        metrics.count("ovss_failures", failed, reason=reason)
    metrics.measure("ovss_images_known", progress.total)
    metrics.measure("ovss_images_stored", progress.done)


class _Counts:
    """How many rows of each part are stored, and how many it is to have, which a shard's reader finds out."""

    def __init__(self, manifest: Manifest, plan: Plan) -> None:
        self._stored: Counter[str] = Counter(plan.stored)
        self._expected = {part: count for part, count in plan.missing.items() if count}
        listed = sum(count for part, count in manifest.parts.items())
        again = sum(sum(unit.done.values()) for unit in plan.units if isinstance(unit, ShardTask))
        self._images = listed + again
        self._listed = manifest.parts.keys()

    def add(self, row: Mapping[str, Any]) -> bool:
        """Count the rows of a fragment; say whether its part is complete now."""
        part = row["part"]
        self._stored[part] += row["labelled"] + row["failed"]
        if row["part_images"] is not None:
            self._expected[part] = row["part_images"]
        if self._stored[part] != self._expected.get(part):
            return False
        del self._expected[part]
        return True

    @property
    def known(self) -> int:
        """Images that are known of."""
        new = sum(count for part, count in self._stored.items() if part not in self._listed)
        return self._images + new


def _polled(progress: ProgressReport, execution: Execution) -> AbstractContextManager[None]:
    """Ask twice a second how many images are finished: fragments come in too seldom to move a bar."""

    def poll(stop: threading.Event) -> None:
        with suppress(Exception):  # a ledger that cannot be asked must not end the run
            while not stop.wait(_POLL_S):
                progress.reach(execution.finished())

    return beside(poll)


def count_finished(job: Job, manifest: Manifest, plan: Plan, progress: ProgressReport) -> None:
    """Tell the progress what earlier starts finished."""
    again = sum(sum(unit.done.values()) for unit in plan.units if isinstance(unit, ShardTask))
    listed = sum(count for part, count in manifest.parts.items())
    failed = 0
    for name in job.output.names(DONE):
        with suppress(DamagedFileError):
            failed += read_marker(job.output, name.removesuffix(".json"))["failed"]
    known = listed + again + sum(plan.stored.values())
    progress.expect(known, final=not plan.unlisted)
    progress.resume(known - sum(plan.missing.values()), failed)


def _left_behind(job: Job, plan: Plan, execution: Execution | None) -> str:
    """Say which images have no row, and why as far as that is known."""
    named: list[str] = []
    for part in (part for part, missing in plan.missing.items() if missing):
        stored = finished_ids(job.output, part)
        ids = read_part(job.output, part, ["image_id"])["image_id"].to_pylist()
        named += [image_id for image_id in ids if image_id not in stored][: _NAMED - len(named)]
        if len(named) >= _NAMED:
            break
    noted = execution.noted(named) if execution else {}
    images = ", ".join(
        f"{image_id!r} ({f'{noted[image_id]} began it and did not finish it' if image_id in noted else 'no stage has it in hand'})"
        for image_id in named
    )
    shards = [job_shard.name for job_shard in plan.units if isinstance(job_shard, ShardTask)]
    waiting = [part for part, missing in plan.missing.items() if not missing]
    left = [
        f"{sum(plan.missing.values())} images have no row, such as {images}" if named else "",
        f"{len(shards)} shards are not read to their end, such as {shards[0]!r}" if shards else "",
        f"{len(waiting)} parts are not merged, such as {waiting[0]}" if waiting else "",
    ]
    return (
        f"a round brought nothing new: {'; '.join(text for text in left if text)}; run the same command again, and "
        "report it if that does not help"
    )


def _publish(job: Job, manifest: Manifest, execution: Callable[[], Execution]) -> None:
    """Put the finished parts that lie by themselves together in files for readers.

    Raises:
        OvssError: Rows of a part are in no such file afterwards.
    """
    output, table = job.output, job.table.name
    for name in foreign_files(output, manifest, table):  # first of all: a reader must see no row twice
        _LOG.warning("%s belongs to no part of the manifest; it is removed", name)
        output.remove(name)
    labelled = {
        marker["part"]: (marker["labelled"], (marker.get("files") or {}).get(table, {}).get("bytes", 0))
        for marker in read_markers(output, manifest)
        if marker["labelled"]
    }
    places = read_published(output, table).places
    left = [(part, size) for part, (_, size) in labelled.items() if part not in places]
    if left:
        work, numbers = execution(), free_numbers(output, table)
        for parts in plan_files(left, job.file_bytes):
            work.publish(next(numbers), {part: labelled[part][0] for part in parts})
        work.wait()
        places = read_published(output, table).places
    lost = [part for part in labelled if part not in places]
    if lost:
        raise OvssError(
            f"{len(lost)} parts are in no file of {table}/, such as {lost[0]}; run the same command again"
        )
    output.remove_folder(PARTS)


def _tidy(job: Job, seconds: float) -> None:
    """Remove what nobody needs any more: rows that are merged, and halves of files from before this start."""
    output = job.output
    output.remove_folder(FRAGMENTS)
    for folder in ("", job.table.name, FAILED, DONE, MANIFEST, PREVIEWS, REPORT, LOGS):
        output.remove_leftovers(folder, older_than_s=seconds)
