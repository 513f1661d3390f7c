"""Files of a run that somebody cut, emptied, replaced or removed, in a finished output and in an interrupted one."""

import io
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import verify
from ovss_core.errors import OvssError
from pipelines.run.runner import Job
from pipelines.run.verify import verify_output
from tests.pipelines.plain_execution import PlainExecution, rows_of, run_plain
from tests.pipelines.test_crash_points import Killed, assert_whole, make_input


def other_table() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"number": [1, 2, 3]}), stream)
    return stream.getvalue()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"something else"),
    "another object": lambda path: path.write_bytes(b'{"parts": [1], "counts": "x", "identity": 3}'),
    "another list": lambda path: path.write_bytes(b"[1, 2]"),
    "another table": lambda path: path.write_bytes(other_table()),
    "gone": lambda path: path.unlink(),
}


OFTEN = ("cut", "another table", "gone")
SOME = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES]
"""All damages; the default suite takes the three that differ most."""


class KilledLate(PlainExecution):
    """Dies when a part is finished and another begun."""

    def written(self, units: object) -> object:  # type: ignore[override]
        for row in super().written(units):  # type: ignore[arg-type]
            if self.job.output.names("_done"):
                raise Killed
            yield row


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the syncs, which only a power cut would tell."""
    monkeypatch.setattr("pipelines.transport.local._sync", lambda descriptor: None)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Path], Job]:
    """Return a function that makes a copy of an output of a kind, finished or interrupted."""
    root = tmp_path_factory.mktemp("outputs")
    jobs = {kind: make_input(kind, root / kind) for kind in ("folder", "shards")}
    for kind, build in jobs.items():
        run_plain(build(root / kind, root / f"{kind}-finished"))
        with pytest.raises(Killed):
            run_plain(build(root / kind, root / f"{kind}-interrupted"), execution=KilledLate)
        assert list((root / f"{kind}-interrupted/_fragments").rglob("*.pq"))

    def copy(kind: str, state: str, output: Path) -> Job:
        shutil.copytree(root / f"{kind}-{state}", output)
        return jobs[kind](root / kind, output)

    return copy


def state_files(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


def start(job: Job) -> str | None:
    """Start the run; return the one line with which it refused, if it did."""
    try:
        run_plain(job)
    except OvssError as error:
        return str(error)
    assert_whole(job)
    return None


@pytest.mark.parametrize("damage", SOME)
@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_any_one_file_that_is_damaged_is_made_good_without_losing_a_row(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path, kind: str, state: str, damage: str
) -> None:
    names = state_files(Path(outputs(kind, state, tmp_path / "names").output.uri))
    assert len(names) > 5
    for number, name in enumerate(names):
        job = outputs(kind, state, tmp_path / f"{number}")
        DAMAGES[damage](tmp_path / f"{number}" / name)
        assert start(job) is None, name


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_a_list_in_the_place_of_another_is_found_out(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path, state: str
) -> None:
    names = [
        name
        for name in state_files(Path(outputs("folder", state, tmp_path / "names").output.uri))
        if name.endswith((".parquet", ".pq"))
    ]
    lists = [name for name in names if name.startswith("_manifest")]
    pairs = [(name, other) for name in lists for other in names if other != name]
    assert len(pairs) > 5
    for number, (name, other) in enumerate(pairs):
        job = outputs("folder", state, output := tmp_path / f"{number}")
        shutil.copyfile(output / other, output / name)
        assert start(job) is None, (name, other)


@pytest.mark.parametrize(
    ("output", "name", "before", "after"),
    [
        ("shards finished", "_manifest/complete.json", b"a.tar", b"c.tar"),
        ("shards interrupted", "_manifest/complete.json", b"a.tar", b"c.tar"),
        ("shards interrupted", "_manifest/complete.json", b'"streamed": true', b'"streamed": false'),
        ("folder finished", "_manifest/complete.json", b'"part-00001"', b'"part-00007"'),
        ("shards finished", "_manifest/shard-00000.json", b'"0": 3', b'"2": 3'),
        ("shards finished", "_done/part-00000-00000.json", b'"labelled": 3', b'"labelled": 7'),
        ("folder finished", "_done/part-00000.json", b'"rows": 3', b'"rows": 1'),
        ("folder interrupted", "run.json", b'"job": "means"', b'"job": "beans"'),
    ],
)
def test_a_file_that_was_changed_and_is_still_sound_json_is_found_and_made_good(
    outputs: Callable[[str, str, Path], Job],
    tmp_path: Path,
    output: str,
    name: str,
    before: bytes,
    after: bytes,
) -> None:
    kind, _, state = output.partition(" ")
    job = outputs(kind, state, tmp_path / "out")
    path = tmp_path / "out" / name
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    assert any(name in problem for problem in verify_output(job.output).problems)
    assert start(job) is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_any_two_files_that_are_damaged_are_made_good_or_named(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path, kind: str, state: str, damage: str
) -> None:
    names = state_files(Path(outputs(kind, state, tmp_path / "names").output.uri))
    for number, pair in enumerate(combinations(names, 2)):
        job = outputs(kind, state, tmp_path / f"{number}")
        for name in pair:
            DAMAGES[damage](tmp_path / f"{number}" / name)
        refusal = start(job)
        if pair == ("_manifest/complete.json", "run.json"):
            assert refusal is not None
            assert "run.json" in refusal
            assert "--overwrite" in refusal
        else:
            assert refusal is None, pair
        shutil.rmtree(tmp_path / f"{number}")


@pytest.mark.parametrize("damage", ["cut", "another object"])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_output_whose_settings_nothing_tells_any_more_is_refused_in_one_line_and_kept(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path, kind: str, damage: str
) -> None:
    job = outputs(kind, "finished", tmp_path / "out")
    for name in ("run.json", "_manifest/complete.json"):
        DAMAGES[damage](tmp_path / "out" / name)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in state_files(tmp_path / "out")}
    refusal = start(job)
    assert refusal is not None
    assert "\n" not in refusal
    assert "run.json" in refusal
    assert "--overwrite" in refusal
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in state_files(tmp_path / "out")}
    run_plain(job, overwrite=True)
    assert_whole(job)


@pytest.mark.parametrize("damage", SOME)
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_verify_finds_every_damage_and_says_nothing_of_a_whole_output(
    outputs: Callable[[str, str, Path], Job],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    damage: str,
) -> None:
    job = outputs(kind, "finished", tmp_path / "out")
    assert verify.main([job.output.uri, "--content"]) == 0
    assert "6 images" in (told := capsys.readouterr().out)
    assert "5 labelled, 1 failed; everything is there" in told
    for name in state_files(tmp_path / "out"):
        whole = (tmp_path / "out" / name).read_bytes()
        DAMAGES[damage](tmp_path / "out" / name)
        assert verify.main([job.output.uri]) == 1, name
        assert Path(name).name.partition(".")[0] in capsys.readouterr().out
        (tmp_path / "out" / name).write_bytes(whole)
    assert verify.main([job.output.uri]) == 0


def test_verify_reads_everything_on_demand(outputs: Callable[[str, str, Path], Job], tmp_path: Path) -> None:
    job = outputs("folder", "finished", tmp_path / "out")
    path = tmp_path / "out/means/means-00000.parquet"
    table = pq.read_table(path)
    place = path.read_bytes().index(table["image_id"][0].as_py().encode())
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    assert verify_output(job.output).problems == []
    [problem] = verify_output(job.output, content=True).problems
    assert "means/means-00000.parquet" in problem
    assert problem.endswith("; remove _done/part-00000.json, and the same command does the part again")
    (tmp_path / "out/_done/part-00000.json").unlink()
    assert start(job) is None


def test_verify_names_what_is_no_output_or_not_finished(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(tmp_path)]) == 2
    assert "is no output of ovss" in capsys.readouterr().err
    job = outputs("shards", "interrupted", tmp_path / "out")
    assert verify.main([job.output.uri]) == 1
    assert "the run is not finished" in capsys.readouterr().out


def test_files_of_no_part_are_named_and_removed(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path
) -> None:
    job = outputs("folder", "finished", tmp_path / "out")
    shutil.copy(tmp_path / "out/means/means-00000.parquet", tmp_path / "out/means/means-00099.parquet")
    (tmp_path / "out/means/mine.parquet").write_bytes(other_table())
    [problem] = verify_output(job.output).problems
    assert problem == "means/means-00099.parquet belongs to no part of the manifest"
    (tmp_path / "out/means/mine.parquet").unlink()
    run_plain(job)
    assert_whole(job)


def test_a_damaged_list_keeps_the_rows_of_images_that_the_source_has_lost(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path
) -> None:
    job = outputs("folder", "finished", tmp_path / "out")
    shutil.copytree(job.source.uri, tmp_path / "in")
    (tmp_path / "in/000.jpg").unlink()
    (tmp_path / "out/_manifest/part-00000.pq").write_bytes(b"")
    from tests.pipelines.test_crash_points import folder_job

    moved = folder_job(tmp_path / "in", tmp_path / "out")
    run = json.loads((tmp_path / "out/run.json").read_text())
    run["identity"]["source"] = moved.source.describe()
    del run["checksum"]
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    run_plain(moved)
    assert len(rows_of(job.output, "means")) == 5
    assert verify_output(job.output, content=True).problems == []


def test_an_older_marker_without_sizes_is_checked_by_its_footer(
    outputs: Callable[[str, str, Path], Job], tmp_path: Path
) -> None:
    job = outputs("folder", "finished", tmp_path / "out")
    for path in (tmp_path / "out/_done").iterdir():
        marker = json.loads(path.read_text())
        del marker["files"], marker["checksum"]
        path.write_text(json.dumps(marker))
    run_plain(job)
    path = tmp_path / "out/means/means-00000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    run_plain(job)
    assert_whole(job)
