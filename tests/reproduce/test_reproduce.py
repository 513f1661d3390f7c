"""Both papers' tables from one command: the plan, the judgement, the page, and a run that was killed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.reproduce import main
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.errors import ConfigError, WeightsError
from ovss_core.evaluation.benchmarks import ORDER
from pipelines.evaluate.grid import SFP_TABLE, SFP_TOWERS
from pipelines.evaluate.job import run_evaluate
from pipelines.reproduce.data_sets import find_data_sets
from pipelines.reproduce.job import ReproduceJob, describe_result, run_reproduce
from pipelines.reproduce.options import ReproduceOptions, is_papers_tower
from pipelines.reproduce.plan import plan_evaluations
from pipelines.reproduce.report import PAGE, Outcome, build_report, draw_page, write_report
from pipelines.run.options import PoolOptions, RunOptions
from pipelines.storage import Folder
from tests.reproduce.data_tree import ADE, VOC, draw_data

DEMO = SegmenterConfig(model=ModelConfig("demo", "random"))
PAPERS = SegmenterConfig(model=ModelConfig("ViT-B-16", "openai"), host="sclip")
POOLS = PoolOptions(actors=1, torch_threads=1)


def job_on(data: Path, segmenter: SegmenterConfig = DEMO, **options: Any) -> ReproduceJob:
    run = RunOptions(f"{data}-out", no_progress_s=300.0)
    return ReproduceJob(ReproduceOptions(str(data), **options), run, segmenter, pools=POOLS)


def grid_report(outcome: Outcome, measured: int, off: float = 0.0) -> dict[str, Any]:
    """What an evaluation would leave whose figures are so many points above the published ones."""
    rows = [
        {
            "table": row.table,
            "name": row.name,
            "miou": ((row.published or 30.0) + off) / 100,
            "settings": row.config.to_dict(),
            "vocabulary": {"name": row.vocabulary.name},
        }
        for row in outcome.rows
    ]
    facts = {"images": measured, "measured": measured, "failed": 0, "worker_seconds": 12.0}
    return {**facts, "rows": rows, "weights_hash": "5806e77c", "versions": {}}


def reported(job: ReproduceJob, measured: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Report as if evaluations had measured so many images, so many points off."""
    data_sets = find_data_sets(job.options.data)
    outcomes = [Outcome(entry) for entry in plan_evaluations(job, data_sets)]
    for outcome in outcomes:
        if outcome.evaluation.name in measured:
            outcome.report = grid_report(outcome, *measured[outcome.evaluation.name])
    return build_report(job, data_sets, outcomes)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC 2012 alone, two images."""
    return draw_data(tmp_path / "data", [VOC])


def test_the_plan_has_main_tables_first_and_other_towers_with_the_papers_own(voc: Path) -> None:
    data_sets = find_data_sets(str(voc))
    names = [entry.name for entry in plan_evaluations(job_on(voc, PAPERS), data_sets)]
    assert len(names) == len(set(names)) == 32
    assert names[0] == "voc21-papers"
    assert names[8:9] == ["voc21-ablations"]
    assert {"voc21-ViT-B-32", "cityscapes-ViT-L-14"} <= set(names[16:])
    others = [entry for entry in plan_evaluations(job_on(voc, PAPERS), data_sets) if entry.grid == "towers"]
    assert {(entry.model.name, entry.model.pretrained) for entry in others} == {
        ("ViT-B-32", "openai"),
        ("ViT-L-14", "openai"),
    }
    assert len(plan_evaluations(job_on(voc, tables="main"), data_sets)) == 8
    assert len(plan_evaluations(job_on(voc), data_sets)) == 16


def test_the_papers_tower_is_vit_b_16_with_openais_weights_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    file.write_bytes(b"PK" + bytes(100))
    for name, weights, expected in (
        ("ViT-B-16", "openai", True),
        ("ViT-B-16-quickgelu", "openai", True),
        ("ViT-B-16", str(file), True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
        ("ViT-B-16", "random", False),
        ("ViT-L-14", "openai", False),
        ("demo", "openai", False),
    ):
        assert is_papers_tower(ModelConfig(name, weights)) is expected, (name, weights)


@pytest.mark.parametrize(
    ("off", "tolerance", "status"),
    [(0.5, 0.5, 0), (-0.5, 0.5, 0), (0.51, 0.5, 1), (-0.6, 0.5, 1), (0.6, 1.0, 0)],
)
def test_a_gap_beyond_the_tolerance_up_or_down_is_status_1(
    voc: Path, off: float, tolerance: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_on(voc, PAPERS, tables="main", tolerance=tolerance)
    report = reported(job, {"voc21-papers": (1449, off), "voc20-papers": (1449, 0.0)})
    assert describe_result(job, report) == status
    told = capsys.readouterr().out
    compared = [row for row in report["rows"] if row["compared"]]
    assert len(compared) == 20  # six hosts and four with FreeCP, on two data sets
    sfp = next(row for row in compared if (row["name"], row["benchmark"]) == ("SFP", "voc21"))
    assert sfp["published"] == 63.9
    assert sfp["gap"] == pytest.approx(off)
    assert sfp["exceeds"] is bool(status)
    assert (
        f"voc21, {SFP_TABLE}, SFP: published 63.9, measured {63.9 + off:.2f}, gap {off:+.2f}" in told
    ) is bool(status)


def test_missing_data_sets_are_named_and_shown_and_leave_the_status(
    voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_on(voc, PAPERS, tables="main")
    report = reported(job, {"voc21-papers": (1449, 0.1), "voc20-papers": (1440, 0.1)})
    assert describe_result(job, report) == 0
    told = capsys.readouterr().out
    assert "missing: cityscapes: leftImg8bit_trainvaltest.zip" in told
    assert "missing data sets: context60, coco_object, context59, coco_stuff164k, ade20k, cityscapes" in told
    absent = [row for row in report["rows"] if row["benchmark"] == "cityscapes"]
    assert {(row["status"], row["measured"], row["gap"]) for row in absent} == {("missing", None, None)}
    assert next(row["published"] for row in absent if row["name"] == "SFP") == 41.1
    page = draw_page(report)
    assert "missing<small>41.1</small>" in page
    assert '63.9 (<span class="near">+0.10</span>)' in page
    assert "ADEChallengeData2016.zip from" in page
    assert "5806e77c" in page


def test_a_part_of_a_split_or_another_model_is_shown_and_not_compared(voc: Path) -> None:
    part = reported(job_on(voc, PAPERS, tables="main"), {"voc21-papers": (121, -30.0)})
    assert part["verdict"]["exit_status"] == 0
    assert part["verdict"]["sentences"][:2] == [
        "No figure is compared with a published one, so the exit status says nothing about gaps",
        "not compared: voc21: 121 of the split's 1,449 images are measured",
    ]
    other = reported(job_on(voc), {"voc21-papers": (1449, -30.0)})
    assert other["verdict"]["compared"] == 0
    assert "demo (random) is not the papers' tower" in other["verdict"]["sentences"][1]
    assert any(
        line.startswith("SFP's Table 4 (ViT-B-32 and ViT-L-14): goes with") for line in other["left_out"]
    )
    sfp = next(row for row in other["rows"] if row["name"] == "SFP" and row["benchmark"] == "voc21")
    assert sfp["gap"] == pytest.approx(-30)
    assert "<span>-30.00</span>" in draw_page(other)


def test_a_row_has_an_average_where_it_has_all_data_sets(tmp_path: Path) -> None:
    job = job_on(draw_data(tmp_path / "data"), PAPERS, tables="main")
    names = [f"{name}-papers" for name in ORDER]
    whole = {entry["name"]: entry for entry in reported(job, dict.fromkeys(names, (5104, 0.2)))["averages"]}
    assert whole["SFP"]["published"] == pytest.approx(43.9625)
    assert whole["SFP"]["measured"] == pytest.approx(44.1625)
    assert whole["SFP"]["gap"] == pytest.approx(0.2)
    part = {entry["name"]: entry for entry in reported(job, {names[0]: (5104, 0.2)})["averages"]}
    assert (part["SFP"]["measured"], part["SFP"]["gap"]) == (None, None)


def test_an_evaluation_in_which_every_image_failed_is_status_1(voc: Path) -> None:
    report = reported(job_on(voc), {"voc21-papers": (0, 0.0)})
    assert report["verdict"]["exit_status"] == 1
    assert "voc21-papers: no image could be measured" in report["verdict"]["sentences"]


def test_rows_without_a_published_figure_say_so_and_their_tables_are_named(voc: Path) -> None:
    report = reported(job_on(voc, PAPERS), {"voc21-ablations": (1449, 3.0), "voc21-papers": (1449, 0.0)})
    page = draw_page(report)
    unknown = [row for row in report["rows"] if row["published"] is None and row["benchmark"] == "voc21"]
    assert page.count("<small>not at hand</small>") == 9 * len(unknown), "with each data set and the average"
    assert not any(row["compared"] for row in unknown)
    named = [line for line in report["left_out"] if "not at hand" in line]
    assert all(any(row["table"] in line for line in named) for row in unknown)
    [baseline] = [line for line in report["left_out"] if line.startswith("MaskCLIP (FreeCP's own run): ")]
    assert "published: 43.4 23.2 20.6 74.9 26.4 16.7 11.9 24.9; voc21, context60," in baseline


def test_names_from_outside_are_escaped_on_the_page(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "<b>data", [ADE])
    page = draw_page(reported(job_on(data, tables="main"), {}))
    assert "<b>data" not in page
    assert "&lt;b&gt;data" in page


def stopping_at(call: int, error: BaseException) -> Callable[[Any], dict[str, Any]]:
    """Return an evaluation that ends with an error at that call, and is the real one before."""
    calls = iter(range(1, call + 1))

    def evaluate(job: Any) -> dict[str, Any]:
        if next(calls) == call:
            raise error
        return run_evaluate(job)

    return evaluate


EVALUATE = "pipelines.reproduce.job.run_evaluate"


@pytest.mark.usefixtures("ray_session")
def test_a_run_that_was_killed_goes_on_and_computes_nothing_twice(
    voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(f"{voc}-out")
    flags = f"--data {voc} --output {output} --model demo --pretrained random --tables main --limit 1 --actors 1 --torch-threads 1"
    monkeypatch.setattr(EVALUATE, stopping_at(2, KeyboardInterrupt()))
    assert main(flags.split()) == 130
    half = json.loads((output / "reproduction.json").read_text())
    assert [entry["status"] for entry in half["evaluations"][:4]] == [
        "measured",
        "missing",
        "missing",
        "waiting",
    ]
    assert "1 evaluations are still to be run; the same command goes on" in half["verdict"]["sentences"]
    finished = {
        path: path.stat().st_mtime_ns for path in (output / "voc21-papers" / "measurements").iterdir()
    }
    assert finished
    monkeypatch.setattr(EVALUATE, run_evaluate)

    assert main(flags.split()) == 0

    report = json.loads((output / "reproduction.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    before, after = ([row for row in kept["rows"] if row["benchmark"] == "voc21"] for kept in (half, report))
    assert before == after
    rows = [row for row in report["rows"] if row["status"] == "measured"]
    assert len(rows) == 20
    assert all(0 <= row["measured"] <= 100 and row["worker_seconds"] > 0 for row in rows)
    assert {row["weights_hash"] for row in rows} == {report["evaluations"][0]["weights_hash"]}
    assert all(row["settings"]["model"]["name"] == "demo" for row in rows)
    told = capsys.readouterr().out
    assert "No figure is compared with a published one" in told
    assert "waiting" not in (output / PAGE).read_text()
    assert main([*flags.replace("--limit 1", "--limit 2").split()]) == 2  # other images into the same output
    assert "belongs to another run" in capsys.readouterr().err


def test_weights_of_another_tower_that_are_missing_stop_no_other_table(
    voc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = job_on(voc, PAPERS, tables="ablations")
    data_sets = find_data_sets(str(voc))
    outcomes = {entry.name: Outcome(entry) for entry in plan_evaluations(job, data_sets)}

    def evaluate(run: Any) -> dict[str, Any]:
        outcome = outcomes[Path(run.run.output).name]
        if outcome.evaluation.grid == "towers":
            raise WeightsError("no weights here")
        return grid_report(outcome, 1449)

    monkeypatch.setattr(EVALUATE, evaluate)
    report = run_reproduce(job, data_sets)
    assert report["verdict"]["exit_status"] == 0
    assert "voc20-ViT-L-14 was not run: no weights here" in report["verdict"]["sentences"]
    rows = [row for row in report["rows"] if row["table"] == SFP_TOWERS and row["benchmark"] == "voc21"]
    assert {row["status"] for row in rows} == {"not run"}
    write_report(Folder(str(tmp_path)), report)
    assert "not run: no weights here" in (tmp_path / PAGE).read_text()


def test_what_cannot_work_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_data(tmp_path / "data", [ADE])
    for flags, told in (
        (f"--data {tmp_path / 'nowhere'}", "no such folder"),
        (f"--data {data / ADE / 'images'}", "none of voc21"),
        (f"--data {data} --model demo --output {data}/out", "lies inside --data"),
        (f"--data {data} --model demo --tolerance -1", "tolerance is -1.0"),
        (f"--data {data} --model ViT-B-17", "ViT-B-17"),
    ):
        assert main(flags.split()) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="limit is 0"):
        ReproduceOptions("data", limit=0)
