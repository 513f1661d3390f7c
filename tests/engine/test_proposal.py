import pytest
import torch

from ovss_core.config import WindowConfig
from ovss_core.engine.proposal import Proposals
from ovss_core.inference.windows import WindowLayout


def test_proposals_without_purification_have_no_rows() -> None:
    layout = WindowLayout.of(48, 64, WindowConfig(size=32, stride=16))
    proposals = Proposals(((3, 4),), (layout,), torch.zeros(len(layout), 5, 16))
    with pytest.raises(ValueError, match="only purified"):
        proposals.to_rows()


def test_proposals_know_the_windows_of_their_images() -> None:
    layouts = tuple(
        WindowLayout.of(*size, WindowConfig(size=32, stride=16)) for size in ((32, 32), (48, 64), (32, 48))
    )
    proposals = Proposals(((8, 8), (96, 32), (1, 1)), layouts, torch.zeros(9, 1, 16))
    assert proposals.window_counts == (1, 6, 2)
    assert proposals.windows_of(slice(1, 3)) == slice(1, 9)
    assert proposals.scales[1] == (2.0, 0.5)
