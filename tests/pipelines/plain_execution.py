"""The mean-color job without Ray: the same rounds, plans, readers and sink, moved by a plain loop."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from pipelines.run.ledger import AttemptRecord
from pipelines.run.manifest import prepare_manifest
from pipelines.run.manifest_files import Manifest
from pipelines.run.progress import ProgressReport
from pipelines.run.publish import publish
from pipelines.run.reading import ReadImages
from pipelines.run.record import check_identity, remove_run, write_run
from pipelines.run.retry import reopen_failed
from pipelines.run.runner import Job, run_job
from pipelines.run.sink import WriteFragments, merge_part
from pipelines.run.summary import write_summary
from pipelines.run.work_units import Unit, pack_units
from pipelines.storage import Folder


class PlainExecution:
    """Reads unit after unit and hands rows from stage to stage in this process."""

    def __init__(self, job: Job, record: AttemptRecord | None = None) -> None:
        self.job = job
        self.record = record or AttemptRecord()
        self.read: list[Unit] = []

    def tables(self, units: Sequence[Unit]) -> Iterator[pa.Table]:
        job = self.job
        reader = ReadImages(
            job.output.uri,
            job.source.fetcher(job.max_bytes, job.fetch_timeout_s),
            threads=1,
            fields=getattr(job.source, "fields", None),
            shard_size=job.shard_size,
            ledger=self.record,
            keep_images=job.table.keeps_images,
            words=job.words,
        )
        for row in pack_units(units):
            yield from reader.read(pa.Table.from_pylist([row]))

    def written(self, units: Sequence[Unit]) -> Iterator[Mapping[str, Any]]:
        self.read += units
        writer = WriteFragments(self.job.output.uri, self.job.table)
        stages = [stage.worker(**stage.arguments, ledger=self.record) for stage in self.job.stages]
        for table in self.tables(units):
            for start in range(0, table.num_rows, self.job.fragment_rows):
                rows = table.slice(start, self.job.fragment_rows)
                for stage in stages:
                    rows = stage(rows)
                yield from writer.write(rows).to_pylist()

    def merge(self, part: str) -> None:
        merge_part(self.job.output.uri, part, self.job.table)

    def publish(self, number: int, parts: Mapping[str, int]) -> None:
        publish(self.job.output.uri, self.job.table.name, self.job.table.schema, number, parts)

    def wait(self) -> None:
        pass

    def stop(self) -> None:
        self.record.stop()

    def finished(self) -> int:
        return self.record.finished(self.job.stages[-1].name)

    def noted(self, ids: Sequence[str]) -> Mapping[str, str]:
        return self.record.noted(ids)

    def close(self) -> None:
        pass


def run_plain(
    job: Job, overwrite: bool = False, retry_failed: bool = False, execution: type = PlainExecution
) -> tuple[Manifest, ProgressReport, dict[str, Any]]:
    """Run the whole job as the commands do, Ray apart."""
    output: Folder = job.output
    identity = {"job": "means", "source": job.source.describe(), "shard_size": job.shard_size}
    if not overwrite:
        check_identity(output, identity)
    else:
        remove_run(output, job.table.name)
    write_run(output, identity, {})
    manifest = prepare_manifest(output, job.source, job.shard_size)
    if retry_failed:
        manifest = reopen_failed(output, job.source, manifest, job.table, job.shard_size)
    with ProgressReport(manifest.images) as progress:
        manifest = run_job(job, manifest, progress, execution)
    return manifest, progress, write_summary(output, manifest, {})


def rows_of(output: Folder, table: str) -> list[dict[str, Any]]:
    """Return the rows of all finished files of a table."""
    import pyarrow.parquet as pq

    files = [pq.read_table(pa.BufferReader(output.read(f"{table}/{name}"))) for name in output.names(table)]
    return list(chain.from_iterable(file.to_pylist() for file in files))
