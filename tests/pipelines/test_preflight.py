import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import save_file

from ovss_core.clip.weights import load_clip
from ovss_core.config import (
    LabelConfig,
    ModelConfig,
    PurificationConfig,
    SegmenterConfig,
    SfpConfig,
    WindowConfig,
)
from ovss_core.errors import (
    ConfigError,
    ModelError,
    OutputMismatchError,
    OvssError,
    StorageError,
    WeightsError,
)
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.checks import check_evaluate
from pipelines.evaluate.job import EvaluateJob, PairOptions, run_evaluate
from pipelines.label.checks import check_label
from pipelines.label.job import LabelJob, _identity, run_label
from pipelines.preflight import check_model, read_descriptions, require_apart
from pipelines.run.manifest import prepare_manifest
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.record import check_identity, holds_images, write_run
from pipelines.run.weight_hashes import UNKNOWN
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.tiny import NAME, register_tiny_models, tiny_clip

WORDS = Vocabulary.from_names(["cat", "dog"])
DEMO = SegmenterConfig(ModelConfig("demo"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode_image(0, kind="PNG"))
    return tmp_path / "images"


def _weights(name: str, content: bytes) -> Any:
    def write(folder: Path) -> SegmenterConfig:
        (folder / name).write_bytes(content)
        return SegmenterConfig(ModelConfig("demo", str(folder / name)))

    return write


def _transformers(folder: Path) -> SegmenterConfig:
    torch.save({"vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(3)}, folder / "hf.pt")
    return SegmenterConfig(ModelConfig("demo", str(folder / "hf.pt")))


def _spoiled(folder: Path) -> SegmenterConfig:
    state = dict(load_clip(ModelConfig("demo")).model.state_dict())
    state["visual.proj"] = state["visual.proj"].clone().fill_(float("nan"))
    save_file(state, folder / "nan.safetensors")
    return SegmenterConfig(ModelConfig("demo", str(folder / "nan.safetensors")))


REFUSALS: dict[str, tuple[dict[str, Any], type[OvssError], str]] = {
    "unknown head": ({"segmenter": replace(DEMO, host="sfpp")}, ConfigError, "did you mean 'sfp'"),
    "unknown architecture": (
        {"segmenter": SegmenterConfig(ModelConfig("dmeo"))},
        ModelError,
        "did you mean 'demo'",
    ),
    "ResNet": ({"segmenter": SegmenterConfig(ModelConfig("RN50"))}, ModelError, "ResNet"),
    "CLIPA": ({"segmenter": SegmenterConfig(ModelConfig("ViT-L-14-CLIPA"))}, ModelError, "CLIPA"),
    "no file, no tag": (
        {"segmenter": SegmenterConfig(ModelConfig("ViT-B-16", "opnai"))},
        WeightsError,
        "'openai'",
    ),
    "no file, demo": (
        {"segmenter": SegmenterConfig(ModelConfig("demo", "no.pt"))},
        WeightsError,
        "is no file",
    ),
    "windows below patches": (
        {"segmenter": replace(DEMO, windows=WindowConfig(8, 8))},
        ConfigError,
        "smaller than the model's patches",
    ),
    "crops below patches": (
        {"segmenter": replace(DEMO, purification=PurificationConfig(crop_size=8))},
        ConfigError,
        "smaller than the model's patches",
    ),
    "blocks beyond the tower": (
        {"segmenter": replace(DEMO, sfp=SfpConfig("paper", integration_start=12))},
        ConfigError,
        "1 to 11 are summed",
    ),
    "background without a class": (
        {"segmenter": replace(DEMO, labels=LabelConfig(background="residual"))},
        ConfigError,
        'no class "background"',
    ),
    "description of nothing": ({"descriptions": {"cow": ["it moos"]}}, ConfigError, "lacks: cow"),
    "unknown device": ({"pools": PoolOptions(device="gpu")}, ConfigError, "unknown device 'gpu'"),
    "GPUs on a CPU": (
        {"pools": PoolOptions(device="cpu", num_gpus=1)},
        ConfigError,
        "device is cpu, but num_gpus",
    ),
    "a GPU without GPUs": (
        {"pools": PoolOptions(device="cuda", num_gpus=0)},
        ConfigError,
        "but num_gpus is 0",
    ),
    "negative seconds": ({"run": {"cluster_wait_s": -1.0}}, ConfigError, "cluster_wait_s is -1"),
    "no seconds": ({"run": {"no_progress_s": float("nan")}}, ConfigError, "no_progress_s is nan"),
    "LFS pointer": (
        {"segmenter": _weights("p.pt", b"version https://git-lfs.github.com/spec/v1\n")},
        WeightsError,
        "Git LFS pointer",
    ),
    "web page": ({"segmenter": _weights("p.safetensors", b"<html></html>")}, WeightsError, "web page"),
    "empty file": ({"segmenter": _weights("p.pt", b"")}, WeightsError, "the file is empty"),
    "transformers' names": ({"segmenter": _transformers}, WeightsError, "Hugging Face transformers"),
    "NaN": ({"segmenter": _spoiled}, WeightsError, "NaN or infinity in 'visual.proj'"),
}


def _label(images: Path, run: RunOptions, settings: dict[str, Any]) -> None:
    run_label(LabelJob(SourceOptions(images=str(images)), run, WORDS, **settings))


def _evaluate(images: Path, run: RunOptions, settings: dict[str, Any]) -> None:
    pairs = PairOptions(images=str(images), masks=str(images.parent / "masks"))
    run_evaluate(EvaluateJob(pairs, run, WORDS, **settings))


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("job", ["label", "evaluate"])
def test_a_refused_run_starts_no_ray_and_touches_no_output(
    job: str, case: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(ray, "init", lambda *args, **options: started.append(options))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    changes, error, message = REFUSALS[case]
    output = images.parent / "out"
    settings = {name: value for name, value in changes.items() if name != "run"}
    if callable(settings.get("segmenter")):
        settings["segmenter"] = settings["segmenter"](images.parent)
    settings = {"segmenter": DEMO, **settings}
    start = _label if job == "label" else _evaluate
    with pytest.raises(error, match=message) as raised:
        start(images, RunOptions(str(output), **changes.get("run", {})), settings)
    assert "\n" not in str(raised.value)
    assert not output.exists()
    assert started == []


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("data", "data/out"),
        ("data", "data"),
        ("data/", "./data/a/../out"),
        ("data/**/*.png", "data/out"),
        ("data/*/*.png", "data/previews/.."),
        ("data/*/*/*.parquet", "data/out"),
        ("data/{out,in}/**", "data/out"),
        ("link", "data/out"),
        ("data", "link/out"),
        ("s3://bucket/data", "s3://bucket/data/out"),
        ("s3://key:secret@bucket/data/", "s3://bucket/data/x/../out?scheme=http"),
        ("file://HERE/data", "data/out"),
    ],
)
def test_an_output_inside_the_input_is_refused(
    given: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(
        ConfigError, match=r"--output .* lies inside --images .*give an output beside the input"
    ) as raised:
        require_apart({"--images": given.replace("HERE", str(tmp_path))}, output)
    assert "secret" not in str(raised.value)


def test_an_input_inside_the_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("out/images", "out/images/*.jpg", "out/a.tar"):
        with pytest.raises(
            ConfigError, match=r"--webdataset .* lies inside --output .*; give an output folder of its own"
        ):
            require_apart({"--images": None, "--webdataset": given}, "out")


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("data", "out"),
        ("data", "data-out"),
        ("data/images", "data/out"),
        ("data/*.png", "data/out"),
        ("data/*/images/*.png", "data/out"),
        ("data/*.tar", "data/out"),
        ("s3://bucket/data", "s3://other/data/out"),
        ("s3://bucket/data", "gs://bucket/data/out"),
        ("http://127.0.0.1/data", "data"),
    ],
)
def test_places_beside_each_other_pass(
    given: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_apart({"--images": given}, output)


def test_a_grid_is_checked_for_what_its_rows_share() -> None:
    run, pools = RunOptions("out"), PoolOptions()
    grid = PairOptions(images="images", masks="masks", grid=True)
    idle = replace(DEMO, sfp=SfpConfig("paper", integration_start=40), labels=LabelConfig(logit_scale=50))
    assert check_evaluate(grid, run, pools, idle, WORDS) == []
    twice = Vocabulary.from_names(["cat", "Cat"])
    assert "'cat' and 'Cat'" in check_evaluate(grid, run, pools, DEMO, twice)[0]
    with pytest.raises(ConfigError, match='no class "background"'):
        check_evaluate(grid, run, pools, replace(DEMO, labels=LabelConfig(background="residual")), WORDS)
    benchmark = PairOptions(benchmark="voc21", root="voc", grid=True)
    with pytest.raises(ConfigError, match="unknown host"):
        check_evaluate(benchmark, run, pools, replace(DEMO, host="x"), WORDS)
    with pytest.raises(ConfigError, match="lacks: cow"):
        check_evaluate(benchmark, run, pools, DEMO, WORDS, {"cow": ["it moos"]})


def test_masks_of_a_benchmark_that_ignores_zero_are_a_warning_where_they_are_given_as_folders() -> None:
    pairs = PairOptions(images="images", masks="masks", benchmark="ade20k")
    [*_, warning] = check_evaluate(pairs, RunOptions("out"), PoolOptions(), DEMO, Vocabulary.load("ade20k"))
    assert "want --benchmark ade20k --root instead" in warning
    voc = replace(pairs, benchmark="voc21")
    assert check_evaluate(voc, RunOptions("out"), PoolOptions(), DEMO, Vocabulary.load("voc21")) == []


def test_a_wait_for_one_image_that_would_end_the_run_is_shortened_with_a_word() -> None:
    patient = SourceOptions(images="images", fetch_timeout_s=300)
    assert check_label(patient, RunOptions("out", no_progress_s=900), PoolOptions(), DEMO, WORDS) == []
    [warning] = check_label(patient, RunOptions("out"), PoolOptions(), DEMO, WORDS)
    assert warning.startswith("an image may take 200 s to arrive and not 300 (fetch_timeout_s)")
    pairs = PairOptions(images="images", masks="masks", fetch_timeout_s=300)
    assert check_evaluate(pairs, RunOptions("out"), PoolOptions(), DEMO, WORDS) == [warning]


def test_an_output_below_a_file_or_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    # not by the file's mode: root may do everything
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("kept"))
    for place, problem in {
        "file": "file is a file",
        "file/a/b": "file is a file",
        "kept/a/b": "no permission to write into .*kept",
    }.items():
        for output in (f"{tmp_path}/{place}", f"file://{tmp_path}/{place}"):
            with pytest.raises(StorageError, match=f"cannot write under .*{problem}"):
                check_label(SourceOptions(images="images"), RunOptions(output), PoolOptions(), DEMO, WORDS)
    free = RunOptions(f"{tmp_path}/new/out")
    assert check_label(SourceOptions(images="images"), free, PoolOptions(), DEMO, WORDS) == []


def test_a_text_that_is_cut_is_said_before_the_start(tmp_path: Path) -> None:
    register_tiny_models()
    torch.save(tiny_clip().model.state_dict(), tmp_path / "weights.pt")
    model = ModelConfig(NAME, str(tmp_path / "weights.pt"))
    assert check_model(model, [WORDS], {"cat": ["it purrs"]}) == []
    [warning] = check_model(model, [WORDS], {"cat": ["it purrs " * 60]})
    assert "the text tower reads 77 tokens" in warning


def test_an_output_holds_images_once_one_is_stored_labelled_or_failed(tmp_path: Path) -> None:
    output = Folder(str(tmp_path / "out"))
    assert not holds_images(output)
    output.write("run.json", b"{}")
    output.write("_manifest/part-00000.pq", b"")
    output.write("_manifest/complete.json", b"{}")
    (tmp_path / "out/_fragments/part-00000").mkdir(parents=True)
    assert not holds_images(output)
    for name in (
        "_fragments/part-00000/abc.labels.pq",
        "_fragments/part-00000/abc._failures.pq",
        "_done/part-00000.json",
        "_parts/part-00000.pq",
        "labels/labels-00000.parquet",
        "measurements/measurements-00000.parquet",
        "_failures/part-00000.pq",
    ):
        output.write(name, b"")
        assert holds_images(output), name
        output.remove(name)
    assert not holds_images(output)


OWN = "--images HERE/images --vocabulary cat,dog"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"label {OWN} --output HERE/out --host sfpp", "--host is 'sfpp'; give one of"),
        (
            f"label {OWN} --output HERE/out --pretrained opnai",
            "'opnai' is neither a file nor a weight tag of ViT-B-16 (did you mean 'openai'?)",
        ),
        (f"label {OWN} --output HERE/images/out", "lies inside --images"),
        (f"label {OWN} --output HERE/file/out --model demo", "file is a file; give a folder as --output"),
        (f"label {OWN} --output nosuch://out --model demo", "Protocol not known: nosuch"),
        ("train-demo --folder HERE/file/out", "file is a file; give a folder as --folder"),
        (f"evaluate {OWN} --masks HERE/nowhere --output HERE/out --model demo", "nowhere; check --masks"),
        (
            "evaluate --benchmark voc21 --root HERE/images --output HERE/out --model demo",
            "does not hold voc21; expected JPEGImages",
        ),
    ],
)
def test_the_command_refuses_within_three_seconds(command: str, message: str, images: Path) -> None:
    output = images.parent / "out"
    (images.parent / "file").touch()
    given = [word.replace("HERE", str(images.parent)) for word in command.split()]
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *given], capture_output=True, text=True, check=False
    )
    after = os.times()  # the child's own seconds, whatever else the machine does
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ovss: error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not output.exists()
    assert not (images / "out").exists()
    assert seconds < 3, f"{seconds:.1f} s"


