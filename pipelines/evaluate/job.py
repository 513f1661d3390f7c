"""Measure labels against reference masks: a benchmark by the papers' protocols, or any two folders."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.evaluation.benchmarks import published_miou
from ovss_core.shipped_descriptions import DescriptionChoice
from ovss_core.vocabulary import Vocabulary
from pipelines.evaluate.checks import check_evaluate
from pipelines.evaluate.grid import GridBase, GridRow, list_grid
from pipelines.evaluate.options import PairOptions as PairOptions
from pipelines.evaluate.pairs import PairSource
from pipelines.evaluate.report import (
    EVALUATION,
    GRID,
    GRID_TABLE,
    grid_entries,
    grid_markdown,
    run_facts,
    score_variant,
    write_json,
)
from pipelines.evaluate.stage import STAGE, MeasureStage, Variant
from pipelines.evaluate.table import MEASUREMENT_TABLE, MEASUREMENTS
from pipelines.preflight import check_model, check_proxy, fetch_weights, say_once
from pipelines.run.lifecycle import Course, carry_out, open_source, stopping_in_one_line
from pipelines.run.options import PoolOptions, RunOptions
from pipelines.run.pools import WorkerPlan
from pipelines.run.record import proxy_facts
from pipelines.run.runner import ActorStage
from pipelines.run.sink import FAILED
from pipelines.run.weight_hashes import WeightHashes, hash_weights
from pipelines.sources.region_maps import described_regions
from pipelines.storage import Folder

SINGLE = "evaluation"
GRID_BATCH_DIVISOR, GRID_PATIENCE = 8, 4
"""A grid labels each image some forty times, so its batches are smaller and may take longer."""


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation.

    Attributes:
        vocabulary: The classes, in the order of the masks' values.
        segmenter: What decides the labels; in a grid of a benchmark only the model and memory of it apply.
        descriptions: Sentences by class name for the ambiguity step; "shipped" takes those of a shipped vocabulary.
    """

    pairs: PairOptions
    run: RunOptions
    vocabulary: Vocabulary
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    descriptions: DescriptionChoice = "shipped"
    pools: PoolOptions = field(default_factory=PoolOptions)

    def rows(self) -> list[GridRow]:
        """Return the settings to measure: those of the grid, or the one of this job."""
        if self._grid:
            return self._grid[0]
        config, benchmark = self.segmenter, self.pairs.benchmark
        published = published_miou(benchmark, config) if benchmark else None
        return [GridRow(SINGLE, "", config, self.vocabulary, published, self.descriptions)]

    @property
    def base(self) -> GridBase:
        """What the rows of a grid start from."""
        from_benchmark = self.pairs.benchmark and not self.pairs.vocabulary
        vocabulary = None if from_benchmark else self.vocabulary
        return GridBase(self.segmenter, self.pairs.benchmark, vocabulary, self.descriptions)

    @property
    def left_out(self) -> list[str]:
        """Say of what a grid does not run why."""
        return self._grid[1] if self._grid else []

    @cached_property
    def _grid(self) -> tuple[list[GridRow], list[str]] | None:
        """The rows of the grid, each of which is checked, and what it does not run; None without one."""
        return list_grid(self.base, self.pairs.grid) if self.pairs.grid else None


def run_evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Measure every pair, and return what `evaluation.json` (or `grid.json`) holds.

    Raises:
        ConfigError: Before any worker starts: settings that cannot work, or an output of another run.
        StorageError: Before any worker starts: no pairs, or an output that cannot be written.
        WeightsError: Before any worker starts: the model's weights are missing.
        ClusterError: Before any worker starts: the cluster is too small.
        OvssError: The run stopped, or its counts do not add up.
    """
    job = replace(job, segmenter=fetch_weights(job.segmenter))
    asked = job.pairs, job.run, job.pools, job.segmenter, job.vocabulary, job.descriptions
    warnings, rows, pairs = check_evaluate(*asked), job.rows(), job.pairs
    vocabularies = [row.vocabulary for row in rows]
    warnings += check_model(job.segmenter.model, vocabularies, *(row.sentences for row in rows))
    say_once(warnings)
    segmenter = next((row.config for row in rows if row.config.needs_proxy), job.segmenter)
    check_proxy(segmenter)
    source = open_source(pairs.images or pairs.root, partial(pairs.open, job.vocabulary), job.run)
    summary, _ = carry_out(
        Course(
            source=source,
            run=job.run,
            pools=job.pools,
            table=MEASUREMENT_TABLE,
            model=rows[0].config.model,
            encode=encode_texts,
            encoding=f"loading the model and encoding the words of {len(rows):,} settings",
            encode_arguments=(rows,),
            identity=partial(_identity, job, source, rows),
            stages=partial(_stages, job, source),
            details=proxy_facts(segmenter),
            proxy=segmenter.proxy if segmenter.needs_proxy else None,
            adjust=partial(_smaller_batches, job),
            max_bytes=pairs.max_bytes,
            fetch_timeout_s=pairs.fetch_timeout_s,
            patience=GRID_PATIENCE if pairs.grid else 1,
            reports=(EVALUATION, GRID, GRID_TABLE),
        )
    )
    with stopping_in_one_line():
        return _report(job, Folder(job.run.output), rows, summary)


def encode_texts(rows: Sequence[GridRow], device: str) -> tuple[list[Variant], WeightHashes]:
    """Encode the vocabulary of every row, each once; returns the variants and the weights' hashes."""
    clip = load_clip(rows[0].config.model)
    encoded: dict[tuple[str, str | None, bool, bool], bytes] = {}
    variants = []
    for row in rows:
        purification = row.config.purification
        sentences, null = row.sentences, purification.needs_distractors
        key = row.vocabulary.content_hash, _digest(sentences), null, purification.in_rounds
        if key not in encoded:
            encoded[key] = encode_words(clip, row.config, row.vocabulary, sentences, device).to_bytes()
        variants.append(Variant(row.key, row.config, encoded[key]))
    proxy = next((row.config.proxy for row in rows if row.config.needs_proxy), None)
    return variants, hash_weights(clip, proxy)


