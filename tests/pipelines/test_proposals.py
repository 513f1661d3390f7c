import numpy as np
import pyarrow as pa
import pytest
import torch

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.class_purification.winners import AmbiguousRegions
from ovss_core.config import WindowConfig
from ovss_core.engine.proposal import COLUMNS, MAP_LEVELS, Decisions, Proposals
from ovss_core.images.windows import WindowLayout
from pipelines.label.proposals import LARGE_BYTES, pack, unpack
from pipelines.run.schema import PROPOSAL

WINDOWS = WindowConfig(size=32, stride=16)
PATCHES, CROP = 16, 112


def proposals(kept: tuple[int, ...], crops: int, classes: int = 30, seed: int = 0) -> Proposals:
    """Two images with different kept classes; `crops` regions in the first and one without area in the second, or none."""
    chance = np.random.default_rng(seed)
    layouts = tuple(WindowLayout.of(*size, WINDOWS) for size in ((48, 64), (32, 32)))
    names = np.full((2, max(kept)), NOBODY)
    for row, count in zip(names, kept, strict=True):
        row[:count] = np.sort(chance.choice(classes, count, replace=False))
    maps = torch.from_numpy(chance.random((7, max(kept), PATCHES), np.float32)).mul(MAP_LEVELS).round_()
    maps *= torch.from_numpy(chance.random(maps.shape) < 0.5)
    first, second = names[0, :3], names[1, :2]
    members = np.full((2, 3), NOBODY)
    members[0, : len(first)], members[1, : len(second)] = first, second
    corners = np.array([[0, 0, 9 + row, 8] for row in range(crops)] + [[4, 4, 4, 9]])
    none = np.zeros(0, np.int64)
    empty = AmbiguousRegions(none, none, none, none.reshape(0, 4), none.reshape(0, 0))
    regions = AmbiguousRegions(
        image=np.array([0] * crops + [1]),
        window=np.full(crops + 1, -1),
        group=np.array([0] * crops + [1]),
        corners=corners,
        members=members,
    )
    pixels = torch.from_numpy(chance.integers(0, 20, (crops, CROP, CROP, 3), np.uint8))
    decisions = Decisions(chance.random((2, classes), np.float32), names, regions if crops else empty)
    return Proposals(((96, 64), (9, 9)), layouts, maps.div_(MAP_LEVELS), decisions=decisions, crops=pixels)


@pytest.mark.parametrize("crops", [1, 4, 12])
def test_a_proposal_comes_through_arrow_as_it_went(crops: int) -> None:
    sent = proposals((5, 2), crops)
    column = pa.array([pack(row) for row in sent.to_rows()], PROPOSAL)
    back = Proposals.from_rows([unpack(row) for row in column.to_pylist()], WINDOWS, PATCHES, CROP)
    assert (back.sizes, back.layouts) == (sent.sizes, sent.layouts)
    assert back.decisions is not None
    assert sent.decisions is not None
    assert back.crops is not None
    assert sent.crops is not None
    assert torch.equal(back.crops, sent.crops)
    np.testing.assert_array_equal(back.decisions.scores, sent.decisions.scores)
    np.testing.assert_array_equal(back.decisions.classes, sent.decisions.classes)
    for name in ("image", "window", "group", "corners", "members", "group_image"):
        np.testing.assert_array_equal(
            getattr(back.decisions.regions, name), getattr(sent.decisions.regions, name)
        )
    used = torch.from_numpy((sent.decisions.classes != NOBODY).repeat(sent.window_counts, 0))
    assert torch.equal(back.maps, sent.maps * used[:, :, None])


def test_rows_of_a_batch_can_be_put_together_in_any_order() -> None:
    rows = proposals((5, 2), 3).to_rows()
    turned = Proposals.from_rows(rows[::-1], WINDOWS, PATCHES, CROP)
    assert turned.decisions is not None
    assert turned.crops is not None
    assert turned.window_counts == (1, 6)
    assert turned.decisions.regions.image.tolist() == [0, 1, 1, 1]
    assert turned.decisions.regions.group.tolist() == [0, 1, 1, 1]
    assert turned.decisions.regions.has_area.tolist() == [False, True, True, True]
    assert len(turned.crops) == 3


def test_images_without_regions_have_empty_columns() -> None:
    rows = proposals((1, 1), 0).to_rows()
    assert list(rows[0]) == list(COLUMNS) == [field.name for field in PROPOSAL if field.name != "own_words"]
    assert [len(rows[0][name]) for name in ("group_sizes", "members", "region_corners", "crops")] == [0] * 4
    back = Proposals.from_rows(rows[:1], WINDOWS, PATCHES, CROP)
    assert back.decisions is not None
    assert back.crops is not None
    assert (len(back.decisions.regions), len(back.crops)) == (0, 0)


def test_only_the_crops_of_large_proposals_are_compressed() -> None:
    small, large = (pack(proposals((5, 2), crops).to_rows()[0]) for crops in (4, 8))
    assert len(small["crops"]) == 4 * CROP * CROP * 3 + 8
    assert len(large["crops"]) < 8 * CROP * CROP * 3
    assert 8 * CROP * CROP * 3 > LARGE_BYTES > 4 * CROP * CROP * 3


def test_bytes_that_do_not_shrink_stay_as_they_are() -> None:
    row = {"maps": np.random.default_rng(0).bytes(1000), "crops": b""}
    packed = pack(row)
    assert len(packed["maps"]) == 1008
    assert {name: bytes(value) for name, value in unpack(packed).items()} == row


def test_an_image_that_keeps_nothing_comes_through_beside_one_that_does() -> None:
    sent = proposals((5, 0), 0)
    rows = [unpack(pack(row)) for row in sent.to_rows()]
    both, alone = (Proposals.from_rows(part, WINDOWS, PATCHES, CROP) for part in (rows, rows[1:]))
    assert both.decisions is not None
    assert alone.decisions is not None
    assert (both.decisions.classes[1] == NOBODY).all()
    assert (alone.decisions.classes == NOBODY).all()
    assert not both.maps[-1].any()
    assert not alone.maps.any()
