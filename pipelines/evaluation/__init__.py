"""Parts of the evaluation pipeline: where the pairs come from, the stage that measures them, and the report."""
