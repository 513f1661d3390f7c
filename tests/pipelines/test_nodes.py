"""Nodes that come and go; starts clusters of its own, so it runs in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

ImageFolder = Callable[..., Path]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_in_the_middle_costs_no_image(image_folder: ImageFolder, tmp_path: Path) -> None:
    images, output = image_folder(80), tmp_path / "out"
    command = [sys.executable, "-m", "tests.pipelines.test_nodes", str(images), str(output)]
    subprocess.run(command, check=True, timeout=500)
    ids = [
        image_id
        for file in sorted((output / "means").iterdir())
        for image_id in pq.read_table(file)["image_id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 80
    assert not (output / "failures").exists()


def main() -> None:
    """Run a job on a head without CPUs and two workers, one of which is removed half way."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.manifest import prepare_manifest
    from pipelines.progress import ProgressReport
    from pipelines.runner import run_job
    from pipelines.sources import FolderSource
    from pipelines.storage import Folder
    from tests.pipelines.mean_colour import mean_job

    images, output = sys.argv[1:]
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick, **store})
    nodes = [cluster.add_node(num_cpus=2, **store) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    source = FolderSource(images)
    manifest = prepare_manifest(Folder(output), source, 20)
    with ProgressReport(manifest.images, interval_s=2.0) as progress:

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
    main()
