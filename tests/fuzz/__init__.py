"""Mutated files against every reader of untrusted input: ``python -m tests.fuzz --seconds 600``."""
