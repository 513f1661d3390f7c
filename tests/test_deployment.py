"""The container image and the Kubernetes manifest, as far as that can be said without a container tool and a cluster."""

import json
import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError, validate

from jobs.label import build_parser
from pipelines.run.capacity import Node
from pipelines.run.object_store import tightest_store
from pipelines.run.options import PoolOptions
from pipelines.run.pools import expected_flow, plan_workers

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "tests/kuberay_rayjob_schema.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def manifest() -> Any:
    return yaml.safe_load((ROOT / "rayjob.yaml").read_text())


def pods() -> list[Any]:
    cluster = manifest()["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_manifest_is_what_kuberay_asks_for_and_a_wrong_one_is_not() -> None:
    validate(manifest(), SCHEMA)
    for path, value in (
        (("spec", "entrypont"), "ovss"),
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "probe"), {}),
    ):
        wrong = deepcopy(manifest())
        place = wrong
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        with pytest.raises(ValidationError):
            validate(wrong, SCHEMA)


def test_the_manifests_command_is_one_that_ovss_takes() -> None:
    program, command, *flags = shlex.split(manifest()["spec"]["entrypoint"])
    assert (program, command) == ("ovss", "label")
    values = build_parser().parse_args(flags)
    assert (values.output, values.cluster_wait_s) == ("s3://BUCKET/labels", 1800.0)


def test_no_worker_lands_on_the_head_and_every_pod_has_probes_the_secret_and_time_to_end() -> None:
    cluster = manifest()["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    [group] = cluster["workerGroupSpecs"]
    assert group["minReplicas"] < group["maxReplicas"]
    for pod in pods():
        [container] = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "ovss-object-store"}}]
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert pod["terminationGracePeriodSeconds"] > build_parser().get_default("grace_s")
    assert "nvidia.com/gpu" in pods()[1]["containers"][0]["resources"]["limits"]


def test_object_stores_follow_the_rule_and_fit_into_the_shared_memory_of_their_pods() -> None:
    cluster = manifest()["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    stores = [
        int(part["rayStartParams"]["object-store-memory"]) for part in (cluster["headGroupSpec"], group)
    ]
    for pod, store in zip(pods(), stores, strict=True):
        sizes = {volume["name"]: volume["emptyDir"].get("sizeLimit", "") for volume in pod["volumes"]}
        assert sizes["shared-memory"].endswith("Gi")
        assert store <= int(sizes["shared-memory"].removesuffix("Gi")) << 30
    limits = pods()[1]["containers"][0]["resources"]["limits"]
    nodes = [Node(float(limits["cpu"]), float(limits["nvidia.com/gpu"]), object_store=stores[1])]
    plan = plan_workers(PoolOptions(), nodes, two_stages=True)
    for image_bytes in (50_000, 100_000, 500_000, 1_000_000):
        assert not tightest_store(expected_flow(plan, 10**7, image_bytes, 175_000), plan.pools, nodes).advice


def test_manifest_cluster_file_and_image_have_the_ray_of_the_constraints() -> None:
    assert manifest()["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    image = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"]
    assert image.startswith(f"rayproject/ray:{PINNED['ray']}-")
    installs = re.findall(r"pip install (.*?)(?:;|&&|$)", DOCKERFILE, re.M)
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)
    assert len(installs) == 3


def test_the_image_is_not_roots_and_what_it_copies_is_there_and_in_its_context() -> None:
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()
    ]
    assert {"pyproject.toml", "constraints.txt", "jobs", "pipelines", "ovss_core"} <= set(copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept
    assert all((ROOT / name).exists() for name in kept)
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last, re.M) == ["1000"]
    assert last.rindex("\nUSER") > last.rindex("\nRUN")


def test_the_image_has_the_compiler_that_triton_starts_kernels_with() -> None:
    build = pytest.importorskip("triton.runtime.build", reason="Triton is on Linux alone")
    installed = (
        (ROOT / "Dockerfile").read_text().partition("--no-install-recommends")[2].partition("\\")[0].split()
    )
    assert {"gcc", "libc6-dev"} <= set(installed)
    assert 'shutil.which("gcc")' in Path(build.__file__).read_text(), "Triton looks for another one now"


def test_the_images_dependencies_are_those_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r'python -c "(.*?)" >', DOCKERFILE)
    exec(code.replace("/tmp/requirements", str(ROOT)))
    listed = [re.split(r"[\[><=]", line)[0] for line in capsys.readouterr().out.splitlines()]
    assert "ray" in listed
    assert {name.lower().replace("_", "-") for name in listed} <= {
        n.lower().replace("_", "-") for n in PINNED
    }
