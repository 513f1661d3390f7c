"""Labels that lie in an object store: what is made of them there is what is made of them on a disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines.derive.export import Export
from pipelines.derive.options import ExportFormat, ExportOptions, SelectOptions
from pipelines.derive.selection import Selection
from pipelines.label.reader import open_labels
from pipelines.label.report.page import write_report
from pipelines.storage import Folder, walk
from tests.derive.plain import run_here, write_labels
from tests.pipelines.stores import Store, running_store
from tests.pipelines.test_dataset_card import segmentation
from tests.pipelines.test_shards import images

IMAGES = images(6)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as running:
        yield running


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """The same labels on a disk and in the store."""
    root = tmp_path_factory.mktemp("labels")
    for name, data in IMAGES.items():
        (root / name).write_bytes(data)
    results = {name: segmentation(number) for number, name in enumerate(IMAGES)}
    write_labels(root / "labels", results, addresses={name: str(root / name) for name in IMAGES})
    for path in (root / "labels").rglob("*"):
        if path.is_file():
            Folder(store.uri("/labels")).write(str(path.relative_to(root / "labels")), path.read_bytes())
    return root / "labels"


def files(place: str) -> dict[str, bytes]:
    folder = Folder(place)
    names = [name for name, _ in walk(folder.filesystem, folder.path)]
    return {name: folder.read(name) for name in names if name != "run.json"}


@pytest.mark.parametrize("form", get_args(ExportFormat))
def test_an_export_into_a_store_is_that_onto_a_disk(
    labels: Path, store: Store, tmp_path: Path, form: Any
) -> None:
    task = Export(ExportOptions(form, val_share=0.4))
    here = run_here(labels, task, tmp_path / "out")
    there = run_here(store.uri("/labels"), task, store.uri(f"/{form}"))
    assert (here["written"], there["written"]) == (6, 6)
    assert files(store.uri(f"/{form}")) == files(str(tmp_path / "out"))
    assert "S3CR3T" not in Folder(store.uri(f"/{form}")).read("run.json").decode()


def test_a_selection_and_a_report_in_a_store_are_those_on_a_disk(
    labels: Path, store: Store, tmp_path: Path
) -> None:
    task = Selection(SelectOptions(min_confidence=0.5, count=3))
    run_here(labels, task, tmp_path / "sure")
    run_here(store.uri("/labels"), task, store.uri("/sure"))
    here, there = (
        open_labels(place).arrow.to_table() for place in (str(tmp_path / "sure"), store.uri("/sure"))
    )
    assert here.equals(there)
    assert len(here) == 3
    found = [write_report(Folder(place)) for place in (str(tmp_path / "sure"), store.uri("/sure"))]
    assert found[0] == found[1]
    assert Folder(store.uri("/sure")).exists("_report/index.html")
