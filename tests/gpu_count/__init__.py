"""Counts what labelling asks of a GPU, on a machine that has none: `python -m tests.gpu_count`."""
