"""Weights at ``hf://``, from a server that answers as the hub does."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovss_core.errors import WeightsError
from pipelines.run.handed_weights import fetch
from pipelines.transport import stores
from tests.pipelines.hub import Hub, running_hub

FILE = "weights/clip.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("pipelines.transport.patience._FIRST_WAIT_S", 0.01)
    with running_hub(monkeypatch) as hub:
        hub.files = {FILE: random.Random(0).randbytes(3_000_000), "README.md": b"-"}
        yield hub


def downloads(hub: Hub) -> int:
    return sum("/resolve/" in path for path in hub.asked)


def test_weights_of_a_hub_are_downloaded_once_and_again_when_they_change(hub: Hub) -> None:
    path, digest = fetch(hub.uri(FILE))
    assert path.read_bytes() == hub.files[FILE]
    assert path.name == f"{digest}.safetensors"
    loaded = downloads(hub)
    assert loaded > 0
    assert fetch(hub.uri(FILE)) == (path, digest)
    assert downloads(hub) == loaded
    hub.files[FILE] = random.Random(1).randbytes(3_000_000)
    assert fetch(hub.uri(FILE))[0].read_bytes() == hub.files[FILE]
    assert path.exists()


@pytest.mark.parametrize("faults", [[500, 503, 429], [0], [500] * 5])
def test_a_hub_that_fails_for_a_while_is_asked_again(hub: Hub, faults: list[int]) -> None:
    fetch(hub.uri("README.md"))  # the repository is known now, and faults meet the listing and the file
    hub.faults = list(faults)
    assert fetch(hub.uri(FILE))[0].read_bytes() == hub.files[FILE]
    assert hub.faults == []


def test_a_transfer_that_ends_early_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 1_000_000
    with pytest.raises(WeightsError, match="cannot fetch the weights"):
        fetch(hub.uri(FILE))
    assert not list((tmp_path / "ovss/weights").iterdir())
    hub.cut = None
    assert fetch(hub.uri(FILE))[0].read_bytes() == hub.files[FILE]


@pytest.mark.parametrize(
    ("address", "faults", "told"),
    [
        ("{}/none.pt", [], "no such file.*hf://organization/repository/file"),
        ("hf://nobody/none/none.pt", [], "404.*HF_TOKEN"),
        ("{}", [], "no such file"),
        ("hf://nobody", [], "namespace/name"),
        (f"{{}}/{FILE}", [401] * 9, "401.*HF_TOKEN"),
        (f"{{}}/{FILE}", [403] * 9, "403.*HF_TOKEN"),
        (f"{{}}/{FILE}", [500] * 99, "500.*6 tries"),
    ],
)
def test_what_a_hub_refuses_is_one_line_that_says_what_to_do(
    hub: Hub, address: str, faults: list[int], told: str
) -> None:
    fetch(hub.uri("README.md"))
    hub.faults = list(faults)
    with pytest.raises(WeightsError, match=f"{told}") as caught:
        fetch(address.format(hub.uri("").rstrip("/")))
    assert "\n" not in str(caught.value)
    assert "check --pretrained" in str(caught.value)


def test_a_missing_package_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stores._open_other.cache_clear()
    registry = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, "hf", raising=False)
    without = {"class": "huggingface_hub.HfFileSystem", "err": "Install huggingface_hub to use HfFileSystem"}
    monkeypatch.setitem(registry.known_implementations, "hf", without)  # as fsspec has it without the package
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"cannot open hf://.*: Install huggingface_hub"):
        fetch(hub.uri(FILE))
