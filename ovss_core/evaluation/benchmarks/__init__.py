"""The benchmarks of both papers: files, labels, constants and published figures."""

from ovss_core.evaluation.benchmarks.layouts import (
    FileTree,
    FoundSamples,
    Layout,
    SamplePair,
    find_samples,
)
from ovss_core.evaluation.benchmarks.protocols import protocol_config
from ovss_core.evaluation.benchmarks.registry import BENCHMARKS, Benchmark, get_benchmark
from ovss_core.evaluation.benchmarks.systems import (
    ORDER,
    System,
    list_systems,
    published_miou,
    published_system,
)

__all__ = [
    "BENCHMARKS",
    "ORDER",
    "Benchmark",
    "FileTree",
    "FoundSamples",
    "Layout",
    "SamplePair",
    "System",
    "find_samples",
    "get_benchmark",
    "list_systems",
    "protocol_config",
    "published_miou",
    "published_system",
]
