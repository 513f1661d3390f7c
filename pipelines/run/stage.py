"""An actor stage: rows in, rows out, each with a value or a failure; what a job's own stage inherits."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.faults import Failure, process_sound
from pipelines.run import metrics
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import FAILURE, SECONDS


class RowStage:
    """Works on the rows that have not failed and hands on every row, those with its own payload in the place of theirs.

    A subclass names its stage and columns and says what it does in `work`. It is a callable class over Arrow tables, so
    Ray Data runs it in actors, and a plain loop runs it without Ray.

    Args:
        ledger: Finds images that kill their worker; None outside `run_job`.

    Attributes:
        name: Of the stage, in failures.
        payload: Columns that the stage uses up.
        output: Column that it fills: "result" for the last stage of a job.
        output_type: Type of that column; for the last stage `pipelines.run.schema.result_type` of the job's table.
    """

    name: ClassVar[str]
    payload: ClassVar[tuple[str, ...]] = ("image", "annotation")
    output: ClassVar[str] = "result"
    output_type: ClassVar[pa.DataType]

    def __init__(self, ledger: AttemptLedger | None = None) -> None:
        self.ledger = ledger
        self._seconds: dict[str, float] = {}

    def work(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any] | Failure]:
        """Turn rows (the image's id, and the payload) into values of the output column, or failures.

        Raises:
            ImageError: Of one row, or of all: the batch is halved until it is found.
            RuntimeError: The same, as where memory does not suffice.
        """
        raise NotImplementedError

    def took(self, step: str, seconds: float) -> None:
        """Count the time of a step; it goes with the next batch into the run's summary."""
        self._seconds[step] = self._seconds.get(step, 0.0) + seconds

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Work on the rows that have not failed; every row stays one row, but for a run that ends: it has none then."""
        if self.ledger is not None and self.ledger.is_stopping():
            batch = batch.slice(0, 0)  # the next start does them
        used = [name for name in self.payload if name in batch.column_names]
        rows = batch.select(["image_id", *used]).to_pylist()
        failures = batch["failure"].to_pylist()
        ids = [row["image_id"] for row in rows]
        values = process_sound(self.name, ids, rows, failures, self.work, self.ledger)
        metrics.count_stage(self.name, failures.count(None), self._seconds)
        metrics.measure_gpu(self.name)
        seconds = batch["seconds"].to_pylist()
        if seconds:
            seconds[0] = [*(seconds[0] or ()), *self._seconds.items()]
            self._seconds = {}
        table = batch.drop_columns([*used, "failure", "seconds"])
        for name, column in (
            ("failure", pa.array(failures, FAILURE)),
            ("seconds", pa.array(seconds, SECONDS)),
            (self.output, pa.array(values, self.output_type)),
        ):
            table = table.append_column(name, column)
        return table
