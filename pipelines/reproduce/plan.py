"""Which evaluations repeat the papers' tables: a grid for each data set, found or not, and each tower."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.evaluation.benchmarks import ORDER, protocol_config
from ovss_core.shipped_descriptions import DescriptionChoice
from pipelines.evaluate.job import EvaluateJob
from pipelines.evaluate.options import GridName, PairOptions
from pipelines.reproduce.data_sets import DataSet
from pipelines.reproduce.options import OTHER_TOWERS, PAPERS_WEIGHTS, ReproduceOptions, is_papers_tower
from pipelines.run.options import PoolOptions, RunOptions


@dataclass(frozen=True)
class ReproduceJob:
    """A repetition of the papers' tables.

    Attributes:
        run: Its output is the folder of the page, and of the evaluations.
        segmenter: Model and memory of every row, and the host of FreeCP's ablations; all else follows from the protocols.
        descriptions: Sentences by class name for FreeCP's rows.
    """

    options: ReproduceOptions
    run: RunOptions
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    descriptions: DescriptionChoice = "shipped"
    pools: PoolOptions = field(default_factory=PoolOptions)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a repetition: a grid on one data set.

    Attributes:
        name: Of its folder below the output.
        job: What is run, where the data set is there.
    """

    name: str
    data_set: DataSet
    grid: GridName
    job: EvaluateJob

    @property
    def model(self) -> ModelConfig:
        """The tower of all its rows."""
        return self.job.segmenter.model


def plan_evaluations(job: ReproduceJob, data_sets: Sequence[DataSet]) -> list[Evaluation]:
    """List the evaluations, main tables first; SFP's Table 4 goes with the papers' own tower alone.

    Args:
        data_sets: As `find_data_sets` gives them; evaluations of those that are not there are listed as well.
    """
    by_name = {entry.name: entry for entry in data_sets}
    model = job.segmenter.model
    grids: list[tuple[GridName, ModelConfig]] = []
    if job.options.tables != "ablations":
        grids.append(("papers", model))
    if job.options.tables != "main":
        grids.append(("ablations", model))
        if is_papers_tower(model):
            others = (
                replace(model, name=name, pretrained=PAPERS_WEIGHTS, quick_gelu=None) for name in OTHER_TOWERS
            )
            grids += [("towers", other) for other in others]
    return [_evaluation(job, by_name[name], grid, tower) for grid, tower in grids for name in ORDER]


def _evaluation(job: ReproduceJob, data_set: DataSet, grid: GridName, model: ModelConfig) -> Evaluation:
    name = f"{data_set.name}-{model.name if grid == 'towers' else grid}"
    pairs = PairOptions(
        benchmark=data_set.name, root=data_set.root, limit=job.options.limit, oracle=False, grid=grid
    )
    run = replace(job.run, output=f"{job.run.output.rstrip('/')}/{name}")
    _, vocabulary = protocol_config(data_set.name)
    segmenter = replace(job.segmenter, model=model)
    evaluate = EvaluateJob(pairs, run, vocabulary, segmenter, job.descriptions, job.pools)
    return Evaluation(name, data_set, grid, evaluate)
