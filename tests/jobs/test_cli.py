import json
from pathlib import Path

import pytest

import pipelines.evaluate.job
from jobs import cli, evaluate
from jobs.arguments import make_parser, segmenter_defaults, segmenter_flags, take_segmenter
from jobs.label import main
from jobs.parser import CommandParser
from ovss_core.config import ModelConfig, SegmenterConfig
from ovss_core.evaluation.benchmarks.protocols import protocol_config
from pipelines.evaluate.job import EvaluateJob
from tests.conftest import encode_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(encode_image(0))
    return tmp_path / "images"


def run(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, str]:
    status = main([str(flag) for flag in flags])
    return status, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "/no/such/folder", "--vocabulary", "voc21"], "no such file or folder: /no/such/folder"),
        (["--images", "IMAGES", "--vocabulary", "voc2l"], "unknown vocabulary 'voc2l'"),
        (["--images", "EMPTY", "--vocabulary", "voc21"], "no image in"),
        (["--images", "IMAGES"], "give --vocabulary"),
        (["--vocabulary", "voc21"], "exactly one of --images, --parquet and --webdataset"),
        (["--images", "IMAGES", "--parquet", "x", "--vocabulary", "voc21"], "got images, parquet"),
        (["--images", "IMAGES", "--benchmark", "voc99"], "--benchmark is 'voc99'; give one of voc21, "),
        (["--images", "IMAGES", "--vocabulary", "voc21", "--windows.size", "0"], "windows.size is 0"),
        (
            ["--images", "IMAGES", "--vocabulary", "voc21", "--descriptions", "no.json"],
            "descriptions no.json",
        ),
        (["--images", "IMAGES", "--vocabulary", "voc21", "--output", "IMAGES/a.jpg"], "cannot write"),
        (["--images", "IMAGES", "--vocabulary", "voc21", "--output", "memory://x"], "memory of one process"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], images: Path, flags: list[str], message: str
) -> None:
    (images.parent / "empty").mkdir()
    places = {"IMAGES": str(images), "EMPTY": str(images.parent / "empty")}
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
    if "--output" not in flags:
        flags = [*flags, "--output", str(images.parent / "out")]
    status, error = run(capsys, *flags)
    assert status == 2
    assert error.startswith("ovss: error: ")
    assert message in error
    assert "\n" not in error
    assert not (images.parent / "out/run.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "RN50"], "RN50 has a ResNet image tower"),
        (["--model", "ViT-B-17"], "unknown architecture 'ViT-B-17'"),
        (["--pretrained", "nobody"], "neither a file nor a weight tag"),
        (["--model", "demo", "--pretrained", "random", "--actors", "64"], "the cluster has 4"),
    ],
)
def test_models_and_clusters_that_cannot_work_are_refused_before_any_actor(
    ray_session: None, capsys: pytest.CaptureFixture[str], images: Path, flags: list[str], message: str
) -> None:
    common = ["--images", images, "--vocabulary", "voc21", "--output", images.parent / "out"]
    status, printed = run(capsys, *common, *flags)
    *steps, error = printed.splitlines()
    assert (status, message in error) == (2, True), printed
    assert all(step.startswith("ovss: ") and "error" not in step for step in steps)  # told on a busy machine
    assert len(steps) <= 4
    assert not (images.parent / "out/run.json").exists()


def segmenter_parser() -> CommandParser:
    return make_parser("x", "", "", segmenter_flags())


def test_flags_reach_every_field_and_unset_ones_keep_the_defaults() -> None:
    parser = segmenter_parser()
    assert take_segmenter(parser.parse_args([])) == SegmenterConfig()
    flags = (
        "--model demo --pretrained random --host naclip --purify none --variant paper --max-pixels 5 --sfp.variant "
        "paper --sfp.max_outliers 3 --labels.background none --labels.min_area 0.5 --purification.redundancy false"
    )
    config = take_segmenter(parser.parse_args(flags.split()))
    assert config.model == ModelConfig("demo", "random")
    assert (config.host, config.max_pixels, config.sfp.max_outliers) == ("naclip", 5, 3)
    assert (config.purification.method, config.purification.variant) == ("none", "paper")
    assert (config.purification.redundancy, config.labels.min_area) == (False, 0.5)


