"""Both papers' tables from one command: one evaluation for each data set and table, and the page of all of them.

Every evaluation is a grid of `pipelines.evaluate.job` with an output of its own, and resumes as one: what is finished is not
computed again, and a run that was killed goes on. Page and JSON are written anew after each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ovss_core.errors import ModelError, WeightsError
from pipelines.evaluate.job import run_evaluate
from pipelines.preflight import fetch_weights
from pipelines.reproduce.data_sets import DataSet
from pipelines.reproduce.plan import ReproduceJob as ReproduceJob
from pipelines.reproduce.plan import plan_evaluations
from pipelines.reproduce.report import PAGE, REPRODUCTION, Outcome, build_report, write_report
from pipelines.run.events import say
from pipelines.run.lifecycle import stopping_in_one_line
from pipelines.storage import Folder


def run_reproduce(job: ReproduceJob, data_sets: Sequence[DataSet]) -> dict[str, Any]:
    """Measure everything whose data set is there, and return what `reproduction.json` holds.

    Args:
        data_sets: As `find_data_sets` gives them.

    Raises:
        ConfigError, WeightsError, ModelError, ClusterError: Before any worker starts, as `run_evaluate`.
        OvssError: A run stopped; the same command goes on.
    """
    job = replace(job, segmenter=fetch_weights(job.segmenter))
    outcomes = [Outcome(evaluation) for evaluation in plan_evaluations(job, data_sets)]
    runs = [outcome for outcome in outcomes if outcome.evaluation.data_set.is_there]
    report: dict[str, Any] = {}
    for number, outcome in enumerate(runs, 1):
        say(f"evaluation {number} of {len(runs)}: {outcome.evaluation.name}")
        try:
            outcome.report = run_evaluate(outcome.evaluation.job)
        except (WeightsError, ModelError) as error:
            if outcome.evaluation.grid != "towers":
                raise
            outcome.problem = str(error)  # the weights of another tower, which the other tables do without
        with stopping_in_one_line():
            report = build_report(job, data_sets, outcomes)
            write_report(Folder(job.run.output), report)
    return report


def describe_result(job: ReproduceJob, report: Mapping[str, Any]) -> int:
    """Print what came out, and return the exit status (`pipelines.reproduce.report.judge`)."""
    verdict, place = report["verdict"], Folder(job.run.output).public_uri
    for row in report["rows"]:
        if row["exceeds"]:
            print(
                f"{row['benchmark']}, {row['table']}, {row['name']}: published {row['published']:.1f}, measured "
                f"{row['measured']:.2f}, gap {row['gap']:+.2f}"
            )
    for entry in report["data_sets"]:
        if entry["root"] is None:
            problem = f" ({entry['problem']})" if entry["problem"] else ""
            print(f"missing: {entry['name']}{problem}: {entry['origin']}")
    for sentence in verdict["sentences"]:
        print(sentence)
    print(f"report: {place}/{PAGE}, {place}/{REPRODUCTION}")
    status: int = verdict["exit_status"]
    return status
