"""Words that images bring along: from where they lie, through both stages, to rows with vocabularies of their own."""

import json
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import cli
from ovss_core.api import encode_words
from ovss_core.clip.phrases import ONE_TEMPLATE
from ovss_core.clip.text import EncodedVocabulary, TextEncoder
from ovss_core.clip.weights import load_clip
from ovss_core.config import PurificationConfig, RegionConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.errors import ConfigError, OutputMismatchError
from ovss_core.images.decode import decode_image
from ovss_core.vocabulary import Vocabulary, VocabularyClass
from pipelines.label.job import LabelJob, encode_text, image_words, opened, run_label, stages_of
from pipelines.label.masks import decode_mask
from pipelines.label.options import NO_VOCABULARY, WordOptions
from pipelines.label.own_words import Offer, Offers, widened
from pipelines.label.reader import open_labels
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.label.word_use import OwnWords, known_words
from pipelines.run.capacity import Pool
from pipelines.run.manifest import prepare_manifest
from pipelines.run.options import SourceOptions
from pipelines.run.pools import WorkerPlan
from pipelines.run.runner import Job, plan_job
from pipelines.sources import FolderSource, ListSource, ParquetSource, WebDatasetSource
from pipelines.sources.image_words import as_texts, find_words
from tests.pipelines.faulty_storage import use_faulty_storage
from tests.pipelines.mean_color import mean_job
from tests.pipelines.plain_execution import PlainExecution, run_plain
from tests.pipelines.test_crash_points import Clock, Killed
from tests.pipelines.test_label import ONE_POOL, VOCABULARY, job
from tests.pipelines.test_shards import images
from tests.pipelines.test_stages import SIZES, photographs, table
from tests.tiny import WORDS, tiny_clip, tiny_config

COMMON = Vocabulary.from_names(["background", *WORDS])
OWN: list[list[str] | None] = [
    ["zebra", "Puppy"],
    ["sofa"],
    None,
    ["zebra", "a red  Hat"],
    ["zebra", "puppy"],
]
IMAGES = images(5)


def settings(method: str = "freecp", **changes: object) -> SegmenterConfig:
    return tiny_config(purification=PurificationConfig(method=method, crop_size=16, **changes))  # type: ignore[arg-type]


@cache
def known(distractors: bool = False) -> EncodedVocabulary:
    changes = {"thresholds": "distractors"} if distractors else {}
    return encode_words(tiny_clip(lively=False), settings(**changes), COMMON)


def expected_text(use: str, words: Sequence[str]) -> EncodedVocabulary:
    """Encode what an image is offered from the front: common classes in all templates, other words in one."""
    own = [word for word in words if word not in ("puppy", "sofa")]
    if use == "besides" or not words:
        common = list(COMMON.classes)
    else:
        named = {"puppy": "dog", "sofa": "sofa"}
        wanted = ["background", *(named[word] for word in words if word in named)]
        common = [entry for name in wanted for entry in COMMON.classes if entry.name == name]
    text = encode_words(tiny_clip(lively=False), settings(), Vocabulary(tuple(common)))
    rows = TextEncoder(tiny_clip(lively=False)).encode_phrases(own, ONE_TEMPLATE)
    return replace(
        text,
        vocabulary=Vocabulary((*common, *(VocabularyClass(word, (word,)) for word in own))),
        phrase_embeddings=torch.cat([text.phrase_embeddings, rows]),
        description_embeddings=torch.cat([text.description_embeddings, rows]),
    )


@pytest.mark.parametrize("use", ["besides", "instead"])
@pytest.mark.parametrize("method", ["freecp", "none"])
def test_each_image_gets_the_labels_of_an_engine_for_its_own_words(use: Any, method: str) -> None:
    config, own = settings(method), OwnWords(use, len(COMMON))
    batch = table(photographs(), own_words=pa.array(OWN, pa.list_(pa.string())))
    whole = SegmentStage(config, known(), "cpu", own_words=own)
    propose = ProposeStage(config, known().to_bytes(), "cpu", own_words=own)
    finish = FinishStage(config, known(), "cpu", own_words=own)
    together = whole(batch)["result"].to_pylist()
    singly = [whole(batch.slice(place, 1))["result"].to_pylist()[0] for place in range(len(OWN))]
    staged = finish(propose(batch))["result"].to_pylist()
    offered = set()
    for place, words in enumerate(OWN):
        text = expected_text(use, [" ".join(word.lower().split()) for word in words or ()])
        engine = SegmentationEngine(config, load_clip(config.model), text)
        [expected] = engine.segment([decode_image(photographs()[place], 10**6)])
        for row in (together[place], singly[place], staged[place]):
            assert row["vocabulary"] == text.vocabulary.names
            np.testing.assert_array_equal(decode_mask(row["mask"]), expected.label_map)
            assert {entry["name"] for entry in row["kept"]} == {entry.name for entry in expected.kept}
        offered.add(tuple(text.vocabulary.names))
    assert len(offered) == (3 if use == "besides" else 4)


