"""`ovss systems` and `ovss table`: lists and finished evaluations as tables."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.arguments import START, make_parser
from jobs.flags import Flag
from ovss_core.config import PurificationConfig, ResClipConfig, SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.evaluation.benchmarks import list_systems


def report(benchmark: str | None, miou: float | None, **settings: Any) -> dict[str, Any]:
    entry = {
        "miou": miou,
        "boundary_miou": 0.125,
        "pixel_accuracy": 0.5,
        "settings": SegmenterConfig(**settings).to_dict(),
    }
    return {**entry, "benchmark": benchmark, "source": {"uri": "photos/mine"}}


def store(folder: Path, name: str, values: dict[str, Any], file: str = "evaluation.json") -> str:
    (folder / name).mkdir(parents=True)
    (folder / name / file).write_text(json.dumps(values))
    return str(folder / name)


PLAIN = {"purification": PurificationConfig(method="none")}


@pytest.fixture
def outputs(tmp_path: Path) -> list[str]:
    tuned = PurificationConfig(thresholds="fixed", variant="released")
    entry = report(None, 0.7, **PLAIN)
    grid = {
        "benchmark": "ade20k",
        "source": {"uri": "x"},
        "rows": [{**entry, "table": "Systems of the papers' tables", "name": "SFP", "published_miou": 0.208}],
    }
    return [
        store(tmp_path, "a", report("voc21", 0.61, host="sfp", **PLAIN)),
        store(tmp_path, "b", report("cityscapes", 0.4, host="sfp", **PLAIN)),
        store(tmp_path, "c", report("voc21", 0.62345, host="naclip", refine="pamr", **PLAIN)),
        store(tmp_path, "d", report("voc21", None, host="sclip", purification=tuned)),
        store(tmp_path, "e", report("voc21", 0.5, host="sfp", **PLAIN)),
        store(tmp_path, "f", grid, "grid.json"),
        str(tmp_path / "no-evaluation"),
    ]


def test_evaluations_become_rows_and_data_sets_columns_with_a_mean_of_full_rows(
    outputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["table", *outputs]) == 0
    told = capsys.readouterr()
    assert "passed over" in told.err
    assert "no-evaluation" in told.err
    lines = told.out.splitlines()
    assert lines[2:] == [
        "| | VOC21 | City | average |",
        "|---|---:|---:|---:|",
        "| sfp | 61.0 | 40.0 | 50.5 |",
        "| naclip + pamr | 62.3 | - | - |",
        "| sclip + FreeCP, tuned | - | - | - |",
        "| sfp (e) | 50.0 | - | - |",
        "",
        "### Systems of the papers' tables",
        "",
        "| | ADE | average |",
        "|---|---:|---:|",
        "| SFP | 70.0 | 70.0 |",
    ]


def test_published_figures_stand_below_their_system(
    outputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["table", "--published", *outputs]) == 0
    told = capsys.readouterr().out
    assert "| sfp, published | 63.9 | 41.1 | 52.5 |" in told
    assert "| naclip + pamr, published | 64.1 | 38.3 | 51.2 |" in told
    assert "| sclip + FreeCP, tuned, published | 65.8 | 33.3 | 49.5 |" in told
    assert "| SFP, published | 20.8 | 20.8 |" in told


def test_a_head_with_another_part_is_a_system_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"host": "resclip", **PLAIN}
    fed_back = ResClipConfig(feedback=True)
    places = [
        store(tmp_path, "a", report("voc21", 0.5, **settings)),
        store(tmp_path, "b", report("voc21", 0.75, resclip=fed_back, **settings)),
    ]
    assert cli.main(["table", "--published", *places]) == 0
    told = capsys.readouterr().out
    for name, measured, published in (("resclip", 50.0, 60.0), ("resclip, feedback", 75.0, 61.1)):
        assert f"| {name} | {measured} | {measured} |\n| {name}, published | {published} |" in told


def test_the_same_table_comes_as_csv_and_as_latex(outputs: list[str], tmp_path: Path) -> None:
    assert cli.main(["table", *outputs, "--format", "csv", "--output", str(tmp_path / "t.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert rows[1] == {
        **{"table": "Evaluations", "system": "naclip + pamr", "voc21": "62.3450"},
        **{"ade20k": "", "cityscapes": "", "average": ""},
    }
    assert rows[-1]["ade20k"] == "70.0000"
    assert cli.main(["table", *outputs, "--format", "latex", "--output", str(tmp_path / "t.tex")]) == 0
    text = (tmp_path / "t.tex").read_text()
    assert text.count(r"\begin{tabular}{lrrr}") == 1
    assert r"sclip + FreeCP, tuned & - & - & - \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


def test_other_figures_other_models_and_folders_of_one_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ovss_core.config import ModelConfig

    places = [
        store(tmp_path, "a", report(None, 0.61, model=ModelConfig("ViT-L-14"), **PLAIN)),
        store(tmp_path, "b", report(None, 0.61, **PLAIN)),
    ]
    assert cli.main(["table", *places, "--figure", "boundary_miou"]) == 0
    told = capsys.readouterr().out
    assert "| | photos/mine | average |" in told
    assert "| sfp, ViT-L-14 openai | 12.5 | 12.5 |" in told
    assert "| sfp, ViT-B-16 openai | 12.5 | 12.5 |" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give the folders of finished evaluations"),
        (["EMPTY"], "no finished evaluation in"),
        (["DAMAGED"], "evaluation.json is no report of an evaluation"),
        (["GOOD", "--output", "NOWHERE"], "give another --output"),
        (["GOOD", "--format", "html"], "give one of markdown, csv, latex"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "EMPTY": str(tmp_path),
        "DAMAGED": store(tmp_path, "damaged", {"benchmark": "voc21"}),
        "GOOD": store(tmp_path, "good", report("voc21", 0.61)),
        "NOWHERE": str(tmp_path / "none" / "t.md"),
    }
    assert cli.main(["table", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_all_systems_are_listed_with_their_figures_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["systems"]) == 0
    told = capsys.readouterr().out
    ours, others = told.split("### Not in")
    for system in list_systems():
        assert f"| {system.name} |" in (ours if system.is_in else others)
        assert (f"`{system.flags}`" if system.is_in else system.reason) in told
        assert f"- {system.name}: {system.paper}" in told
    assert "| SFP | 63.9 | 37.2 | 37.9 | 84.5 | 39.9 | 26.4 | 20.8 | 41.1 | 44.0 | - |" in ours


def test_the_list_comes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["systems", "--format", "json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["SFP"]["in"] is True
    assert entries["SFP"]["miou"]["voc21"] == 63.9
    assert entries["LaVG"]["reason"].startswith("its first stage is random")


FLAGS = [
    Flag("folders", list[str], "Folders to read.", START, [], bare=True),
    Flag("grid", bool | str, "What to measure.", START, False, alone="true"),
    Flag("limit", int, "How many.", START, 1),
]


def parsed(*words: str) -> Any:
    return make_parser("x", "", "", FLAGS).parse_args(list(words))


def test_a_list_that_may_stand_alone_takes_every_bare_word() -> None:
    assert parsed("a", "b", "--limit", "2", "c").folders == ["a", "b", "c"]
    assert parsed().folders == []


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--grid"], True),
        (["--grid", "--limit", "2"], True),
        (["--grid=systems"], "systems"),
        (["--grid", "systems"], "systems"),
        ([], False),
    ],
)
def test_a_flag_with_a_value_of_its_own_may_go_without_one(words: list[str], value: object) -> None:
    assert parsed(*words).grid == value


def test_a_flag_without_such_a_value_still_needs_one() -> None:
    with pytest.raises(ConfigError, match="--limit needs a value"):
        parsed("--limit")
