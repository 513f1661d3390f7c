"""Evaluation: the job, pairs of images and masks, the measuring stage, the report."""
