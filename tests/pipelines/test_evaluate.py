"""Evaluations from files to report: counts against a loop, failures as rows, resuming, and the grid."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ovss_core.check import validate
from ovss_core.clip.text import EncodedVocabulary
from ovss_core.config import ModelConfig, PamrConfig, PurificationConfig, SegmenterConfig, WindowConfig
from ovss_core.errors import ConfigError, OutputMismatchError, StorageError
from ovss_core.evaluation.benchmarks import get_benchmark, list_systems
from ovss_core.evaluation.measurement import measure
from ovss_core.results import Segmentation
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.grid import (
    FREECP_TABLE,
    FREECP_TEXTS,
    SFP_PARTS,
    SFP_TABLE,
    GridBase,
    GridRow,
    grid_rows,
    list_grid,
    system_rows,
)
from pipelines.evaluate.job import EvaluateJob, describe_result, encode_texts, run_evaluate
from pipelines.evaluate.options import PairOptions
from pipelines.evaluate.pairs import BenchmarkSource, FolderPairsSource, spread
from pipelines.evaluate.report import grid_markdown, score_variant
from pipelines.evaluate.table import MEASUREMENTS, sum_measurements
from pipelines.label.job import LabelJob, run_label
from pipelines.label.masks import decode_mask
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions

VOCABULARY = Vocabulary.from_names(["background", "cat", "dog, puppy", "grass"], "test")
SEGMENTER = SegmenterConfig(
    model=ModelConfig("demo", "random"),
    windows=WindowConfig(size=32, stride=32, short_side=32),
    purification=PurificationConfig(
        thresholds="fixed", redundancy_threshold=0.01, score_scale=100.0, crop_size=32
    ),
    window_batch=8,
)
POOLS = PoolOptions(actors=1, batch_size=4, torch_threads=1)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Eight images with masks of blocks, void strips among them."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(5)
    for number in range(8):
        pixels = rng.integers(0, 255, (3, 4, 3), np.uint8).repeat(12, 0).repeat(12, 1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
        labels = rng.integers(0, 4, (3, 4), np.uint8).repeat(12, 0).repeat(12, 1)
        labels[:, 11:13] = 255
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path


def _job(pairs: Path, output: str = "out", **options: object) -> EvaluateJob:
    chosen = PairOptions(images=str(pairs / "images"), masks=str(pairs / "masks"), **options)  # type: ignore[arg-type]
    run = RunOptions(str(pairs / output), shard_size=3, no_progress_s=300.0)
    return EvaluateJob(chosen, run, VOCABULARY, SEGMENTER, pools=POOLS)


def _written_labels(output: Path) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted((output / "labels").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            yield row["image_id"], decode_mask(row["mask"])


def _loop_counts(output: Path, masks: Path) -> dict[int, list[int]]:
    """Intersection, predicted and actual pixels of each class over all written masks, pixel by pixel."""
    counts = {index: [0, 0, 0] for index in range(4)}
    for image_id, label_map in _written_labels(output):
        truth = np.asarray(Image.open(masks / f"{Path(image_id).stem}.png"))
        for said, actual in zip(label_map.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if actual != 255:
                counts[said][1] += 1
                counts[actual][2] += 1
                counts[actual][0] += said == actual
    return counts


@pytest.mark.usefixtures("ray_session")
def test_counts_equal_a_loop_over_the_masks_that_labelling_writes(pairs: Path) -> None:
    together = replace(SEGMENTER, host="sfp,naclip")
    label = LabelJob(
        SourceOptions(images=str(pairs / "images")),
        RunOptions(str(pairs / "labels"), shard_size=3, no_progress_s=300.0),
        VOCABULARY,
        together,
        pools=replace(POOLS, finish_actors=0),
    )
    run_label(label)

    report = run_evaluate(replace(_job(pairs), segmenter=together))

    for file in (pairs / "labels/labels").glob("*.parquet"):
        assert all(0 <= row["disagreement"] <= 1 for row in pq.read_table(file).to_pylist())

    counts = _loop_counts(pairs / "labels", pairs / "masks")
    for row in report["classes"]:
        intersection, predicted, actual = counts[row["index"]]
        assert row["intersection"] == intersection
        assert row["union"] == predicted + actual - intersection
        assert row["iou"] == pytest.approx(intersection / row["union"])
    assert report["miou"] == pytest.approx(np.mean([row["iou"] for row in report["classes"]]))
    assert report["pixel_accuracy"] == pytest.approx(
        sum(count[0] for count in counts.values()) / sum(count[2] for count in counts.values())
    )
    assert report["measured"] == 8
    assert report["oracle"]["gap"] == pytest.approx(report["oracle"]["miou"] - report["miou"])
    assert json.loads((pairs / "out" / "evaluation.json").read_text()) == report


@pytest.mark.usefixtures("ray_session")
def test_unusable_pairs_become_failures_and_a_second_run_does_nothing_anew_nor_takes_other_settings(
    pairs: Path,
) -> None:
    (pairs / "masks" / "1.png").unlink()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(pairs / "masks" / "2.png")
    Image.new("RGB", (48, 36)).save(pairs / "masks" / "3.png")
    Image.fromarray(np.full((36, 48), 9, np.uint8)).save(pairs / "masks" / "4.png")
    (pairs / "images" / "5.jpg").write_bytes(b"no image")

    report = run_evaluate(_job(pairs))

    assert (report["measured"], report["failed"]) == (3, 5)
    reasons = {
        row["image_id"]: row["reason"]
        for file in (pairs / "out" / "_failures").glob("*.pq")
        for row in pq.read_table(file).to_pylist()
    }
    assert set(reasons) == {f"{number}.jpg" for number in range(1, 6)}
    assert "cannot be read" in reasons["1.jpg"]
    assert "5 x 5 pixels, the image 36 x 48" in reasons["2.jpg"]
    assert "mode RGB" in reasons["3.jpg"]
    assert "the value 9" in reasons["4.jpg"]
    written = {path: path.stat().st_mtime_ns for path in (pairs / "out" / "measurements").iterdir()}

    again = run_evaluate(_job(pairs))

    assert again == report
    assert {path: path.stat().st_mtime_ns for path in (pairs / "out" / "measurements").iterdir()} == written
    with pytest.raises(OutputMismatchError, match="host"):
        run_evaluate(replace(_job(pairs), segmenter=replace(SEGMENTER, host="clearclip")))


def test_masks_of_0_and_255_with_two_classes_are_doubted_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = Vocabulary.from_names(["sky", "house"])
    truth = np.array([[0, 0, -1, -1]], np.int32)
    measured = measure(Segmentation(np.array([[0, 1, 1, 1]], np.uint8), ()), truth, vocabulary)
    row = {"image_id": "a", "uri": "a", "height": 1, "width": 4}
    rows = [row | {"measurements": [{"variant": "v", **measured.to_dict()}]}] * 2
    statistics = sum_measurements(pa.Table.from_pylist(rows, MEASUREMENTS))["v"]
    report = score_variant(statistics, SEGMENTER, vocabulary)
    assert report["miou"] == pytest.approx(0.25)
    assert "house" in report["warnings"][0]
    assert "4 pixels (50.0 %) are ignored" in report["warnings"][1]
    job = EvaluateJob(PairOptions(), RunOptions(str(tmp_path)), vocabulary)
    facts = {"images": 2, "measured": 2, "failed": 0, "published_miou": None}
    assert describe_result(job, {**report, **facts}) == 0
    printed = capsys.readouterr().out
    assert "warning: 1 of 2 classes have no pixel in any mask (house)" in printed


def test_a_report_of_nothing_says_so_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = score_variant({}, SEGMENTER, VOCABULARY)
    assert report["miou"] is None
    facts = {"images": 2, "measured": 0, "failed": 2, "published_miou": None}
    job = EvaluateJob(PairOptions(), RunOptions(str(tmp_path)), VOCABULARY)
    assert describe_result(job, {**report, **facts}) == 1
    printed = capsys.readouterr().out
    assert "no scores" in printed
    assert f"{tmp_path}/_failures; try them again" in printed
    assert "warning: nothing could be measured: no image was measured" in printed


@pytest.mark.usefixtures("ray_session")
def test_a_grid_prints_every_row_with_its_settings(pairs: Path) -> None:
    report = run_evaluate(_job(pairs, limit=2, grid=True))

    names = [(row["table"], row["name"]) for row in report["rows"]]
    assert len(set(names)) == len(names) >= 30
    assert all(0 <= row["miou"] <= 1 for row in report["rows"])
    assert json.loads((pairs / "out" / "grid.json").read_text()) == report
    markdown = (pairs / "out" / "grid.md").read_text()
    assert markdown == grid_markdown(report["rows"])
    for row in report["rows"]:
        assert f"| {row['name']} | {100 * row['miou']:.1f} |" in markdown
        assert f"- {row['table']}, {row['name']}: host `{row['settings']['host']}`, purify `" in markdown
    assert "sfp.integration_start `7`" in markdown


def test_the_grid_of_a_benchmark_covers_hosts_purification_thresholds_and_ablations() -> None:
    rows = grid_rows(GridBase(SegmenterConfig(model=ModelConfig("demo", "random")), "voc21"))

    by_name = {row.name: row for row in rows}
    assert {
        "clip",
        "sfp",
        "gem + FreeCP, tuned",
        "scclip + FreeCP, distractors",
        "+ SOM",
        "+ SAE",
        "+ HAI",
    } <= set(by_name)
    assert {"from block 1", "from block 11", "sfp, neither", "sfp, RP", "sfp, RP + AP"} <= set(by_name)
    forms = {
        f"sfp, {form}, {way}" for form in ("image", "released", "paper") for way in ("tuned", "distractors")
    }
    assert forms <= set(by_name)
    assert by_name["sfp, paper, distractors"].config.purification.variant == "paper"
    for row in rows:
        validate(row.config, row.vocabulary)
    assert by_name["sfp, filter, tuned"].config.labels.background == "auto"
    assert by_name["sfp, image, tuned"].config.labels.background == "residual"
    assert by_name["sfp"].published == 63.9
    assert by_name["gem + FreeCP, tuned"].published == 64.7
    assert by_name["scclip + FreeCP, distractors"].published is None
    assert by_name["gem + FreeCP, tuned"].vocabulary.name == "voc21.freecp"
    assert by_name["sclip"].vocabulary.name == "voc21.sfp"
    assert all(row.config.model.name == "demo" for row in rows)
    assert _active_parts(by_name["ClearCLIP"]) == []
    assert _active_parts(by_name["+ SAE"]) == ["outlier_mitigation", "attention_enhancement"]
    assert len(_active_parts(by_name["+ HAI"])) == 3
    assert len({row.key for row in rows}) == len(rows)


def test_a_grid_of_systems_holds_those_that_are_in_beside_their_figures() -> None:
    base = GridBase(SegmenterConfig(model=ModelConfig("demo", "random")), "cityscapes")
    rows, left_out = system_rows(base)

    by_name = {row.name: row for row in rows}
    ours = [
        system for system in list_systems() if system.is_in and not system.needs and system.host != "rfclip"
    ]
    assert {system.name for system in ours} <= set(by_name)
    assert len(rows) + len(left_out) == len(list_systems())
    assert by_name["NACLIP + PAMR"].config.refine == "pamr"
    assert by_name["NACLIP + PAMR"].published == 38.27
    assert by_name["NACLIP"].config.refine == "none"
    assert by_name["SCLIP + FreeCP"].config.purification.thresholds == "fixed"
    assert by_name["SCLIP + FreeCP"].vocabulary.name == "cityscapes.freecp"
    assert any(line.startswith("LaVG: its first stage is random") for line in left_out)


def test_a_grid_keeps_the_refiner_that_was_asked_for() -> None:
    config = SegmenterConfig(model=ModelConfig("demo", "random"), refine="pamr", pamr=PamrConfig(3))
    by_name = {row.name: row for row in grid_rows(GridBase(config, "voc21"))}
    assert by_name["naclip"].config.pamr.iterations == 3
    assert by_name["naclip"].published == 64.07
    assert by_name["sfp"].published is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_systems_are_measured_side_by_side_by_one_command(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.evaluate import main

    flags = f"--images {pairs}/images --masks {pairs}/masks --vocabulary background,cat,dog,grass --model demo --limit 2"
    where = f"--output {pairs}/out --pretrained random --actors 1 --torch-threads 1 --windows.short_side 32"
    assert main([*flags.split(), *where.split(), "--grid", "systems"]) == 0
    report = json.loads((pairs / "out" / "grid.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert "NACLIP + PAMR" in names
    assert all(row["miou"] is not None for row in report["rows"])
    told = capsys.readouterr().out
    assert "### Systems of the papers' tables" in told
    assert "refine `pamr`" in told
    assert "- SAM 3: a decoder pass a phrase" in told


def test_the_grid_compares_what_stands_for_a_class_in_ambiguous_regions() -> None:
    config = SegmenterConfig(model=ModelConfig("demo", "random"))
    own = {"cat": ["A cat purrs."]}
    rows = {row.name: row for row in grid_rows(GridBase(config, "voc21", descriptions=own))}
    texts = {name.removeprefix("sfp, "): row for name, row in rows.items() if row.table == FREECP_TEXTS}
    assert list(texts) == ["phrases in templates", "names", "shipped descriptions", "own descriptions"]
    assert texts["phrases in templates"].sentences is None
    assert dict(texts["names"].sentences or {})["television"] == ("television monitor screen",)
    assert len(texts["shipped descriptions"].sentences or {}) == 20
    assert texts["own descriptions"].sentences == rows["sfp, RP + AP"].sentences == own
    assert len({row.config.to_dict().__repr__() for row in texts.values()}) == 1

    words = Vocabulary.from_names(["cat", "dog"])
    folders = [row.name for row in grid_rows(GridBase(config, None, words)) if row.table == FREECP_TEXTS]
    assert folders == ["sfp, phrases in templates", "sfp, names"]


def test_each_row_is_encoded_with_its_own_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    words = Vocabulary.from_names(["cat", "dog"])
    base = GridBase(
        SegmenterConfig(model=ModelConfig("demo", "random")), None, words, {"dog": ["A dog has a snout."]}
    )
    rows = [row for row in grid_rows(base) if row.table == FREECP_TEXTS]
    variants, _ = encode_texts(rows, "cpu")
    templates, names, own = (EncodedVocabulary.from_bytes(variant.text) for variant in variants)
    assert not torch.allclose(templates.description_embeddings, names.description_embeddings, atol=1e-4)
    assert torch.equal(templates.description_embeddings[0], own.description_embeddings[0])
    assert not torch.allclose(templates.description_embeddings[1], own.description_embeddings[1], atol=1e-4)


def _active_parts(row: GridRow) -> list[str]:
    parts = ("outlier_mitigation", "attention_enhancement", "attention_integration")
    return [part for part in parts if getattr(row.config.sfp, part)]


def _voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        labels = Image.fromarray(rng.choice(np.array([0, 1, 20, 255], np.uint8), (24, 32)))
        labels.putpalette(list(range(256)) * 3)
        labels.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\nc\n")
    return tmp_path


def test_a_benchmark_lists_its_split_with_masks_relative_to_the_root(tmp_path: Path) -> None:
    source = BenchmarkSource(get_benchmark("voc20"), str(_voc(tmp_path)))

    records = list(source.records())

    assert [record.image_id for record in records] == [
        f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg" for name in "abc"
    ]
    assert records[0].annotation == "VOCdevkit/VOC2012/SegmentationClass/a.png"
    assert source.conversion(np.array([[0, 20, 255]], np.uint8)).tolist() == [[-1, 19, -1]]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "purify",
    [pytest.param("none", marks=pytest.mark.slow), pytest.param("car", marks=pytest.mark.slow), "freecp"],
)
def test_a_benchmark_is_measured_by_one_command(tmp_path: Path, purify: str) -> None:
    from jobs.evaluate import main

    output = tmp_path / "out"
    flags = f"--benchmark voc21 --root {_voc(tmp_path)} --output {output} --model demo --pretrained random --purify {purify}"

    status = main([*flags.split(), "--windows.short_side", "48", "--actors", "1", "--torch-threads", "1"])

    assert status == 0
    report = json.loads((output / "evaluation.json").read_text())
    assert report["measured"] == 3
    assert report["published_miou"] == (0.639 if purify == "none" else None)
    assert report["settings"]["windows"]["short_side"] == 48
    assert report["settings"]["labels"]["logit_scale"] == (40.0 if purify == "freecp" else 50.0)
    assert (report["purified_vocabulary"] is None) == (purify == "none")
    assert report["vocabulary"]["name"] == ("voc21.freecp" if purify == "freecp" else "voc21.sfp")


def test_missing_choices_are_answered_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--benchmark with --root"):
        PairOptions(benchmark="voc21").open(Vocabulary.load("voc21"))
    with pytest.raises(ConfigError, match="21 classes, the vocabulary 4"):
        PairOptions(benchmark="voc21", root=str(tmp_path)).open(VOCABULARY)
    with pytest.raises(StorageError, match="check --masks"):
        FolderPairsSource(str(_voc(tmp_path)), str(tmp_path / "nowhere"), 4)


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (3, 3), (10, 10), (99, 10)])
def test_a_limit_takes_images_from_all_over_the_split(limit: int | None, expected: int) -> None:
    chosen = spread(range(10), limit)

    assert len(chosen) == len(set(chosen)) == expected
    assert chosen[0] == 0


def test_the_papers_grids_hold_their_tables_with_protocols_and_published_figures() -> None:
    model = ModelConfig("demo", "random")
    main, left_out = list_grid(GridBase(SegmenterConfig(model=model), "voc21"), "papers")
    tables = {
        table: {row.name: row for row in main if row.table == table} for table in (SFP_TABLE, FREECP_TABLE)
    }
    assert list(tables[SFP_TABLE]) == ["CLIP", "MaskCLIP", "SCLIP", "ClearCLIP", "NACLIP", "SFP"]
    hosts = ("MaskCLIP", "SCLIP", "ClearCLIP", "GEM")
    assert list(tables[FREECP_TABLE]) == [f"{name} + FreeCP" for name in hosts]
    sfp, purified = tables[SFP_TABLE]["SFP"], tables[FREECP_TABLE]["SCLIP + FreeCP"]
    assert (sfp.published, purified.published) == (63.9, 65.8)
    assert (sfp.config.windows.short_side, sfp.config.labels.logit_scale) == (336, 50.0)
    assert purified.config.windows.size == 384
    assert purified.config.purification.redundancy_threshold == 0.15
    assert any(line.startswith("FreeCP's own runs of SCLIP") for line in left_out)

    ablations, _ = list_grid(GridBase(SegmenterConfig(model=model, host="sclip"), "voc21"), "ablations")
    by_name = {row.name: row for row in ablations}
    assert (by_name["ClearCLIP"].published, by_name["+ HAI"].published) == (57.0, 63.9)
    assert by_name["+ SOM"].published is None
    assert by_name["sclip, RP + AP"].published == 65.8
    assert by_name["sclip, paper, tuned"].config.purification.variant == "paper"
    assert "sclip, filter, tuned" not in by_name
    assert {"sclip, names", "sclip, shipped descriptions", "from block 11"} <= set(by_name)

    towers, _ = list_grid(GridBase(SegmenterConfig(model=model), "voc21"), "towers")
    assert [row.name for row in towers] == ["ClearCLIP, demo", "SFP, demo"]


def test_a_papers_row_that_a_tower_cannot_run_is_left_out_with_its_reason() -> None:
    siglip = SegmenterConfig(model=ModelConfig("ViT-B-16-SigLIP", "random"))
    rows, left_out = list_grid(GridBase(siglip, "voc21"), "ablations")
    assert not any(row.table == SFP_PARTS for row in rows)
    assert any(line.startswith(f"{SFP_PARTS} | + SOM: ") for line in left_out)
