"""The course of a run, the same for every job: plan, read, work in pools, store, resume."""