@pytest.mark.parametrize("host", ["sfp,naclip", "clipsurgery"])
def test_what_an_image_gets_depends_on_no_neighbor_whatever_else_is_on(host: str) -> None:
    config = replace(
        settings("none" if host == "clipsurgery" else "freecp"),
        host=host,
        class_prior=0.2,
        refine="tlp",
        regions=RegionConfig(vote=True),
    )
    words: list[list[str] | None] = [["zebra"], ["zebra"], None, ["red hat"], ["zebra"]]
    regions = [np.indices((h, w)).sum(0) // 9 + 1 for h, w in SIZES]
    batch: dict[str, list[Any]] = {"image": photographs(), "own_words": words, "regions": regions}
    own = {"own_words": OwnWords("besides", len(COMMON)), "region_column": "regions"}
    whole = SegmentStage(config, known(), "cpu", **own)  # type: ignore[arg-type]
    together = whole(batch)["result"]
    staged = FinishStage(config, known(), "cpu", own_words=own["own_words"])(  # type: ignore[arg-type]
        ProposeStage(config, known(), "cpu", **own)(batch)  # type: ignore[arg-type]
    )["result"]
    for place in range(len(words)):
        alone = whole({name: values[place : place + 1] for name, values in batch.items()})["result"][0]
        for row in (together[place], staged[place]):
            assert row["vocabulary"] == [*COMMON.names, *(words[place] or ())]
            assert row["mask"] == alone["mask"]
            assert row["regions"] == alone["regions"]
            assert row["disagreement"] == pytest.approx(alone["disagreement"], nan_ok=True)


def test_distractors_that_share_a_word_with_an_own_word_are_left_out() -> None:
    text = known(distractors=True)
    offers = Offers(OwnWords("besides", len(COMMON)), text, tiny_clip(lively=False))
    plain, with_noun = offers.plan([["zebra"], [offers._nouns[3]]])
    assert isinstance(plain, Offer)
    assert isinstance(with_noun, Offer)
    assert len(offers.text(plain).null_embeddings) == len(text.null_embeddings)
    left = offers.text(with_noun).null_embeddings
    assert len(left) < len(text.null_embeddings)
    assert not (left == text.null_embeddings[3]).all(1).any()


@pytest.mark.parametrize(
    ("given", "classes", "words"),
    [
        (["zebra", "ZEBRA", " zebra "], (0,), ("zebra",)),
        ("zebra, red hat,,", (0,), ("zebra", "red hat")),
        (["red\thot, hat\u200b"], (0,), ("red hot, hat",)),
        (["Puppy", "dog", "cat"], (0, 2, 1), ()),
        (["Background", "bg", "cat"], (0, 1), ()),
        (["Background", ""], (0, 1, 2, 3, 4, 5, 6), ()),
        ([None, "  "], (0, 1, 2, 3, 4, 5, 6), ()),
        (np.array(["zebra"]), (0,), ("zebra",)),
        (["gro\u0308\u00dfe", "GR\u00d6\u00dfE"], (0,), ("gr\u00f6\u00dfe",)),
    ],
)
def test_words_are_told_apart_as_the_text_tower_does(given: Any, classes: Any, words: Any) -> None:
    offers = Offers(OwnWords("instead", len(COMMON)), known(), tiny_clip(lively=False))
    assert offers.plan([given]) == [Offer(classes, words)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["a", "b", "c", "d"], r"has 4 words of its own, more than max_own_words \(3\)"),
        (["cat " * 80], "would not read the image's word 'cat cat .* to its end"),
        ([1], "a list with a number in it"),
        (7, "the image's words are a number"),
        ({"a": 1}, "the image's words are an object"),
        ([["cat"]], "a list with a list in it"),
        (None, "no words of its own, and there is no --vocabulary"),
        (["background"], "no words of its own, and there is no --vocabulary"),
    ],
)
def test_words_that_cannot_be_used_cost_their_image_alone(given: Any, reason: str) -> None:
    text = encode_words(tiny_clip(lively=False), settings("none"), NO_VOCABULARY)
    stage = SegmentStage(settings("none"), text, "cpu", own_words=OwnWords("besides", 0, most=3))
    rows = {"image": photographs()[:2], "own_words": [given, ["dog", "cat"]]}
    found = stage(rows)
    failure, fine = found["failure"]
    assert (failure["stage"], failure["error_type"], fine) == ("words", "VocabularyError", None)
    assert re.search(reason, failure["reason"])
    assert found["result"][1]["vocabulary"] == ["dog", "cat"]