@pytest.mark.slow
def test_a_run_that_stopped_before_its_first_image_does_not_block_a_corrected_one(
    ray_session: None, images: Path
) -> None:
    output = images.parent / "out"
    small = SegmenterConfig(
        ModelConfig("demo", "random"),
        "clip",
        windows=WindowConfig(32, 32, 32),
        purification=PurificationConfig("none"),
    )
    source, pools = SourceOptions(images=str(images)), PoolOptions(actors=1)
    job = LabelJob(source, RunOptions(str(output)), WORDS, small, pools=pools)
    with pytest.raises(ConfigError):
        run_label(replace(job, segmenter=replace(small, host="clpi")))
    # what a run leaves that is killed between its record and its first image: another source, listed already
    other = Folder(str(images.parent / "others"))
    other.write("b.png", encode_image(1, kind="PNG"))
    write_run(Folder(str(output)), {"config": {"host": "clpi"}}, {})
    prepare_manifest(Folder(str(output)), SourceOptions(images=other.uri).open(), 256)
    summary = run_label(job)
    assert (summary["images"], summary["labelled"]) == (1, 1)
    assert json.loads((output / "run.json").read_text())["identity"]["config"]["host"] == "clip"
    [row] = pq.read_table(output / "labels/labels-00000.parquet", columns=["image_id"]).to_pylist()
    assert row == {"image_id": "a.png"}
    with pytest.raises(OutputMismatchError, match=r"belongs to another run: config\.host"):
        run_label(replace(job, segmenter=replace(small, host="maskclip")))


def test_no_file_means_the_sentences_that_ship_and_none_means_none() -> None:
    assert read_descriptions(None) == "shipped"
    assert read_descriptions("none") is None


def test_a_run_that_began_without_sentences_goes_on_only_without(images: Path) -> None:
    output = images.parent / "out"
    source = SourceOptions(images=str(images))
    job = LabelJob(source, RunOptions(str(output)), Vocabulary.load("demo"), DEMO)
    before = _identity(replace(job, descriptions=None), source.open(), UNKNOWN)
    assert before["descriptions"] is None
    write_run(Folder(str(output)), before, {})
    Folder(str(output)).write("labels/part-00000.parquet", b"")  # it has stored images
    with pytest.raises(OutputMismatchError, match=r"were none, are now of 44 classes \(--descriptions none"):
        run_label(job)
    check_identity(Folder(str(output)), _identity(replace(job, descriptions=None), source.open(), UNKNOWN))


@pytest.mark.parametrize("content", ['{"cat": [', "[" * 100_000, r'{"cat": ["\ud83d"]}', '"cat"', "\xff"])
def test_descriptions_that_are_something_else_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"d\.json"):
        read_descriptions(str(tmp_path / "d.json"))
