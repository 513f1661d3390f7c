"""Labelling: the job, its stages in actors, its table and its pictures."""