def _stages(
    job: EvaluateJob, source: PairSource, plan: WorkerPlan, variants: Sequence[Variant]
) -> list[ActorStage]:
    arguments = {
        "variants": list(variants),
        "masks": source.masks,
        "conversion": source.conversion,
        "oracle": job.pairs.oracle,
        "region_maps": job.pairs.region_maps,
        "device": job.pools.device,
        "torch_threads": plan.torch_threads,
    }
    return [ActorStage(STAGE, MeasureStage, arguments, plan.propose, plan.batch_size)]


def _smaller_batches(job: EvaluateJob, plan: WorkerPlan) -> WorkerPlan:
    if not job.pairs.grid or job.pools.batch_size is not None:
        return plan
    return replace(plan, batch_size=max(1, plan.batch_size // GRID_BATCH_DIVISOR))


def _report(
    job: EvaluateJob, output: Folder, rows: Sequence[GridRow], summary: Mapping[str, Any]
) -> dict[str, Any]:
    facts = {"benchmark": job.pairs.benchmark, **run_facts(output, summary)}
    statistics = summary["statistics"]
    if job.pairs.grid:
        entries = grid_entries(rows, statistics)
        report: dict[str, Any] = {**facts, "rows": entries, "left_out": job.left_out}
        write_json(output, GRID, report)
        output.write(GRID_TABLE, grid_markdown(entries, job.left_out).encode())
        return report
    [row] = rows
    published = None if row.published is None else row.published / 100
    report = {
        **score_variant(statistics.get(row.key, {}), row.config, row.vocabulary),
        "published_miou": published,
        **facts,
    }
    write_json(output, EVALUATION, report)
    return report


def _identity(
    job: EvaluateJob, source: PairSource, rows: Sequence[GridRow], hashes: WeightHashes
) -> dict[str, Any]:
    return {
        "job": "evaluate",
        "schema": MEASUREMENTS.metadata[b"ovss_schema"].decode(),
        "source": source.describe(),
        **described_regions(job.pairs.region_maps),
        "variants": {row.key: _deciding(row) for row in rows},
        **hashes,
        "descriptions": _described(job, rows),
        "oracle": job.pairs.oracle,
        "shard_size": job.run.shard_size,
    }


def _described(job: EvaluateJob, rows: Sequence[GridRow]) -> Any:
    """Return the sentences of the one row, or a digest of those of each row of a grid."""
    return {row.key: _digest(row.sentences) for row in rows} if job.pairs.grid else rows[0].sentences


def _digest(sentences: Mapping[str, Sequence[str]] | None) -> str | None:
    if sentences is None:
        return None
    return hashlib.sha256(json.dumps(sentences, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _deciding(row: GridRow) -> dict[str, Any]:
    """Return the settings that decide a row's figures; those of speed and memory are left out."""
    return {"config": row.config.deciding(), "vocabulary_hash": row.vocabulary.content_hash}


def describe_result(job: EvaluateJob, report: Mapping[str, Any]) -> int:
    """Print what came out, and return the exit status: 1 if not a single pair could be measured."""
    place = Folder(job.run.output).public_uri
    print(f"{report['images']:,} images: {report['measured']:,} measured, {report['failed']:,} failed")
    if job.pairs.grid:
        print(grid_markdown(report["rows"], report.get("left_out", ())))
        print(f"report: {place}/{GRID}, {place}/{GRID_TABLE}")
    else:
        print(_headline(report))
        print(f"report: {place}/{EVALUATION}")
    for warning in (report["rows"][0] if job.pairs.grid else report)["warnings"]:
        print(f"warning: {warning}")
    if report["failed"]:
        print(f"why images failed: {place}/{FAILED}; try them again with --retry-failed")
    return 0 if report["measured"] else 1


def _headline(report: Mapping[str, Any]) -> str:
    named = {
        "mIoU": report["miou"],
        "published with ViT-B/16": report["published_miou"],
        "pixel accuracy": report["pixel_accuracy"],
        "boundary mIoU": report["boundary_miou"],
        "oracle mIoU": (report["oracle"] or {}).get("miou"),
        "purified vocabulary F1": (report["purified_vocabulary"] or {}).get("f1"),
    }
    scores = [f"{name} {100 * value:.2f} %" for name, value in named.items() if value is not None]
    return ", ".join(scores) or "no scores"
