"""A stage that does nothing: it takes and gives what a labelling stage would, and imports no model."""

import time

import numpy as np
import pyarrow as pa

from pipelines.faults import process_all
from pipelines.run.ledger import AttemptLedger
from pipelines.run.schema import FAILURE, SECONDS


class NoopStage:
    """Does to the table what a labelling stage does, and nothing to the payload.

    Args:
        payload: The column that is taken.
        output: The column that is given in its place.
        value: The value that every image is given, an array of one.
        ledger: Where images are noted.
        wait_s: Seconds that an image waits.
    """

    def __init__(
        self,
        payload: str,
        output: str,
        value: pa.Array,
        ledger: AttemptLedger | None = None,
        wait_s: float = 0.0,
    ) -> None:
        self.payload, self.output, self.ledger, self.wait_s = payload, output, ledger, wait_s
        self.value = value

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace the payload by a value that is the same for all."""
        rows = batch.num_rows
        time.sleep(self.wait_s * rows)
        process_all(self.output, batch["image_id"].to_pylist(), range(rows), list, self.ledger)
        table = batch.drop_columns([self.payload, "failure", "seconds"])
        table = table.append_column("failure", pa.nulls(rows, FAILURE))
        table = table.append_column("seconds", pa.nulls(rows, SECONDS))
        return table.append_column(self.output, self.value.take(pa.array(np.zeros(rows, np.int64))))