def test_captions_offer_the_known_words_that_they_name() -> None:
    options = WordOptions(caption_column="txt", caption_words="zebra,Puppy,red hat")
    vocabulary = known_words(COMMON, options)
    assert vocabulary.names == [*COMMON.names, "zebra", "red hat"]
    text = encode_words(tiny_clip(lively=False), settings(), vocabulary)
    own = OwnWords.of(replace(options, own_words="instead"), COMMON)
    assert own is not None
    captions = ["Two zebras in red hats, and puppies.", "", None]
    offers = Offers(own, text, tiny_clip(lively=False)).plan(captions)
    assert offers == [Offer((0, 7, 8, 2)), Offer(tuple(range(7))), Offer(tuple(range(7)))]
    stage = SegmentStage(settings(), text, "cpu", own_words=replace(own, column="caption"))
    rows = stage({"image": photographs()[:3], "caption": np.array(captions, object)})["result"]
    assert rows[0]["vocabulary"] == ["background", "zebra", "red hat", "dog"]
    assert rows[1]["vocabulary"] == rows[2]["vocabulary"] == COMMON.names


def test_all_masks_of_a_run_have_one_value_for_pixels_without_a_label() -> None:
    assert OwnWords("besides", 155, most=100).ignore_index == 255
    assert OwnWords("besides", 156, most=100).ignore_index == 65_535
    assert OwnWords("instead", 150, most=254).ignore_index == 255
    small = np.array([[0, 255, 7]], np.uint8)
    assert widened(small, 255) is small
    assert widened(small, 65_535).tolist() == [[0, 65_535, 7]]
    assert widened(small, 65_535).dtype == np.uint16


