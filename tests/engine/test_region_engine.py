"""Engines that get region maps: the vote, the scope, and both roads from proposals to labels."""

from dataclasses import replace

import numpy as np
import pytest

from ovss_core.check import validate
from ovss_core.config import ProxyConfig, PurificationConfig, RegionConfig, SegmenterConfig
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.proposal import Proposals
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError, ImageError
from ovss_core.regions import RegionMap, vote
from tests.tiny import WORDS, random_picture, tiny_clip, tiny_config, tiny_text
from tests.tiny_towers import DINO, tiny_proxy

SIZES = [(60, 80), (45, 33), (20, 140)]
PICTURES = [random_picture(*size) for size in SIZES]
NONE = PurificationConfig("none")


def blocks(size: tuple[int, int], side: int = 12, seed: int = 0) -> RegionMap:
    """Draw square regions, some of which are none."""
    rng = np.random.default_rng([seed, *size])
    coarse = rng.integers(0, 6, (-(-size[0] // side), -(-size[1] // side)))
    return RegionMap.of_array(np.kron(coarse, np.ones((side, side), int))[: size[0], : size[1]])


MAPS = [blocks(size) for size in SIZES]


def engine_of(config: SegmenterConfig) -> SegmentationEngine:
    return SegmentationEngine(config, tiny_clip(), tiny_text(WORDS), proxy=tiny_proxy(DINO))


def corrclip(**regions: object) -> SegmenterConfig:
    base = replace(tiny_config("corrclip", NONE), proxy=ProxyConfig(DINO, "random"))
    return replace(base, regions=RegionConfig(**regions))  # type: ignore[arg-type]


@pytest.mark.parametrize("purification", [NONE, PurificationConfig(crop_size=16)])
def test_the_vote_is_taken_after_everything_else(purification: PurificationConfig) -> None:
    config = tiny_config("sfp", purification)
    plain = engine_of(config).segment(PICTURES)
    voted = engine_of(replace(config, regions=RegionConfig(vote=True))).segment(PICTURES, MAPS)
    for before, after, regions in zip(plain, voted, MAPS, strict=True):
        expected, votes = vote(before.label_map, regions)
        np.testing.assert_array_equal(after.label_map, expected)
        assert after.regions == votes
        assert before.regions == ()
        assert [entry.index for entry in after.present] == np.unique(expected).tolist()
        for entry in after.present:
            assert entry.pixels == (expected == entry.index).sum()
            assert entry.share == entry.pixels / expected.size
        assert [entry.index for entry in after.kept] == [entry.index for entry in before.kept]


def test_regions_that_do_not_agree_belong_to_no_class() -> None:
    config = replace(tiny_config("sfp", NONE), regions=RegionConfig(vote=True, min_agreement=0.9))
    for result, regions in zip(engine_of(config).segment(PICTURES, MAPS), MAPS, strict=True):
        ignored = (result.label_map == 255).sum()
        expected = sum(entry.pixels for entry in result.regions if entry.agreement < 0.9)
        assert ignored == expected
        assert sum(entry.pixels for entry in result.present) == regions.ids.size - ignored


def test_maps_that_nothing_uses_change_nothing() -> None:
    engine = engine_of(tiny_config("sfp", NONE))
    for plain, given in zip(engine.segment(PICTURES), engine.segment(PICTURES, MAPS), strict=True):
        np.testing.assert_array_equal(plain.label_map, given.label_map)
        assert given.regions == ()


def test_a_map_of_another_size_than_its_image_is_refused() -> None:
    engine = engine_of(replace(tiny_config("sfp", NONE), regions=RegionConfig(vote=True)))
    with pytest.raises(ImageError, match="the region map has 45 x 33 pixels, the image 60 x 80"):
        engine.segment(PICTURES[:1], MAPS[1:2])


@pytest.mark.parametrize("purification", [NONE, PurificationConfig(crop_size=16)])
def test_maps_travel_with_proposals_between_processes(purification: PurificationConfig) -> None:
    config = replace(tiny_config("sfp", purification), regions=RegionConfig(vote=True))
    engine = engine_of(config)
    maps = [MAPS[0], None, MAPS[2]]
    prepared = [engine.prepare(picture, own) for picture, own in zip(PICTURES, maps, strict=True)]
    for wave, proposals in engine.propose_all(engine.gather(prepared)):
        direct = engine.finish(proposals)
        rows = proposals.to_rows()
        again = engine.proposals_of_rows(rows)
        assert isinstance(again, Proposals)
        for one, other, place in zip(direct, engine.finish(again), wave.places, strict=True):
            assert not isinstance(one, ImageError)
            assert not isinstance(other, ImageError)
            np.testing.assert_array_equal(one.label_map, other.label_map)
            assert one.regions == other.regions
            assert bool(one.regions) == (maps[place] is not None)


def test_scope_reaches_the_head_and_images_without_a_map_are_as_without_regions() -> None:
    scoped, plain = engine_of(corrclip(scope=True)), engine_of(corrclip())
    together = scoped.segment(PICTURES, [MAPS[0], None, MAPS[2]])
    for picture, own, result in zip(PICTURES, [MAPS[0], None, MAPS[2]], together, strict=True):
        [alone] = scoped.segment([picture], [own])
        assert (alone.label_map != result.label_map).mean() < 2e-3
    [without] = plain.segment(PICTURES[1:2])
    assert (without.label_map != together[1].label_map).mean() < 2e-3
    [free] = plain.segment(PICTURES[:1])
    assert (free.label_map != together[0].label_map).any()


def test_one_region_of_the_whole_image_opens_every_patch_to_every_other() -> None:
    engine = engine_of(corrclip(scope=True))
    picture = PICTURES[0]
    prepared = engine.prepare(picture, RegionMap.of_array(np.full(picture.shape[:2], 4)))
    [wave] = engine.gather([prepared])
    assert wave.regions is not None
    assert wave.regions.count == 1
    assert (wave.regions.ids == 1).all()


def test_variants_with_and_without_scope_label_as_each_engine_alone() -> None:
    configs = [corrclip(scope=True, vote=True), corrclip(vote=True), corrclip(), tiny_config("sfp", NONE)]
    engines = [engine_of(config) for config in configs]
    groups = VariantEngines(engines).encode(PICTURES, MAPS)
    for engine, waves in zip(engines, groups, strict=True):
        expected = engine.segment(PICTURES, MAPS)
        for encoded in waves:
            for position, (place, result) in enumerate(
                zip(encoded.wave.places, encoded.segment(engine), strict=True)
            ):
                assert (result.label_map != expected[place].label_map).mean() < 2e-3
                [single] = encoded.single(position, engine).segment(engine)
                assert (single.label_map != expected[place].label_map).mean() < 2e-3
                assert len(single.regions) == len(expected[place].regions)


def test_settings_of_regions_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_agreement goes with regions\.vote"):
        RegionConfig(min_agreement=0.5)
    with pytest.raises(ConfigError, match=r"regions.min_agreement is 1.5; give a share from 0 to 1"):
        RegionConfig(vote=True, min_agreement=1.5)
    with pytest.raises(ConfigError, match="host 'maskclip' cannot keep patches inside their region"):
        validate(SegmenterConfig(host="maskclip", regions=RegionConfig(scope=True)))


def test_regions_that_are_used_decide_and_others_do_not() -> None:
    plain, voting = SegmenterConfig(), SegmenterConfig(regions=RegionConfig(vote=True))
    assert "regions" not in plain.deciding()
    assert voting.deciding()["regions"] == {"vote": True, "scope": False, "min_agreement": 0.0}
    assert plain.tower_part == voting.tower_part
