import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import ray

from ovss_core.clip.demo import demo_weights_path
from ovss_core.config import ModelConfig
from ovss_core.errors import WeightsError
from pipelines.label.job import run_label
from pipelines.preflight import fetch_weights
from pipelines.run import handed_weights
from pipelines.run.events import shown_by
from pipelines.run.handed_weights import HandedFile, address_of, among_machines, fetch, with_own_weights
from pipelines.storage import Folder
from tests.pipelines.kept_events import Kept
from tests.pipelines.test_label import SEGMENTER, bucket, job  # noqa: F401

ImageFolder = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ovss/weights"


def test_nothing_is_said_of_fetching_where_nothing_is_fetched(cache: Path, tmp_path: Path) -> None:
    local = tmp_path / "demo.safetensors"
    shutil.copy(demo_weights_path(), local)
    kept = Kept()
    with shown_by(kept):
        for weights in ("openai", str(local)):
            fetched = fetch_weights(replace(SEGMENTER, model=ModelConfig("demo", weights)))
            assert fetched.model.pretrained == weights
        assert kept.events == []
        fetch_weights(replace(SEGMENTER, model=ModelConfig("demo", local.as_uri())))
    assert [event.fields["step"] for event in kept.events] == [f"fetching {local.as_uri()}"] * 2


def test_an_address_is_fetched_once_and_again_when_the_file_changes(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/clip.safetensors"
    file.write_bytes(b"a" * 1000)
    path, digest = fetch(file.as_uri())
    assert (path.read_bytes(), path.name) == (b"a" * 1000, f"{digest}.safetensors")
    path.write_bytes(b"kept")  # what would be replaced if it were fetched
    assert fetch(file.as_uri())[0].read_bytes() == b"kept"
    file.write_bytes(b"b" * 2000)
    assert fetch(file.as_uri())[0].read_bytes() == b"b" * 2000
    assert not [name for name in cache.iterdir() if name.name.endswith(".part")]


def test_weights_that_cannot_be_had_are_told_in_one_line_without_secrets(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot fetch the weights .*/none\.pt.*check --pretrained"):
        with_own_weights(ModelConfig("demo", (tmp_path / "none.pt").as_uri()))
    model = ModelConfig("demo", "openai")
    assert with_own_weights(model) is model
    assert address_of(model) == "openai"


def test_a_worker_without_the_file_gets_it_with_its_settings(
    ray_session: None, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "clip.pt"
    file.write_bytes(b"weights" * 999)
    model = with_own_weights(ModelConfig("demo", str(file)))

    def read(given: ModelConfig) -> tuple[str, bytes]:
        return given.pretrained, Path(given.pretrained).read_bytes()

    other = {"env_vars": {"XDG_CACHE_HOME": str(tmp_path / "other")}}
    task = ray.remote(num_cpus=0.1)(read)
    assert ray.get(task.remote(model)) == (str(file), b"weights" * 999)
    settings = ray.put(model)
    file.unlink()
    place, data = ray.get(task.options(runtime_env=other).remote(settings))
    assert (Path(place).parent, data) == (tmp_path / "other/ovss/weights", b"weights" * 999)
    again = ray.get(task.options(runtime_env=other).remote(settings))
    assert again == (place, data)


def test_without_ray_the_path_alone_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    file = HandedFile("/models/clip.pt", "s3://models/clip.pt")
    copied = pickle.loads(pickle.dumps(file))
    assert (copied, copied.address) == ("/models/clip.pt", "s3://models/clip.pt")


def test_on_this_machine_alone_nothing_is_put_into_the_store(ray_session: None, tmp_path: Path) -> None:
    file = tmp_path / "clip.pt"
    file.write_bytes(b"only here")
    with among_machines(False):
        reference = ray.put(HandedFile(str(file)))
    assert ray.get(reference) == str(file)
    assert sha256(b"only here").hexdigest() not in {digest for digest, _ in handed_weights._handed}


def test_a_run_takes_weights_from_a_bucket_and_goes_on_with_the_same_from_a_path(
    ray_session: None,
    image_folder: ImageFolder,
    tmp_path: Path,
    cache: Path,
    bucket: tuple[str, int],  # noqa: F811
) -> None:
    Folder(bucket[0].format("models")).write("demo.safetensors", demo_weights_path().read_bytes())
    address = bucket[0].format("models/demo.safetensors")
    images, output = image_folder(4), tmp_path / "out"
    segmenter = replace(SEGMENTER, model=ModelConfig("demo", address))
    assert run_label(job(images, output, segmenter=segmenter))["labelled"] == 4
    written = (output / "run.json").read_text()
    assert json.loads(written)["starts"][0]["weights"] == "s3://corpus/models/demo.safetensors"
    assert "secret" not in written
    local = tmp_path / "demo.safetensors"
    shutil.copy(demo_weights_path(), local)
    (images / "more.jpg").write_bytes((images / "0000.jpg").read_bytes())
    segmenter = replace(SEGMENTER, model=ModelConfig("demo", str(local)))
    assert run_label(job(images, output, segmenter=segmenter))["this_start"]["images"] == 1
    assert handed_weights._handed
