import pickle

import numpy as np
import pytest

from ovss_core.class_purification.winners import GroupProposal
from ovss_core.inference.proposal import PhraseFeatures, Proposal, PurifiedClasses

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("scored", [True, False])
def test_phrase_features_survive_the_trip_through_bytes(scored: bool) -> None:
    values = RANDOM.normal(size=(4, 6, 9)).astype(np.float32)
    proposal = Proposal((37, 512), (48, 160), PhraseFeatures(values[:, ::2], scored))
    again = Proposal.from_bytes(proposal.to_bytes())
    assert (again.size, again.resized) == ((37, 512), (48, 160))
    assert isinstance(again.content, PhraseFeatures)
    assert again.content.scored is scored
    assert np.array_equal(again.content.values, values[:, ::2])


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("crops", [0, 2])
def test_purified_classes_survive_the_trip_through_bytes(kept: int, crops: int) -> None:
    groups = (
        GroupProposal((1, 3), None, ((0, 0, 16, 24), (8, 8, 8, 9))),
        GroupProposal((2, 5, 6), 4, ((-1, 0, 2, 3),)),
    )
    scores = RANDOM.random(7).astype(np.float32)
    scores[0] = np.nan
    content = PurifiedClasses(
        scores,
        np.arange(kept),
        RANDOM.random((kept, 2, 3, 4)).astype(np.float32),
        groups[: crops and None],
        RANDOM.random((crops, 3, 5, 5)).astype(np.float32),
        ((0, 0), (1, 0))[:crops],
    )
    proposal = Proposal((3, 4), (48, 64), content)
    again = Proposal.from_bytes(proposal.to_bytes())
    assert isinstance(again.content, PurifiedClasses)
    assert again.content.groups == content.groups
    assert again.content.crop_of == content.crop_of
    for name in ("scores", "kept", "maps", "crops"):
        first, second = getattr(content, name), getattr(again.content, name)
        assert np.array_equal(first, second, equal_nan=True)
        assert first.dtype == second.dtype
    assert again.to_bytes() == proposal.to_bytes()


def test_pickled_bytes_are_refused_not_run() -> None:
    with pytest.raises((ValueError, UnicodeDecodeError)):
        Proposal.from_bytes(pickle.dumps({"size": (3, 4)}))
