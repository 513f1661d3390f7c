"""Nodes that come and go; starts clusters of its own, so it runs in a process of its own."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

from tests.pipelines.mean_color import MeanColor

ImageFolder = Callable[..., Path]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_in_the_middle_costs_no_image(image_folder: ImageFolder, tmp_path: Path) -> None:
    images, output = image_folder(80), tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipelines.test_nodes", "lose", str(images), str(output)]
    subprocess.run(command, check=True, timeout=500)
    ids = [
        image_id
        for file in sorted((output / "means").iterdir())
        for image_id in pq.read_table(file)["image_id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 80
    assert not (output / "_failures").exists()


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_gpus_that_join_late_are_planned_on_and_without_waiting_the_job_is_refused(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(12), tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipelines.test_nodes", "join", str(images), str(output)]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "the cluster lacks a node with CPUs for workers: it has 1 node with 0 CPUs and 0 GPUs; give --cluster-wait-s "
        "900 to wait for nodes to join, or start worker nodes",
        "12 labelled",
    ]
    start = json.loads((output / "run.json").read_text())["starts"][0]
    assert (start["pools"]["propose"]["actors"], start["pools"]["propose"]["num_gpus"]) == (4, 0.5)
    assert sorted(node["gpus"] for node in start["cluster"]) == [0.0, 1.0, 1.0]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_pool_takes_up_nodes_that_join_and_outlives_one_that_goes(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    images, output = image_folder(1500), tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipelines.test_nodes", "grow", str(images), str(output)]
    subprocess.run(command, check=True, timeout=500)
    rows = [row for file in sorted((output / "means").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == len({row["image_id"] for row in rows}) == 1500
    assert not (output / "_failures").exists()
    told = json.loads((tmp_path / "out.json").read_text())
    worked = Counter(row["png"].decode() for row in rows)
    assert set(worked) == {told["first"], told["joined"]}
    assert told["speed of both"] > 1.5 * told["speed of one"], told


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_ledger_is_on_the_drivers_node_though_that_has_no_cpu() -> None:
    command = [sys.executable, "-m", "tests.pipelines.test_nodes", "note", "", ""]
    done = subprocess.run(command, check=True, timeout=500, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "6 of 6 on the head"


class SlowOnNode(MeanColor):
    """Takes a tenth of a second an image, and writes down on which node."""

    def work(self, items: Sequence[tuple[str, bytes]]) -> list[dict[str, object]]:
        import ray

        node = ray.get_runtime_context().get_node_id()[:8].encode()
        return [row | {"png": node} for row in super().work(items)]


def grow(images: str, output: str) -> None:
    """Begin on one worker node with a pool of 1 to 4, add a node, and later remove the first one."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.run.capacity import Pool
    from pipelines.run.execution import ActorStage
    from pipelines.run.manifest import prepare_manifest
    from pipelines.run.progress import ProgressReport
    from pipelines.run.runner import run_job
    from pipelines.sources import FolderSource
    from pipelines.storage import Folder
    from tests.pipelines.mean_color import mean_job

    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **store})
    first = cluster.add_node(num_cpus=2, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    source = FolderSource(images)
    manifest = prepare_manifest(Folder(output), source, 20)
    stage = ActorStage("mean", SlowOnNode, {"seconds": 0.1}, Pool("mean", 1, 0.5, most=8), 4)
    job = replace(mean_job(output, source), stages=[stage], fragment_rows=16)
    told: dict[str, object] = {"first": first.node_id[:8]}
    with ProgressReport(manifest.images) as progress:
        running = Thread(target=run_job, args=(job, manifest, progress))
        running.start()  # nodes are started from the main thread only

        def speed_at(images: int) -> float:
            """Return images a second over the last 8 seconds before so many were done."""
            seen: list[tuple[float, int]] = []
            while progress.done < images:
                seen.append((time.monotonic(), progress.done))
                time.sleep(0.1)
            now = time.monotonic()
            then, done = next(entry for entry in seen if now - entry[0] <= 8.0)
            return (progress.done - done) / (now - then)

        told["speed of one"] = speed_at(400)
        joined = cluster.add_node(num_cpus=2, **store)
        told["joined"] = joined.node_id[:8]
        told["speed of both"] = speed_at(1200)
        cluster.remove_node(first, allow_graceful=False)
        running.join()
    Path(f"{output}.json").write_text(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


def join(images: str, output: str) -> None:
    """Label on a head without CPUs while two nodes with GPUs (by name: none is needed) are still to join."""
    from ray.cluster_utils import Cluster

    from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig, WindowConfig
    from ovss_core.errors import ClusterError
    from ovss_core.vocabulary import Vocabulary
    from pipelines.label.job import LabelJob, run_label
    from pipelines.run import awaiting
    from pipelines.run.options import RunOptions, SourceOptions

    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    segmenter = SegmenterConfig(
        model=ModelConfig("demo", "random"),
        windows=WindowConfig(size=32, stride=32, short_side=32),
        purification=PurificationConfig(method="none"),
    )
    run = RunOptions(output, address=cluster.address)
    job = LabelJob(SourceOptions(images=images), run, Vocabulary.from_names(["cat", "dog"]), segmenter)
    try:
        run_label(job)
    except ClusterError as error:
        print(error)
    awaiting.SETTLED_S = 8.0

    def label() -> None:
        summary = run_label(replace(job, run=replace(run, cluster_wait_s=240.0)))
        print(f"{summary['labelled']} labelled")

    labelling = Thread(target=label)
    labelling.start()
    for _ in range(2):  # nodes are started from the main thread only
        time.sleep(4.0)
        cluster.add_node(num_cpus=1, num_gpus=1, **store)
    labelling.join()
    cluster.shutdown()


def note(images: str, output: str) -> None:
    """Start ledgers on a head without CPUs beside a worker node, and say how many of them are there."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.run.ledger import AttemptLedger

    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    cluster.add_node(num_cpus=2, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    ledgers = [AttemptLedger.start() for _ in range(6)]
    for ledger in ledgers:
        ledger.finished("none")
    places = [actor["Address"]["NodeID"] for actor in ray._private.state.actors().values()]
    print(f"{places.count(cluster.head_node.node_id)} of {len(places)} on the head")
    ray.shutdown()
    cluster.shutdown()


def lose(images: str, output: str) -> None:
    """Run a job on a head without CPUs and two workers, one of which is removed half way."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.run.manifest import prepare_manifest
    from pipelines.run.progress import ProgressReport
    from pipelines.run.runner import run_job
    from pipelines.sources import FolderSource
    from pipelines.storage import Folder
    from tests.pipelines.mean_color import mean_job

    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **store})
    nodes = [cluster.add_node(num_cpus=2, **store) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    source = FolderSource(images)
    manifest = prepare_manifest(Folder(output), source, 20)
    with ProgressReport(manifest.images) as progress:

        def remove_half_way() -> None:
            while progress.done < 20:
                time.sleep(0.1)
            cluster.remove_node(nodes[1], allow_graceful=False)

        remover = Thread(target=remove_half_way)
        remover.start()
        run_job(mean_job(output, source, actors=2, seconds=0.2), manifest, progress)
        remover.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    {"lose": lose, "join": join, "grow": grow, "note": note}[sys.argv[1]](*sys.argv[2:])
