import json
import shlex
from pathlib import Path

import ray
import yaml
from jsonschema import validate

PATH = Path(__file__).parent.parent / "cluster.yaml"


def test_the_cluster_file_is_what_rays_schema_asks_for() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    validate(yaml.safe_load(PATH.read_text()), schema)


def test_no_worker_lands_on_the_head_and_every_file_it_copies_is_there() -> None:
    config = yaml.safe_load(PATH.read_text())
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert all((PATH.parent / source).is_file() for source in config["file_mounts"].values())


def test_the_setup_command_lists_the_dependencies(tmp_path: Path) -> None:
    command = yaml.safe_load(PATH.read_text())["setup_commands"][0]
    code = shlex.split(command)[2].replace("/home/ray/ovss-requirements", str(PATH.parent))
    printed: list[str] = []
    exec(code, {"print": printed.append})
    assert any(line.startswith("ray[") for line in printed[0].splitlines())
