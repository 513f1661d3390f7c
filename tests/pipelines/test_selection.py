import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ovss_core.errors import ConfigError, OutputMismatchError
from pipelines.label.job import run_label
from pipelines.label.options import PartOptions
from pipelines.label.reader import open_labels
from pipelines.run.selection import Selection
from pipelines.run.share import Share
from pipelines.run.summary import merge_summaries
from pipelines.sources import FolderSource, ParquetSource, Source, WebDatasetSource
from pipelines.storage import Folder
from tests.conftest import encode_image
from tests.pipelines.mean_color import mean_job
from tests.pipelines.plain_execution import rows_of, run_plain
from tests.pipelines.test_label import job, labels
from tests.pipelines.test_shards import images, write_shard

ImageFolder = Callable[..., Path]


def mean_ids(output: Path) -> list[str]:
    return [row["image_id"] for row in rows_of(Folder(str(output)), "means")]


def run(source: Source, output: Path, selection: Selection) -> int:
    """Label what is selected; return how many images this start did."""
    return run_plain(replace(mean_job(str(output), selection.of(source)), shard_size=4))[1].fresh


@pytest.mark.parametrize("first", [Selection(limit=5), Selection(sample=5, seed=7)])
def test_a_later_run_goes_on_to_the_whole_and_keeps_what_is_done(
    image_folder: ImageFolder, tmp_path: Path, first: Selection
) -> None:
    source, output = FolderSource(str(image_folder(17))), tmp_path / "out"
    assert run(source, output, first) == 5
    assert run(source, output, first) == 0
    begun = mean_ids(output)
    more = replace(first, limit=first.limit and 9, sample=first.sample and 9)
    assert run(source, output, more) == 4
    assert set(begun) < set(mean_ids(output))
    assert run(source, output, Selection()) == 8
    assert sorted(mean_ids(output)) == sorted(record.image_id for record in source.records())
    assert run(source, output, Selection()) == 0
    with pytest.raises(
        OutputMismatchError, match="lists the whole corpus already; leave --limit and --sample"
    ):
        run(source, output, first)


def test_a_sample_of_a_seed_is_the_same_in_any_order_and_another_seeds_is_another(
    image_folder: ImageFolder,
) -> None:
    source = FolderSource(str(image_folder(30)))

    def chosen(count: int, seed: int) -> list[str]:
        return [record.image_id for record in Selection(sample=count, seed=seed).of(source).records()]

    assert chosen(6, 1) == chosen(6, 1) != chosen(6, 2)
    assert set(chosen(6, 1)) < set(chosen(12, 1))
    listed = [record.image_id for record in source.records()]
    assert chosen(12, 1) == [name for name in listed if name in set(chosen(12, 1))]


def test_a_part_of_tables_is_widened_to_all_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = {"image": [encode_image(number) for number in range(6)]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    source, output = ParquetSource(str(tmp_path / "*.parquet")), tmp_path / "out"
    assert run(source, output, Selection(limit=4)) == 4
    assert mean_ids(output) == [f"a.parquet#{row}" for row in range(4)]
    assert run(source, output, Selection()) == 8
    assert len(set(mean_ids(output))) == 12


def test_a_part_of_shards_is_whole_shards(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_shard(tmp_path / f"s/{name}.tar", images(6, 10 * number))
    source, output = WebDatasetSource(str(tmp_path / "s")), tmp_path / "out"
    assert run(source, output, Selection(limit=7)) == 12
    assert {name.partition("/")[0] for name in mean_ids(output)} == {"a.tar", "b.tar"}
    assert run(source, output, Selection()) == 6


def test_jobs_share_a_corpus_without_overlap_and_their_summaries_add_up(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder = image_folder(20)
    (folder / "broken.jpg").write_bytes(b"")
    source, output = FolderSource(str(folder)), Folder(str(tmp_path / "out"))
    found: list[str] = []
    for number in (1, 2, 3):
        share = Share(number, 3)
        run(source, tmp_path / "out" / share.folder, Selection(share=share))
        found += [
            row["image_id"]
            for table in ("means", "_failures")
            for row in rows_of(Folder(str(tmp_path / "out" / share.folder)), table)
        ]
        merged = merge_summaries(output, 3)
        assert merged["missing"] == [f"{later}/3" for later in range(number + 1, 4)]
    assert sorted(found) == sorted(record.image_id for record in source.records())
    assert (merged["images"], merged["labelled"], merged["failed"]) == (21, 20, 1)
    sums = [
        json.loads((tmp_path / "out" / Share(n, 3).folder / "summary.json").read_text())["statistics"][
            "sum_of_means"
        ]
        for n in (1, 2, 3)
    ]
    assert merged["statistics"]["sum_of_means"] == pytest.approx(sum(sums))


def test_tables_and_shards_go_whole_to_one_job(tmp_path: Path) -> None:
    names = [f"{number:02d}.parquet" for number in range(12)]
    for name in names:
        pq.write_table(pa.table({"image": [encode_image(1), encode_image(2)]}), tmp_path / name)
    source = ParquetSource(str(tmp_path / "*.parquet"))
    shares = [Selection(share=Share(number, 2)).of(source) for number in (1, 2)]
    parts = [share.containers() or [] for share in shares]
    assert sorted(parts[0] + parts[1]) == names
    assert all(parts)
    for share, part in zip(shares, parts, strict=True):
        assert [record.image_id for record in share.records()] == [
            f"{n}#{row}" for n in part for row in (0, 1)
        ]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/2", "1/0"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give I/N"):
        PartOptions(shard=text)


def test_a_labelling_job_takes_a_part_and_then_the_whole_and_a_share_has_its_own_folder(
    ray_session: None, image_folder: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = image_folder(7), tmp_path / "out"
    assert run_label(job(folder, output, part=PartOptions(limit=3)))["labelled"] == 3
    begun = labels(output)
    assert run_label(job(folder, output))["this_start"]["images"] == 4
    assert {name: row for name, row in labels(output).items() if name in begun} == begun

    shares = tmp_path / "shares"
    done = run_label(job(folder, shares, part=PartOptions(shard="1/2")))
    assert done["labelled"] == len(open_labels(str(shares / "shard-00001-of-00002"))) > 0
    assert json.loads((shares / "summary.json").read_text())["missing"] == ["2/2"]
    assert "path: shard-*/labels/*.parquet" in (shares / "README.md").read_text()
