"""Label a corpus: what the job is made of, the checks before it starts, and its one call."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import Vocabulary
from pipelines.label.card import write_card
from pipelines.label.checks import check_label
from pipelines.label.options import OutputOptions, PartOptions, WordOptions
from pipelines.label.pictures import write_previews
from pipelines.label.report.page import report_afterwards
from pipelines.label.stages import FinishStage, ProposeStage, SegmentStage
from pipelines.label.table import label_table
from pipelines.label.word_use import OwnWords, known_words
from pipelines.preflight import check_model, check_proxy, fetch_weights, say_once
from pipelines.preflight import read_descriptions as read_descriptions
from pipelines.run.handed_weights import address_of
from pipelines.run.lifecycle import Course, carry_out, open_source, stopping_in_one_line
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions
from pipelines.run.pools import WorkerPlan
from pipelines.run.progress import announced
from pipelines.run.record import proxy_facts
from pipelines.run.runner import ActorStage
from pipelines.run.schema import LABELS
from pipelines.run.selection import Selection
from pipelines.run.share import Share
from pipelines.run.sink import FAILED, OutputTable
from pipelines.run.summary import merge_summaries
from pipelines.run.weight_hashes import WeightHashes, hash_weights
from pipelines.sources import FolderSource, ParquetSource, Source, WebDatasetSource
from pipelines.sources.carried import FIELDS, TEXT, CarriedColumns, parse_columns
from pipelines.sources.image_words import ImageWords, find_words
from pipelines.sources.region_maps import described_regions
from pipelines.storage import Folder, join_uri


@dataclass(frozen=True)
class LabelJob:
    """A labelling run.

    Attributes:
        vocabulary: The classes; `NO_VOCABULARY` where images are offered their own words alone.
        descriptions: Sentences by class name for the ambiguity step; "shipped" takes those of a shipped vocabulary.
        segmenter: What decides the masks.
        columns: What is stored beside them.
        part: Which images of the source are labelled.
        words: Words that each image brings along.
    """

    source: SourceOptions
    run: RunOptions
    vocabulary: Vocabulary
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    descriptions: DescriptionChoice = "shipped"
    pools: PoolOptions = field(default_factory=PoolOptions)
    columns: OutputOptions = field(default_factory=OutputOptions)
    part: PartOptions = field(default_factory=PartOptions)
    words: WordOptions = field(default_factory=WordOptions)

    @property
    def own_words(self) -> OwnWords | None:
        """How images' own words are used; None where they bring none."""
        return OwnWords.of(self.words, self.vocabulary)

    @property
    def known(self) -> Vocabulary:
        """The vocabulary that is encoded beforehand."""
        return known_words(self.vocabulary, self.words)

    @property
    def share(self) -> Share | None:
        """Which of several independent jobs this one is, if it is one of them."""
        return Share.parse(self.part.shard) if self.part.shard else None

    @property
    def selection(self) -> Selection:
        """What is taken of the source."""
        return Selection(self.part.limit, self.part.sample, self.part.seed, self.share)

    @property
    def output(self) -> Folder:
        """Where this job's own rows go: the output, or a folder of its share below it."""
        return Folder(join_uri(self.run.output, self.share.folder) if self.share else self.run.output)

    def table(self, source: Source) -> OutputTable:
        """Return the table that the run writes.

        Raises:
            ConfigError: The source has no such columns as are to be carried.
        """
        carried = carried_columns(source, self.columns.carry) if self.columns.carry else None
        confidence = self.segmenter.labels.confidence
        return label_table(self.vocabulary, confidence, self.columns.embed_images, carried, self.own_words)

    @property
    def sentences(self) -> Mapping[str, Sequence[str]] | None:
        """The sentences that this run reads, by class name."""
        return choose_descriptions(self.descriptions, self.vocabulary, self.segmenter)

    @property
    def phrases(self) -> int:
        """How many phrases and sentences the text tower reads."""
        return len(self.known.phrases) + sum(map(len, (self.sentences or {}).values()))


