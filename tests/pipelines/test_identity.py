"""What a start compares with the run that an output holds, when another version began that run."""

import json
from pathlib import Path
from typing import Any

import pytest

from ovss_core.config import SegmenterConfig, SfpConfig
from ovss_core.errors import OutputMismatchError
from pipelines.run.record import RUN, check_identity
from pipelines.storage import Folder


def begun(folder: Path, identity: dict[str, Any]) -> Folder:
    (folder / RUN).write_text(json.dumps({"identity": identity, "starts": []}))
    return Folder(str(folder))


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path: Path) -> None:
    config = SegmenterConfig(host="naclip")
    before = config.to_dict()  # older versions compared the settings of every head
    del before["purification"]["ambiguity_threshold"]
    output = begun(tmp_path, {"job": "label", "config": before})
    check_identity(output, {"job": "label", "config": config.deciding()})
    output = begun(tmp_path, {"variants": {"row": {"config": before, "vocabulary_hash": "v"}}})
    check_identity(output, {"variants": {"row": {"config": config.deciding(), "vocabulary_hash": "v"}}})


def test_what_differs_is_named_all_the_same(tmp_path: Path) -> None:
    before = SegmenterConfig(sfp=SfpConfig("paper")).to_dict()
    output = begun(tmp_path, {"job": "label", "config": before})
    with pytest.raises(OutputMismatchError, match=r'config.sfp.variant was "paper", is now "released"'):
        check_identity(output, {"job": "label", "config": SegmenterConfig().deciding()})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (None, {"cat": ["A."]}, r"were none, are now of 1 classes \(--descriptions none goes on without\)"),
        (
            {"cat": ["A."], "dog": ["B."]},
            None,
            r"were of 2 classes, are now none \(give them with --descriptions",
        ),
        (
            {"cat": ["A."], "dog": ["B."]},
            {"cat": ["C."], "dog": ["B."]},
            "of 1 classes differ, such as 'cat'",
        ),
    ],
)
def test_other_descriptions_are_one_short_line_that_says_how_to_go_on(
    tmp_path: Path, before: Any, now: Any, said: str
) -> None:
    output = begun(tmp_path, {"job": "label", "descriptions": before})
    with pytest.raises(OutputMismatchError, match=f"belongs to another run: descriptions {said}") as raised:
        check_identity(output, {"job": "label", "descriptions": now})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))
    check_identity(output, {"job": "label", "descriptions": before})


def test_a_setting_that_this_version_lacks_is_a_difference(tmp_path: Path) -> None:
    before = SegmenterConfig().deciding() | {"dream": 3}
    output = begun(tmp_path, {"job": "label", "config": before})
    with pytest.raises(OutputMismatchError, match=r"config\.dream was 3, is now null"):
        check_identity(output, {"job": "label", "config": SegmenterConfig().deciding()})
