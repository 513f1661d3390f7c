"""The benchmarks of both papers: files, labels, constants and published figures."""

from ovss_core.evaluation.benchmarks.layouts import (
    FileTree,
    FoundSamples,
    Layout,
    LocalTree,
    SamplePair,
    find_samples,
)
from ovss_core.evaluation.benchmarks.protocols import protocol_config
from ovss_core.evaluation.benchmarks.published import published_miou
from ovss_core.evaluation.benchmarks.registry import BENCHMARKS, Benchmark, get_benchmark

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "FileTree",
    "FoundSamples",
    "Layout",
    "LocalTree",
    "SamplePair",
    "find_samples",
    "get_benchmark",
    "protocol_config",
    "published_miou",
]
