"""Region maps through the stages: from a folder, from a column, between two pools, and what happens where one is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ovss_core.api import OpenVocabSegmenter
from ovss_core.config import ProxyConfig, PurificationConfig, RegionConfig, SegmenterConfig
from ovss_core.errors import ConfigError, StorageError
from ovss_core.evaluation.benchmarks.conversions import indices_below
from ovss_core.regions import RegionMap, vote
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.checks import check_evaluate
from pipelines.evaluate.options import PairOptions
from pipelines.evaluate.stage import MeasureStage, Variant
from pipelines.label.checks import check_label
from pipelines.label.masks import decode_mask
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from tests.pipelines.test_stages import config, engine_of, photographs, png, table, text
from tests.tiny import WORDS, tiny_config
from tests.tiny_towers import DINO, add_tiny_families

VOTING = replace(config("none"), regions=RegionConfig(vote=True))


def regions_of(size: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *size])
    coarse = rng.integers(0, 5, (-(-size[0] // 10), -(-size[1] // 10)))
    return np.kron(coarse, np.ones((10, 10), int))[: size[0], : size[1]].astype(np.uint8)


def folder_of_maps(folder: Path, but: int | None = None) -> list[np.ndarray]:
    """Write the maps of `photographs` under the ids that `table` gives."""
    maps = [
        regions_of(size, seed) for seed, size in enumerate(((48, 64), (50, 41), (120, 48), (1, 1), (48, 64)))
    ]
    for number, regions in enumerate(maps):
        if number != but:
            (folder / f"image {number}.png").write_bytes(png(regions))
    return maps


@pytest.mark.parametrize("pools", [1, 2])
def test_a_folder_of_maps_votes_on_every_image(tmp_path: Path, pools: int) -> None:
    maps, images = folder_of_maps(tmp_path), photographs()
    plain = SegmentStage(config("none"), text(), "cpu")(table(images))["result"].to_pylist()
    if pools == 1:
        rows = SegmentStage(VOTING, text(), "cpu", region_maps=str(tmp_path))(table(images))
    else:
        propose = ProposeStage(VOTING, text(), "cpu", region_maps=str(tmp_path))
        rows = FinishStage(VOTING, text(), "cpu")(propose(table(images)))
    for before, after, regions in zip(plain, rows["result"].to_pylist(), maps, strict=True):
        expected, votes = vote(decode_mask(before["mask"]), RegionMap.of_array(regions))
        np.testing.assert_array_equal(decode_mask(after["mask"]), expected)
        assert [entry["region"] for entry in after["regions"] or []] == [entry.region for entry in votes]
        for entry, own in zip(after["regions"] or [], votes, strict=True):
            assert (entry["pixels"], entry["winner"]) == (own.pixels, own.winner)
            assert entry["agreement"] == pytest.approx(own.agreement)
        assert before["regions"] is None


def test_an_image_without_a_map_or_with_a_foreign_one_fails_alone(tmp_path: Path) -> None:
    folder_of_maps(tmp_path, but=1)
    (tmp_path / "image 2.png").write_bytes(png(regions_of((9, 9), 0)))
    rows = SegmentStage(VOTING, text(), "cpu", region_maps=str(tmp_path))(table(photographs()))
    failures = rows["failure"].to_pylist()
    assert [failure is None for failure in failures] == [True, False, False, True, True]
    assert failures[1]["stage"] == "decode"
    assert "no region map image 1.png in " in failures[1]["reason"]
    assert "the region map has 9 x 9 pixels, the image 120 x 48" in failures[2]["reason"]


def test_a_column_of_files_or_tables_gives_the_same_and_may_be_empty(tmp_path: Path) -> None:
    maps, images = folder_of_maps(tmp_path), photographs()
    expected = SegmentStage(VOTING, text(), "cpu", region_maps=str(tmp_path))(table(images))
    stage = SegmentStage(VOTING, text(), "cpu", region_column="parts")
    files = [None if number == 3 else png(regions) for number, regions in enumerate(maps)]
    tables = [None if number == 3 else regions.tolist() for number, regions in enumerate(maps)]
    for column in (pa.array(files, pa.binary()), pa.array(tables)):
        rows = stage(table(images, parts=column))["result"].to_pylist()
        for number, (row, other) in enumerate(zip(rows, expected["result"].to_pylist(), strict=True)):
            if number != 3:
                assert row["mask"] == other["mask"]
                assert row["regions"] == other["regions"]
        assert rows[3]["regions"] is None


def test_what_tells_the_regions_must_be_there(tmp_path: Path) -> None:
    stage = SegmentStage(VOTING, text(), "cpu", region_maps=str(tmp_path))
    with pytest.raises(ConfigError, match="region_maps are found by the column 'image_id'"):
        stage(table(photographs()).drop_columns(["image_id"]))
    with pytest.raises(ConfigError, match="both give the regions"):
        SegmentStage(VOTING, text(), "cpu", region_maps="a", region_column="b")


def test_the_python_interface_takes_regions_too() -> None:
    engine = engine_of(VOTING)
    picture = np.full((48, 64, 3), 90, np.uint8)
    regions = regions_of((48, 64), 1)
    result = OpenVocabSegmenter(engine).segment(picture, regions)
    [expected] = engine.segment([picture], [RegionMap.of_array(regions)])
    assert result.regions == expected.regions != ()


def test_an_evaluation_measures_the_voted_labels(tmp_path: Path) -> None:
    maps, images = folder_of_maps(tmp_path), photographs()
    truth = tmp_path / "truth"
    truth.mkdir()
    for number, regions in enumerate(maps):
        (truth / f"image {number}.png").write_bytes(png(regions))
    variants = [
        Variant("plain", config("none"), text().to_bytes()),
        Variant("vote", VOTING, text().to_bytes()),
    ]
    stage = MeasureStage(
        variants, str(truth), indices_below(len(WORDS)), device="cpu", region_maps=str(tmp_path)
    )
    names = [f"image {number}.png" for number in range(len(images))]
    empty = pa.nulls(len(images))
    rows = stage(table(images, annotation=names, failure=empty, seconds=empty))["result"].to_pylist()
    labelled = SegmentStage(VOTING, text(), "cpu", region_maps=str(tmp_path))(table(images))[
        "result"
    ].to_pylist()
    for row, own, regions in zip(rows, labelled, maps, strict=True):
        plain, voted = row["measurements"]
        right = int((decode_mask(own["mask"]) == regions).sum())
        assert sum(entry["intersection"] for entry in voted["confusion"]) == right
        assert plain["variant"] == "plain"


def check(segmenter: SegmenterConfig, **source: Any) -> None:
    options = SourceOptions(images="photos", **source)
    check_label(options, RunOptions("out"), PoolOptions(), segmenter, Vocabulary.from_names(WORDS))


def test_maps_and_what_they_are_for_must_be_given_together(tmp_path: Path) -> None:
    plain = replace(tiny_config("sfp", PurificationConfig("none")), model=SegmenterConfig().model)
    plain = replace(plain, model=replace(plain.model, name="demo"))
    voting = replace(plain, regions=RegionConfig(vote=True))
    with pytest.raises(
        ConfigError, match=r"--region-maps is given, but nothing uses it; .* --regions.vote true"
    ):
        check(plain, region_maps=str(tmp_path))
    with pytest.raises(ConfigError, match="need regions; give --region-maps FOLDER"):
        check(voting)
    with pytest.raises(StorageError, match=r"no such folder: .*/nowhere; check --region-maps"):
        check(voting, region_maps=str(tmp_path / "nowhere"))
    check(voting, region_maps=str(tmp_path))
    ignoring = replace(plain, regions=RegionConfig(vote=True, min_agreement=0.5))
    pairs = PairOptions(images="a", masks="b", region_maps=str(tmp_path))
    with pytest.raises(ConfigError, match="min_agreement ignores pixels, which an evaluation must label"):
        check_evaluate(pairs, RunOptions("out"), PoolOptions(), ignoring, Vocabulary.from_names(WORDS))


def test_the_stages_of_a_host_with_a_second_tower_give_the_engines_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny_families(monkeypatch)
    maps, images = folder_of_maps(tmp_path), photographs()
    base = replace(tiny_config("corrclip", PurificationConfig("none")), proxy=ProxyConfig(DINO, "random"))
    settings = replace(base, regions=RegionConfig(scope=True, vote=True))
    whole = SegmentStage(settings, text(), "cpu", region_maps=str(tmp_path))(table(images))[
        "result"
    ].to_pylist()
    propose = ProposeStage(settings, text(), "cpu", region_maps=str(tmp_path))
    staged = FinishStage(settings, text(), "cpu")(propose(table(images)))["result"].to_pylist()
    for row, other, regions in zip(whole, staged, maps, strict=True):
        assert row["mask"] == other["mask"]
        for entry in row["regions"] or []:
            assert (decode_mask(row["mask"])[regions == entry["region"]] == entry["winner"]).all()
