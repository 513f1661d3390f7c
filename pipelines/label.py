"""Label a corpus: what the job is made of, the checks before it starts, and its one call."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ovss_core.config import SegmenterConfig
from ovss_core.encoders.checkpoints import load_clip
from ovss_core.errors import StorageError
from ovss_core.segmenter import classify_text
from ovss_core.vocabulary import Vocabulary
from pipelines.capacity import cluster_nodes, wait_for_capacity
from pipelines.cluster import connected, run_near_gpu
from pipelines.label_rows import LABEL_TABLE
from pipelines.manifest import Manifest, prepare_manifest
from pipelines.options import PoolOptions, RunOptions, SourceOptions
from pipelines.pools import WorkerPlan, plan_workers
from pipelines.preflight import check_label, check_model, say_once
from pipelines.preflight import read_descriptions as read_descriptions
from pipelines.previews import write_previews
from pipelines.progress import ProgressReport
from pipelines.record import continues_run, remove_run, write_run
from pipelines.runner import ActorStage, Job, run_job
from pipelines.schema import LABELS
from pipelines.sink import reopen_part
from pipelines.sources import ParquetSource, Source
from pipelines.stages import ProposeStage, ResolveStage, SegmentStage
from pipelines.storage import Folder
from pipelines.summary import read_markers, write_summary


@dataclass(frozen=True)
class LabelJob:
    """A labelling run.

    Attributes:
        vocabulary: The classes.
        descriptions: Sentences by class name for the ambiguity step.
        segmenter: What decides the masks.
    """

    source: SourceOptions
    run: RunOptions
    vocabulary: Vocabulary
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    descriptions: Mapping[str, list[str]] | None = None
    pools: PoolOptions = field(default_factory=PoolOptions)


def run_label(job: LabelJob) -> dict[str, Any]:
    """Label every image of the source, and return the summary.

    Raises:
        ConfigError: Before any worker starts: settings that cannot work, or an output of another run.
        StorageError: Before any worker starts: no images, or an output that cannot be written.
        WeightsError: Before any worker starts: the model's weights are missing.
        ClusterError: Before any worker starts: the cluster is too small.
        OvssError: The run stopped, or its counts do not add up.
    """
    asked = job.source, job.run, job.pools, job.segmenter, job.vocabulary, job.descriptions
    say_once([*check_label(*asked), *check_model(job.segmenter.model, [job.vocabulary], job.descriptions)])
    source, output = job.source.open(), Folder(job.run.output)
    if next(iter(source.records()), None) is None:
        raise StorageError(
            f"no image in {source.describe()['uri']}; check the path and the files' extensions"
        )
    output.check_writable()
    with connected(job.run.address):
        use_gpu = job.pools.num_gpus != 0 and not job.pools.device.startswith("cpu")
        text, weights_hash = run_near_gpu(
            encode_text, job.segmenter, job.vocabulary, job.descriptions, use_gpu=use_gpu
        )
        identity = _identity(job, source, weights_hash)
        replaces = job.run.overwrite or not continues_run(output, identity)
        purification = job.segmenter.purification
        two_stages = purification.method == "freecp" and purification.ambiguity
        plan = plan_workers(job.pools, cluster_nodes(), two_stages)
        wait_for_capacity(plan.pools, job.run.cluster_wait_s)
        if replaces:
            remove_run(output, LABEL_TABLE.name)
        write_run(output, identity, _details(job, plan))
        manifest = prepare_manifest(output, source, job.run.shard_size)
        return _label(job, source, manifest, plan, text)


def encode_text(
    config: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: Mapping[str, list[str]] | None,
    device: str,
) -> tuple[bytes, str]:
    """Encode the vocabulary once for all workers; returns the classifier's bytes and the weights' hash."""
    text = classify_text(load_clip(config.model), config, vocabulary, descriptions, device)
    return text.to_bytes(), text.weights_hash


def _label(
    job: LabelJob, source: Source, manifest: Manifest, plan: WorkerPlan, text: bytes
) -> dict[str, Any]:
    output = Folder(job.run.output)
    if job.run.retry_failed:
        for marker in list(read_markers(output, manifest)):
            if marker["failed"]:
                reopen_part(output, marker["part"], LABEL_TABLE)
    work = Job(
        output,
        source,
        _stages(job, plan, text),
        LABEL_TABLE,
        image_column=source.image_column if isinstance(source, ParquetSource) else None,
        max_bytes=job.source.max_bytes,
        fragment_rows=2 * plan.batch_size,
        no_progress_s=job.run.no_progress_s,
    )
    start = time.monotonic()
    with ProgressReport(manifest.images, interval_s=job.run.progress_s) as progress:
        run_job(work, manifest, progress)
    seconds = time.monotonic() - start
    speed = progress.fresh / seconds if seconds else 0.0
    summary = write_summary(
        output,
        manifest,
        {"images": progress.fresh, "seconds": round(seconds, 3), "images_per_second": round(speed, 3)},
    )
    if job.run.previews:
        write_previews(output, source, manifest, job.vocabulary, job.run.previews)
    return summary


def _stages(job: LabelJob, plan: WorkerPlan, text: bytes) -> list[ActorStage]:
    arguments = {
        "config": job.segmenter,
        "text": text,
        "device": job.pools.device,
        "torch_threads": plan.torch_threads,
        "worker_threads": plan.worker_threads,
    }
    if plan.resolve is None:
        return [ActorStage("segment", SegmentStage, arguments, plan.propose, plan.batch_size)]
    lighter = arguments | {"torch_threads": plan.torch_threads and 1}
    return [
        ActorStage("propose", ProposeStage, arguments, plan.propose, plan.batch_size),
        ActorStage("resolve", ResolveStage, lighter, plan.resolve, plan.batch_size),
    ]


def _identity(job: LabelJob, source: Source, weights_hash: str) -> dict[str, Any]:
    """Say what decides the results: contents, not the paths of vocabulary and weights, nor speed and memory."""
    config = job.segmenter.to_dict()
    config.pop("window_batch")
    config["purification"].pop("phrase_chunk")
    config["model"].pop("pretrained")
    return {
        "job": "label",
        "schema": LABELS.metadata[b"ovss_schema"].decode(),
        "source": source.describe(),
        "config": config,
        "vocabulary": job.vocabulary.to_dict()["classes"],
        "vocabulary_hash": job.vocabulary.content_hash,
        "weights_hash": weights_hash,
        "descriptions": job.descriptions,
        "shard_size": job.run.shard_size,
    }


def _details(job: LabelJob, plan: WorkerPlan) -> dict[str, Any]:
    return {
        "vocabulary": job.vocabulary.name,
        "segmenter": job.segmenter.to_dict(),
        "pools": asdict(plan),
        "cluster": [asdict(node) for node in cluster_nodes()],
        "run": {**asdict(job.run), "output": Folder(job.run.output).public_uri, "address": None},
    }


def describe_result(job: LabelJob, summary: Mapping[str, Any]) -> int:
    """Print what came out, and return the exit status: 1 if not a single image could be labelled."""
    place = Folder(job.run.output).public_uri
    start = summary["this_start"]
    print(
        f"{summary['images']:,} images: {summary['labelled']:,} labelled, {summary['failed']:,} failed; this start did "
        f"{start['images']:,} in {start['seconds']:.1f} s ({start['images_per_second']:.2f} images/s)"
    )
    print(f"labels: {place}/labels, summary: {place}/summary.json")
    if summary["failed"]:
        print(f"why images failed: {place}/failures; try them again with --retry-failed")
    if job.run.previews:
        print(f"previews: {place}/previews/index.html")
    return 0 if summary["labelled"] else 1