def write_source(kind: str, folder: Path, words: Sequence[Any]) -> Any:
    """Write five images with a value each in a column `tags`, or in a text file beside them."""
    folder.mkdir()
    if kind == "parquet":
        cells = {"image": list(IMAGES.values()), "tags": list(words)}
        pq.write_table(pa.table(cells), folder / "t.parquet", row_group_size=2)
        return ParquetSource(str(folder))
    for name, data in IMAGES.items():
        (folder / name).write_bytes(data)
    for name, value in zip(IMAGES, words, strict=True):
        beside = folder / f"{name.partition('.')[0]}.{'txt' if kind.endswith('txt') else 'json'}"
        if value is not None:
            beside.write_text(value if kind.endswith("txt") else json.dumps({"tags": value}))
    if kind.startswith("folder"):
        return FolderSource(str(folder))
    target = folder.with_name(f"{folder.name}-tar")
    target.mkdir()
    with tarfile.open(target / f"a.{kind.partition(' ')[0]}", "w:gz" if "gz" in kind else "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    source = WebDatasetSource(str(target))
    source.fields = replace(source.fields, beside=("txt" if kind.endswith("txt") else "json",))
    return source


def read_all(source: Any, name: str, output: Path, captions: bool = False) -> list[dict[str, Any]]:
    work: Job = replace(
        mean_job(str(output), source), words=find_words(source, name, captions, "--words-column")
    )
    manifest = prepare_manifest(work.output, source, 2)
    tables = list(PlainExecution(work).tables(plan_job(work, manifest).units))
    again = prepare_manifest(work.output, source, 2)
    if again.listings:  # a shard's parts that are listed are read by their places, with the same words
        tables += list(PlainExecution(work).tables(plan_job(work, again).units))
    return [row for found in tables for row in found.to_pylist()]


@pytest.mark.parametrize("kind", ["parquet", "folder", "tar", "tar.gz"])
def test_words_travel_with_their_image_from_wherever_they_lie(tmp_path: Path, kind: str) -> None:
    words = [["zebra", "red, hat"], [], None, ["Größe"], ["a", "b"]]
    rows = read_all(write_source(kind, tmp_path / "in", words), "tags", tmp_path / "out")
    assert len(rows) == (10 if kind.startswith("tar") else 5)
    assert [row["own_words"] for row in rows[:5]] == words
    assert (
        sorted(map(str, (row["own_words"] for row in rows[5:]))) == sorted(map(str, words))[: len(rows) - 5]
    )
    assert [row["image"] for row in rows[:5]] == list(IMAGES.values())


@pytest.mark.parametrize("kind", ["folder txt", "tar txt", "parquet"])
def test_texts_are_split_at_commas_and_captions_are_not(tmp_path: Path, kind: str) -> None:
    source = write_source(kind, tmp_path / "in", ["a, b", "c", None, "", "d"])
    name = "tags" if kind == "parquet" else "txt"
    rows = read_all(source, name, tmp_path / "out")[:5]
    assert [row["own_words"] for row in rows] == [["a", " b"], ["c"], None, [""], ["d"]]
    captions = read_all(source, name, tmp_path / "captions", captions=True)[:5]
    assert [row["own_words"] for row in captions] == [["a, b"], ["c"], None, [""], ["d"]]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_is_no_list_of_texts_or_cannot_be_read_is_a_failure_and_never_no_words(
    tmp_path: Path, kind: str
) -> None:
    source = write_source(kind, tmp_path / "in", [[1], {"a": 1}, ["x"], 3, ["y"]])
    if kind == "folder":
        broken = sorted((tmp_path / "in").glob("*.json"))[2]
        broken.write_text("{")
    rows = read_all(source, "tags", tmp_path / "out")[:5]
    reasons = [row["failure"] and row["failure"]["reason"] for row in rows]
    assert [reason is None for reason in reasons] == [False, False, kind == "tar", False, True]
    assert [row["image"] is None for row in rows] == [reason is not None for reason in reasons]
    assert {row["failure"]["stage"] for row in rows if row["failure"]} == {"words"}


def test_a_source_of_one_file_has_its_words_beside_it(tmp_path: Path) -> None:
    write_source("folder", tmp_path / "in", [["a"], ["b"], ["c"], ["d"], ["e"]])
    rows = read_all(FolderSource(str(tmp_path / "in" / list(IMAGES)[1])), "tags", tmp_path / "out")
    assert [row["own_words"] for row in rows] == [["b"]]


def test_columns_that_hold_no_words_are_refused_before_anything_starts(tmp_path: Path) -> None:
    source = write_source("parquet", tmp_path / "in", [["a"]] * 5)
    with pytest.raises(ConfigError, match=r"no column 'tag' in .*did you mean 'tags'.*one of image, tags"):
        find_words(source, "tag", False, "--words-column")
    with pytest.raises(ConfigError, match=r"column 'image' of .* is binary; --words-column takes lists"):
        find_words(source, "image", False, "--words-column")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(ConfigError, match="--caption-column takes a column of --parquet"):
        find_words(ListSource(str(tmp_path / "list.txt")), "tags", True, "--caption-column")
    assert as_texts(["a", None]) == ["a"]


def test_a_table_without_the_column_costs_its_rows(tmp_path: Path) -> None:
    source = write_source("parquet", tmp_path / "in", [["a"]] * 5)
    pq.write_table(pa.table({"image": list(IMAGES.values())[:1]}), tmp_path / "in/u.parquet")
    rows = read_all(ParquetSource(str(tmp_path / "in")), "tags", tmp_path / "out")
    assert [row["failure"] and row["failure"]["reason"] for row in rows] == [
        *[None] * 5,
        "the file has no column 'tags'",
    ]
    assert source.column_names() == ["image", "tags"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--words-column a --caption-column b", "both give images words"),
        (
            "--own-words instead --vocabulary voc21",
            "--own-words goes with --words-column or --caption-column",
        ),
        ("--caption-words voc21", "--caption-words goes with --caption-column"),
        ("--words-column a --max-own-words 0", "max_own_words is 0; give 1 to 65534"),
        ("--words-column a --vocabulary ade20k --max-own-words 65500", "with the 150 classes"),
        ("--caption-column a --vocabulary voc21", "add nothing to it; give --own-words instead"),
        ("--caption-column a", "give --vocabulary"),
        (
            "--caption-column a --caption-words coco_stuf --vocabulary voc21",
            "--caption-words: unknown vocabulary 'coco_stuf' (did you mean 'coco_stuff164k'?)",
        ),
        ("--caption-column a --caption-words stuff", "(did you mean 'coco_stuff164k'?)"),
        ("--caption-column a --caption-words zebras", "unknown vocabulary 'zebras': no such file"),
        ("--words-column a --labels.background first_class", 'has no class "background"'),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: str, message: str
) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "t.parquet")
    place = ["--parquet", str(tmp_path / "t.parquet"), "--output", str(tmp_path / "out"), "--model", "demo"]
    assert cli.main(["label", *place, *flags.split()]) == 2
    assert message in capsys.readouterr().err


