"""A process that is killed outright while it lists a large source, and the start after it."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.benchmark.scale import SHARD_SIZE, SyntheticSource
from pipelines.run.manifest import prepare_manifest, read_manifest
from pipelines.run.manifest_files import COMPLETE, read_part
from pipelines.storage import Folder

COUNT = 200_000
_LIST = """
import sys, time
from pipelines.benchmark.scale import SHARD_SIZE, SyntheticSource
from pipelines.run.manifest import prepare_manifest
from pipelines.storage import Folder

class Held(SyntheticSource):
    def records(self, skip=()):
        for number, record in enumerate(super().records()):
            if number == int(sys.argv[3]):
                print("there", flush=True)
                time.sleep(600)
            yield record

prepare_manifest(Folder(sys.argv[1]), Held(int(sys.argv[2])), SHARD_SIZE)
"""


def list_and_kill(place: Path, count: int, at: int) -> None:
    """List in a process of its own, and kill it when it has listed so many images; the last lists are on their way then."""
    command = [sys.executable, "-c", _LIST, str(place), str(count), str(at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()


def ids_listed(output: Folder) -> list[str]:
    """Return every id of the manifest, in order."""
    manifest = read_manifest(output)
    return [i for part in manifest.parts for i in read_part(output, part)["image_id"].to_pylist()]


@pytest.mark.slow
def test_a_listing_that_is_killed_is_made_anew_without_losing_or_doubling_an_image(tmp_path: Path) -> None:
    """Kill the first listing early, in the middle and late, and then one that appends to a whole manifest."""
    place = tmp_path / "out"
    output = Folder(str(place))
    for share in (0.05, 0.5, 0.95):
        list_and_kill(place, COUNT, int(COUNT * share))
        assert output.names("_manifest")
        assert not output.exists(COMPLETE)
    expected = [record.image_id for record in SyntheticSource(COUNT).records()]
    assert prepare_manifest(output, SyntheticSource(COUNT), SHARD_SIZE).images == COUNT
    assert ids_listed(output) == expected
    lists = -(-COUNT // SHARD_SIZE)
    assert len(output.names("_manifest")) == lists + 1
    assert not [path for path in (place / "_manifest").iterdir() if path.name.startswith(".")]

    more = COUNT + COUNT // 2
    list_and_kill(place, more, COUNT + COUNT // 4)
    assert len(output.names("_manifest")) > lists + 1
    assert ids_listed(output) == expected
    appended = prepare_manifest(output, SyntheticSource(more), SHARD_SIZE)
    assert (appended.images, appended.appended) == (more, COUNT // 2)
    assert ids_listed(output) == [record.image_id for record in SyntheticSource(more).records()]
