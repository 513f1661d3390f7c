"""How the tests are spread over processes: `make test` takes longer where it goes wrong, and nothing else shows it."""

import os

import pytest
import ray
import torch

from tests.conftest import LONGEST, ONE_RAY, OneRayScheduling, piece_of, pytest_xdist_make_scheduler
from tests.forked_workers import draw_ids


def test_what_uses_the_ray_is_one_piece_and_every_other_file_its_own(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    shared = ["ray_session" in getattr(item, "fixturenames", ()) for item in items]
    pieces = [piece_of(item.nodeid) for item in items]
    assert [piece == ONE_RAY for piece in pieces] == shared
    files = [item.nodeid.partition("::")[0] for item in items]
    assert [piece for piece in pieces if piece != ONE_RAY] == [
        file for file, ray in zip(files, shared, strict=True) if not ray
    ]
    assert shared == sorted(shared, reverse=True), "the longest piece comes first"


def test_the_longest_files_exist_and_come_next(request: pytest.FixtureRequest) -> None:
    assert all((request.config.rootpath / file).is_file() for file in LONGEST)
    found = list(dict.fromkeys(piece_of(item.nodeid) for item in request.session.items))
    longest = [file for file in LONGEST if file in found]
    assert [piece for piece in found if piece != ONE_RAY][: len(longest)] == longest


def test_names_of_tests_and_other_parameters_are_no_ray() -> None:
    for name in ("tests/a.py::test_one-ray", "tests/a.py::test_b", "tests/a.py::test_b[ray]"):
        assert piece_of(name) == "tests/a.py"
    assert {
        piece_of(f"tests/{file}.py::test[{more}]") for file in "ab" for more in (ONE_RAY, f"{ONE_RAY}-x")
    } == {ONE_RAY}


def test_groups_are_kept_by_our_scheduler_and_other_ways_are_xdists() -> None:
    assert OneRayScheduling._split_scope(OneRayScheduling.__new__(OneRayScheduling), "a[one-ray]") == ONE_RAY
    for way in ("load", "no", "worksteal"):
        assert pytest_xdist_make_scheduler(_Asked(way), None) is None  # type: ignore[arg-type]


class _Asked:
    """The one answer that the hook asks a configuration for."""

    def __init__(self, way: str) -> None:
        self.getvalue = {"dist": way}.__getitem__


def test_tests_compute_with_one_thread() -> None:
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert torch.get_num_threads() == 1


def test_forked_workers_draw_different_ids(ray_session: None) -> None:
    """Two that start at once with one id for their first object end one of them, and Ray waits a minute for it."""

    @ray.remote(num_cpus=0.1)
    class Drawing:
        def draw(self) -> list[str]:
            return draw_ids(64)

    actors = [Drawing.remote() for _ in range(3)]  # type: ignore[attr-defined]
    drawn = [ray.get(actor.draw.remote()) for actor in actors]
    assert len({one for ids in drawn for one in ids}) == 3 * 64
