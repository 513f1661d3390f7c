"""Where workers compute, and on how many threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.run.compute import pick_device

_COUNT_THREADS = """
import os, threading, torch
from pipelines.run.compute import use_threads

def report_helpers(count):
    use_threads(count)
    before = len(os.listdir("/proc/self/task"))
    torch.rand(512, 512) @ torch.rand(512, 512)
    print(len(os.listdir("/proc/self/task")) - before)

report_helpers(1)
worker = threading.Thread(target=report_helpers, args=(2,))
worker.start()
worker.join()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux's /proc")
def test_the_thread_that_computes_gets_helpers_and_the_one_that_constructs_gets_none() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # what Ray gives a worker of one CPU or less
    probe = [sys.executable, "-c", _COUNT_THREADS]
    output = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["0", "1"]


def test_a_named_device_is_taken_and_auto_finds_the_gpu_or_the_cpu() -> None:
    assert pick_device("cuda:3") == "cuda:3"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