def words_job(source: SourceOptions, output: Path, finishers: int = 0) -> LabelJob:
    pools = replace(ONE_POOL, finish_actors=finishers)
    return job("replaced", output, source=source, pools=pools, words=WordOptions(words_column="tags"))


def plain_job(work: LabelJob) -> Job:
    """Return what Ray would be given."""
    source, table = opened(work)
    text, _ = encode_text(work.segmenter, work.known, None, "cpu")
    pool = Pool("segment", 1, 1.0, 0.0)
    plan = WorkerPlan(pool, pool if work.pools.finish_actors else None, 1, 4, 1)
    stages, words = stages_of(work, plan, text), image_words(work, source)
    return Job(work.output, source, stages, table, shard_size=2, fragment_rows=2, words=words)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_job_that_was_killed_gives_each_image_the_same_words_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)
    source = write_source(kind, tmp_path / "in", [["zebra", "cat"], [], None, ["red hat"], ["w " * 90]])
    place = SourceOptions(**{"parquet" if kind == "parquet" else "webdataset": source.pattern})
    _, _, summary = run_plain(plain_job(words_job(place, tmp_path / "whole")))
    assert (summary["labelled"], summary["failed"]) == (4, 1)
    whole = {row["image_id"]: row for row in open_labels(str(tmp_path / "whole")).rows()}
    stored = open_labels(str(tmp_path / "whole")).arrow.to_table()["vocabulary"].to_pylist()
    common = VOCABULARY.names
    assert stored == [[*common, "zebra"], common, common, [*common, "red hat"]]
    for number, deadly in enumerate((13, 29)):
        output = tmp_path / f"{deadly}"
        work = plain_job(words_job(place, output, finishers=number % 2))
        with monkeypatch.context() as patch:
            use_faulty_storage(patch, output, Clock(deadly))
            with suppress(Killed):
                run_plain(work)
        run_plain(work)
        found = {row["image_id"]: row for row in open_labels(str(output)).rows()}
        assert found.keys() == whole.keys()
        for name, row in found.items():
            assert all(row[column] == whole[name][column] for column in ("vocabulary", "mask", "words"))


def test_a_job_labels_each_image_by_its_words_goes_on_and_refuses_other_words(
    ray_session: None, tmp_path: Path
) -> None:
    write_source("parquet", tmp_path / "in", [["zebra", "cat"], [], None, ["red hat"], ["w " * 90]])
    output = tmp_path / "out"
    work = words_job(SourceOptions(parquet=str(tmp_path / "in")), output, finishers=1)
    work = replace(work, run=replace(work.run, previews=3, report=True))
    summary = run_label(work)
    assert (summary["labelled"], summary["failed"]) == (4, 1)
    labels = open_labels(str(output))
    common = work.vocabulary.names
    assert labels.arrow.to_table()["vocabulary"].to_pylist()[0] == [*common, "zebra"]
    assert set(labels.class_names) <= {*common, "zebra", "red hat"}
    assert run_label(work)["this_start"]["images"] == 0
    for other in (WordOptions(words_column="tags", own_words="instead"), WordOptions()):
        with pytest.raises(OutputMismatchError, match="own_words"):
            run_label(replace(work, words=other))
    assert (output / "_previews/00002-mask.png").exists()
    assert "and each image&#39;s own words" in (output / "_previews/index.html").read_text().replace(
        "'", "&#39;"
    )
    assert (output / "_report/index.html").exists()
    assert "class_names" not in (output / "README.md").read_text().partition("\n---\n")[0]