def run_label(job: LabelJob) -> dict[str, Any]:
    """Label every image of the source, and return the summary.

    Raises:
        ConfigError: Before any worker starts: settings that cannot work, or an output of another run.
        StorageError: Before any worker starts: no images, or an output that cannot be written.
        WeightsError: Before any worker starts: the model's weights are missing.
        ClusterError: Before any worker starts: the cluster is too small.
        OvssError: The run stopped, or its counts do not add up.
    """
    job = replace(job, segmenter=fetch_weights(job.segmenter))
    source, table = opened(job)
    options, purification = job.source, job.segmenter.purification
    summary, manifest = carry_out(
        Course(
            source=job.selection.of(source),
            run=replace(job.run, output=job.output.uri),
            pools=job.pools,
            table=table,
            model=job.segmenter.model,
            encode=encode_text,
            encoding=f"loading the model and encoding {job.phrases:,} phrases",
            encode_arguments=(job.segmenter, job.known, job.sentences),
            identity=partial(_identity, job, source),
            stages=partial(stages_of, job),
            details={
                "vocabulary": job.vocabulary.name,
                "segmenter": job.segmenter.to_dict(),
                "part": asdict(job.part),
                **({"words": asdict(job.words)} if job.words.given else {}),
                "weights": address_of(job.segmenter.model),
                **proxy_facts(job.segmenter),
            },
            proxy=job.segmenter.proxy if job.segmenter.needs_proxy else None,
            two_stages=purification.needs_crops,
            max_bytes=options.max_bytes,
            fetch_timeout_s=options.fetch_timeout_s,
            begin=partial(write_card, schema=table.schema, vocabulary=job.vocabulary),
            words=image_words(job, source),
        )
    )
    if job.run.previews:
        with announced("drawing previews"), stopping_in_one_line():
            write_previews(job.output, source, manifest, job.vocabulary, job.run.previews)
    if job.run.report:
        with announced("writing the report"), stopping_in_one_line():
            report_afterwards(job.output)
    if job.share:
        with stopping_in_one_line():
            write_card(Folder(job.run.output), table.schema, job.vocabulary, "shard-*/labels/*.parquet")
            merge_summaries(Folder(job.run.output), job.share.jobs)
    return summary


def opened(job: LabelJob) -> tuple[Source, OutputTable]:
    """Check a job, and open its source; returns that with the table that the job writes.

    Raises:
        ConfigError, StorageError, WeightsError: As `run_label`.
    """
    asked = job.source, job.run, job.pools, job.segmenter, job.vocabulary, job.sentences, job.words
    say_once([*check_label(*asked), *check_model(job.segmenter.model, [job.known], job.sentences)])
    check_proxy(job.segmenter)
    source = open_source(job.source.place, job.source.open, job.run)
    table = job.table(source)
    if isinstance(source, WebDatasetSource):
        named = job.words.given and (TEXT if job.words.column[1] == TEXT else FIELDS)
        beside = (TEXT, FIELDS) if table.carried else (named,) if named else ()
        source.fields = replace(source.fields, beside=beside)
    return source, table


def image_words(job: LabelJob, source: Source) -> ImageWords | None:
    """Find the column of the source that holds its images' words; None where they bring none.

    Raises:
        ConfigError: There is no such column, or it holds something else.
    """
    if not job.words.given:
        return None
    flag, column = job.words.column
    return find_words(source, column, job.words.caption_column is not None, flag, job.source.fetch_timeout_s)


def carried_columns(source: Source, text: str) -> CarriedColumns:
    """Find the columns of a source that are to be carried.

    Raises:
        ConfigError: It has no such columns, or none at all.
    """
    if isinstance(source, ParquetSource):
        return CarriedColumns(source.uri, parse_columns(text, LABELS.names, source.column_type))
    if isinstance(source, FolderSource | WebDatasetSource):
        return CarriedColumns(source.uri, parse_columns(text, LABELS.names))
    raise ConfigError(
        "--carry takes columns of --parquet, and files beside images in --webdataset and folders"
    )


