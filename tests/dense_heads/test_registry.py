import sys
from pathlib import Path

import pytest

from ovss_core import dense_heads
from ovss_core.dense_heads import HEADS, HeadOptions, build_head
from ovss_core.errors import ConfigError
from ovss_core.head_names import host_names
from tests.tiny import random_windows, tiny_encoder

NINTH = '''
"""reversed: a head of one file."""

from ovss_core.dense_heads.base import LastBlockHead


class ReversedHead(LastBlockHead):
    """Values, negated."""

    name = "reversed"

    def attend(self, block, trace):
        """Negate the values."""
        return -block.output(block.value(trace.tokens))
'''


def test_a_ninth_head_is_one_file_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reversed_values.py").write_text(NINTH)
    monkeypatch.setattr(dense_heads, "__path__", [*dense_heads.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, f"{dense_heads.__name__}.reversed_values", None)
    del sys.modules[f"{dense_heads.__name__}.reversed_values"]
    found = dense_heads._discover()
    assert set(found) - set(HEADS) == {"reversed"}
    encoder, windows = tiny_encoder(), random_windows(2, 32, 40)
    ninth, values = found["reversed"](HeadOptions()), build_head("maskclip")
    trace = encoder.trace(windows, ninth.request(encoder.depth))
    assert ninth.features(encoder, trace).shape == values.features(encoder, trace).shape


def test_the_names_are_known_without_importing_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, dense_heads.__name__)
    assert host_names() == list(HEADS)
    assert dense_heads.__name__ not in sys.modules


def test_an_unknown_host_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown host 'sfpp' \(did you mean 'sfp'\?\); give one of clearclip, clip, .*, sfp",
    ):
        build_head("sfpp")


def test_every_head_is_built_with_the_options_it_is_given() -> None:
    options = HeadOptions(purified=True)
    for name, kind in HEADS.items():
        head = build_head(name, options)
        assert type(head) is kind
        assert head.options is options
        assert head.name == name
