import pytest
import torch

from ovss_core.config import WindowConfig
from ovss_core.engine.proposal import Proposals
from ovss_core.images.windows import WindowLayout


@pytest.mark.parametrize("scored", [True, False])
def test_proposals_without_purification_come_back_as_they_went(scored: bool) -> None:
    windows = WindowConfig(size=32, stride=16)
    layouts = tuple(WindowLayout.of(*size, windows) for size in ((48, 64), (32, 32)))
    maps = torch.rand(7, 5, 16, generator=torch.Generator().manual_seed(0))
    proposals = Proposals(((3, 4), (9, 9)), layouts, maps, scored)
    again = Proposals.from_rows(proposals.to_rows(), windows, 16, 8)
    assert (again.sizes, again.layouts, again.scored) == (proposals.sizes, layouts, scored)
    assert torch.equal(again.maps, maps)
    [second] = [Proposals.from_rows(proposals.to_rows()[1:], windows, 16, 8)]
    assert torch.equal(second.maps, maps[6:])


def test_proposals_know_the_windows_of_their_images() -> None:
    layouts = tuple(
        WindowLayout.of(*size, WindowConfig(size=32, stride=16)) for size in ((32, 32), (48, 64), (32, 48))
    )
    proposals = Proposals(((8, 8), (96, 32), (1, 1)), layouts, torch.zeros(9, 1, 16))
    assert proposals.window_counts == (1, 6, 2)
    assert proposals.windows_of(slice(1, 3)) == slice(1, 9)
    assert proposals.scales[1] == (2.0, 0.5)