def encode_text(
    config: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: Mapping[str, Sequence[str]] | None,
    device: str,
) -> tuple[bytes, WeightHashes]:
    """Encode the vocabulary once for all workers; returns the encoded vocabulary as bytes and the weights' hashes."""
    clip = load_clip(config.model)
    text = encode_words(clip, config, vocabulary, descriptions, device)
    return text.to_bytes(), hash_weights(clip, config.proxy if config.needs_proxy else None)


def stages_of(job: LabelJob, plan: WorkerPlan, text: bytes) -> list[ActorStage]:
    """Return the stages of a job.

    Args:
        text: What `encode_text` returned.
    """
    arguments: dict[str, Any] = {
        "config": job.segmenter,
        "text": text,
        "device": job.pools.device,
        "torch_threads": plan.torch_threads,
        "worker_threads": plan.worker_threads,
    }
    if own := job.own_words:
        arguments["own_words"] = own
    pictures = {"region_maps": job.source.region_maps, "images_at_once": plan.batch_size}
    if plan.finish is None:
        return [ActorStage("segment", SegmentStage, arguments | pictures, plan.propose, plan.call_rows)]
    lighter = arguments | {"torch_threads": plan.torch_threads and 1}
    return [
        ActorStage("propose", ProposeStage, arguments | pictures, plan.propose, plan.call_rows),
        ActorStage("finish", FinishStage, lighter, plan.finish, plan.call_rows),
    ]


def _identity(job: LabelJob, source: Source, hashes: WeightHashes) -> dict[str, Any]:
    """Say what decides the results: contents, not the paths of vocabulary and weights, nor speed and memory."""
    return {
        "job": "label",
        "schema": LABELS.metadata[b"ovss_schema"].decode(),
        "columns": asdict(job.columns),
        "source": source.describe(),
        **described_regions(job.source.region_maps),
        "config": job.segmenter.deciding(),
        "vocabulary": job.known.to_dict()["classes"],
        "vocabulary_hash": job.known.content_hash,
        **({"own_words": _own_words(job, own)} if (own := job.own_words) else {}),
        **hashes,
        "descriptions": job.sentences,
        "shard_size": job.run.shard_size,
        **({"shard": job.part.shard} if job.part.shard else {}),
    }


def _own_words(job: LabelJob, own: OwnWords) -> dict[str, Any]:
    """Say which words images bring along, and how they are used; what captions are searched for is in the vocabulary."""
    flag, column = job.words.column
    used = {"use": own.use, "common": own.common, "most": own.most, "templates": own.templates}
    return {"flag": flag, "column": column, **used}


def describe_result(job: LabelJob, summary: Mapping[str, Any]) -> int:
    """Print what came out, and return the exit status: 1 if not a single image could be labelled."""
    place = job.output.public_uri
    start = summary["this_start"]
    did = (
        f"this start did {start['images']:,} in {start['seconds']:.1f} s ({start['images_per_second']:.2f} images/s)"
        if start["images"]
        else "nothing was left to do"
    )
    print(
        f"{summary['images']:,} images: {summary['labelled']:,} labelled, {summary['failed']:,} failed; {did}"
    )
    print(f"labels: {place}/labels, summary: {place}/summary.json")
    if summary["failed"]:
        print(f"why images failed: {place}/{FAILED}; try them again with --retry-failed")
    if job.run.report:
        print(f"report: {place}/_report/index.html")
    if job.selection.is_partial:
        print("a part of the corpus; the same command without --limit and --sample goes on to the whole")
    if job.share:
        print(f"all jobs: {Folder(job.run.output).public_uri}/summary.json")
    if job.run.previews:
        print(f"previews: {place}/_previews/index.html")
    return 0 if summary["labelled"] else 1
