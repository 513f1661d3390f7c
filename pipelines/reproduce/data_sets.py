"""Which of the papers' data sets lie in a folder of data sets, as mmsegmentation lays it out."""

from collections.abc import Sequence
from dataclasses import dataclass

from ovss_core.errors import StorageError
from ovss_core.evaluation.benchmarks import BENCHMARKS, Benchmark
from pipelines.evaluate.pairs import StorageTree
from pipelines.storage import Folder, redact


@dataclass(frozen=True)
class DataSet:
    """One of the papers' benchmarks, and what of it was found.

    Attributes:
        root: Folder that `PairOptions.root` takes; None where nothing was found.
        images: Pairs of image and mask that its split lists.
        problem: What is wrong with files of it that lie there; empty where it was found, and where nothing lies there.
    """

    benchmark: Benchmark
    root: str | None = None
    images: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    @property
    def is_there(self) -> bool:
        """Whether it was found."""
        return self.root is not None

    @property
    def expected(self) -> str:
        """Draw the layouts that are looked for, in one line."""
        return ", or ".join(layout.describe() for layout in self.benchmark.layouts)


def find_data_sets(data: str) -> list[DataSet]:
    """Look for every benchmark in a folder, and in each folder directly below it.

    Args:
        data: Path or URI.

    Returns:
        All eight, in the papers' order, found or not.

    Raises:
        StorageError: There is no such folder, or none of them lies in it.
    """
    top = Folder(data)
    if not top.exists():
        raise StorageError(f"no such folder: {redact(data)}; check --data")
    roots = [data, *(_below(data, name) for name in sorted(top.folders()))]
    found = [_find(benchmark, roots) for benchmark in BENCHMARKS.values()]
    if not any(entry.is_there for entry in found):
        problems = "; ".join(entry.problem for entry in found if entry.problem)
        raise StorageError(
            f"none of {', '.join(BENCHMARKS)} lies in {redact(data)} or in a folder directly below it"
            f"{f' ({problems})' if problems else ''}; lay them out as mmsegmentation does, such as VOCdevkit/VOC2012, "
            "ade/ADEChallengeData2016 or cityscapes"
        )
    return found


def _find(benchmark: Benchmark, roots: Sequence[str]) -> DataSet:
    problem = ""
    for root in roots:
        try:
            samples = benchmark.look_for(StorageTree(Folder(root)))
        except StorageError as error:
            problem = problem or str(error)
        else:
            if samples:
                return DataSet(benchmark, root, len(samples.pairs))
    return DataSet(benchmark, problem=problem)


def _below(data: str, name: str) -> str:
    """Return the address of a folder in another; what an address has behind a question mark stays at its end."""
    place, mark, options = data.partition("?") if "://" in data else (data, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"
