"""The dashboard's queries, asked of a Prometheus that watches a run: `apt-get install prometheus`, then `make test-slow`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import metrics
from tests.conftest import encode_image

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on the path"),
]
NOTHING_HERE = {"GPU memory"}
"""What no run on CPUs can show."""
FILLED = {"$session": ".*", "$__rate_interval": "20s", "$__range": "10m"}


def unused_port() -> int:
    """Return a port that nobody has, for a process that is started at once."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


class Watched:
    """A Ray whose metrics a Prometheus of its own collects every second; both are other processes."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        gcs, exported, self.port = unused_port(), unused_port(), unused_port()
        self.address = f"127.0.0.1:{gcs}"
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={gcs}"]
        ports = [f"--metrics-export-port={exported}", f"--dashboard-port={unused_port()}"]
        here = ["--node-ip-address=127.0.0.1", "--num-cpus=4"]
        targets = [{"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{exported}"]}]}]
        settings = folder / "prometheus.yml"  # JSON is YAML
        settings.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": targets}))
        prometheus = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "watched.log").open("w") as log:
            self._processes = [
                subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                for command in (
                    [*ray, *ports, *here],
                    [*prometheus, f"--web.listen-address=127.0.0.1:{self.port}"],
                )
            ]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series of a query that are numbers.

        Raises:
            HTTPError: Prometheus does not understand it.
        """
        for name, value in FILLED.items():
            query = query.replace(name, value)
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        answer = json.load(urllib.request.urlopen(address, timeout=30))
        return [series for series in answer["data"]["result"] if series["value"][1] != "NaN"]

    def wait(self) -> None:
        """Wait until Prometheus has heard from Ray."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                if self.ask("up == 1"):
                    return
            time.sleep(0.5)
        raise TimeoutError("Ray or Prometheus did not start")

    def stop(self) -> None:
        """End both, and all that Ray has started."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


@pytest.fixture
def environment() -> dict[str, str]:
    # the run joins without the token of whoever started Ray, and counts are exported every second
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_metrics_report_interval_ms": "1000"}


@pytest.fixture
def watched(tmp_path: Path, environment: dict[str, str]) -> Iterator[Watched]:
    watched = Watched(tmp_path, environment)
    try:
        watched.wait()
        yield watched
    finally:
        watched.stop()


def test_every_panel_shows_something_of_a_run(
    watched: Watched, environment: dict[str, str], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        (images / f"{number}.jpg").write_bytes(encode_image(number, 240, 320))
    (images / "broken.jpg").write_bytes(b"no picture")
    words = ["--vocabulary", "demo", "--model", "demo"]
    command = [sys.executable, "-m", "jobs.cli", "label", "--address", watched.address, *words]
    places = ["--images", str(images), "--output", str(tmp_path / "out")]
    job = subprocess.Popen([*command, *places], env=environment, stderr=subprocess.DEVNULL)
    panels = json.loads(metrics.DASHBOARD.read_text())["panels"]
    asked = {(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    end = None
    while end is None or time.monotonic() < end:
        time.sleep(2)
        for key in asked:
            if series := watched.ask(key[1]):
                found[key] = series
        if end is None and job.poll() is not None:
            end = time.monotonic() + 6  # what was counted last is exported and collected
    assert job.returncode == 0
    assert {title for title, _ in asked - found.keys()} == NOTHING_HERE
    last = {title: series for (title, _), series in found.items()}
    assert [series["value"][1] for series in last["Images stored"]] == ["61"]
    # a counter's first value is no increase: one failure of its kind must be seen all the same
    shown = {series["metric"]["reason"]: series["value"][1] for series in last["Failures by reason"]}
    assert shown == {"decode: ImageError": "1"}
