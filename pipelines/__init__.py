"""Ray Data pipelines: sources, stages, sinks, resume."""