@pytest.mark.parametrize("purify", ["none", "freecp"])
def test_a_benchmark_sets_its_constants_and_flags_still_win(purify: str) -> None:
    expected, _ = protocol_config("voc21", "sfp", purify)  # type: ignore[arg-type]
    parser = segmenter_parser()
    parser.set_defaults(segmenter_defaults(expected))
    assert take_segmenter(parser.parse_args([])) == expected
    assert take_segmenter(parser.parse_args(["--windows.short_side", "99"])).windows.short_side == 99


def test_an_evaluation_without_an_output_gets_a_folder_named_by_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"ImageSets/Segmentation/val.txt": "a\n", "SegmentationClass/a.png": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    jobs: list[EvaluateJob] = []
    monkeypatch.setattr(pipelines.evaluate.job, "run_evaluate", jobs.append)
    monkeypatch.setattr(pipelines.evaluate.job, "describe_result", lambda job, report: 0)
    benchmark = ["--benchmark", "voc21", "--root", "VOC2012"]
    monkeypatch.setattr(pipelines.evaluate.job, "run_evaluate", jobs.append)
    monkeypatch.setattr(pipelines.evaluate.job, "describe_result", lambda job, report: 0)
    benchmark = ["--benchmark", "voc21", "--root", str(tmp_path)]
    together = ["--host", "sfp, naclip", "--purify", "none"]
    for flags in (["--host", "sfp", "--purify", "freecp"], together, ["--grid"], ["--output", "mine"]):
        assert evaluate.main([*benchmark, *flags]) == 0
    assert [job.run.output for job in jobs] == [
        "out/voc21-sfp-freecp",
        "out/voc21-sfp+naclip-none",
        "out/voc21-grid",
        "mine",
    ]
    assert jobs[1].segmenter.host == "sfp,naclip"
    assert jobs[1].segmenter == protocol_config("voc21", "sfp,naclip", "none")[0]


def test_a_cluster_that_is_not_there_is_one_line_and_status_2(
    images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = images.parent / "out"
    flags = ["--images", images, "--vocabulary", "voc21", "--output", output, "--address", "127.0.0.1:1"]
    status = cli.main(["label", *map(str, flags)])
    printed, told = capfd.readouterr()
    assert (status, printed) == (2, "")
    *steps, error = told.splitlines()
    assert error.startswith("ovss: error: cannot join the Ray cluster at 127.0.0.1:1: ")
    assert all(step.startswith("ovss: ") and "error" not in step for step in steps)
    assert len(steps) <= 4


def test_an_unknown_command_is_status_2_and_the_near_one_is_proposed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["lable"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'lable'; give one of label" in error
    assert error.endswith("; did you mean table or label?\n")
    assert cli.main(["--images", "photos"]) == 2
    assert "give a command before --images, such as ovss label" in capsys.readouterr().err
    assert cli.main([]) == 2


def test_a_renamed_command_still_works_and_names_the_new_one_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["measure", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: ovss benchmark ")
    assert printed.err == "ovss: warning: ovss measure is called ovss benchmark now; use that name\n"
    assert "\n  measure " not in cli.usage()


def test_the_command_labels_and_reports(
    ray_session: None, capsys: pytest.CaptureFixture[str], images: Path
) -> None:
    (images / "broken.jpg").write_bytes(b"broken")
    (images.parent / "words.txt").write_text("cat\ndog, puppy\n")
    (images.parent / "descriptions.json").write_text(json.dumps({"cat": ["a small furry animal"]}))
    output = images.parent / "out"
    flags = f"label --images {images} --vocabulary {images.parent}/words.txt --output {output} --model demo"
    flags += (
        f" --pretrained random --descriptions {images.parent}/descriptions.json --actors 1 --finish-actors 0"
    )
    assert cli.main(flags.split()) == 0
    printed = capsys.readouterr()
    assert "2 images: 1 labelled, 1 failed" in printed.out
    assert f"{output}/_failures" in printed.out
    assert "2 of 2 images (100 %)" in printed.err

    (images / "a.jpg").unlink()
    assert cli.main([*flags.split(), "--overwrite"]) == 1
    assert "1 images: 0 labelled, 1 failed" in capsys.readouterr().out
