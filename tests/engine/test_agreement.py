"""Several hosts over one pass: the mean of their scores, and the share of an image on which they disagree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_core.check import validate
from ovss_core.config import (
    ClipSurgeryConfig,
    LabelConfig,
    ProxyConfig,
    PurificationConfig,
    RegionConfig,
    RfClipConfig,
    SegmenterConfig,
    SfpConfig,
)
from ovss_core.engine.engine import SegmentationEngine
from ovss_core.engine.variants import VariantEngines
from ovss_core.engine.waves import Encoded, Wave
from ovss_core.errors import ConfigError
from ovss_core.evaluation.oracle import Oracle
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

TIE = 0.01
"""Points at which two words score alike to the last digit may go either way: one or two of some hundreds."""
LINES = ["background: sky", "cat", "dog, puppy", "grass", "sofa"]
NONE = PurificationConfig(method="none", crop_size=16)
PICTURES = [random_picture(60, 80, 1), random_picture(50, 50, 2), random_picture(20, 140, 3)]
FORMS = {
    "none": NONE,
    **{
        variant: PurificationConfig(variant=variant, thresholds="auto", crop_size=16)
        for variant in ("image", "filter", "released", "paper")
    },
}


def _engine(
    host: str = "sfp,naclip",
    purification: PurificationConfig = NONE,
    lines: list[str] = LINES,
    **changes: object,
) -> SegmentationEngine:
    config = replace(tiny_config(host, purification), **changes)  # type: ignore[arg-type]
    return SegmentationEngine(config, tiny_clip(), tiny_text(lines))


def _encoded(engine: SegmentationEngine) -> list[tuple[Wave, Encoded]]:
    return [(wave, engine.encode(wave)) for wave in engine.gather(PICTURES)]


def test_scores_are_the_mean_of_the_scores_that_each_host_gives_alone() -> None:
    engines = [_engine(host) for host in ("sfp,naclip,clearclip", "sfp", "naclip", "clearclip")]
    waves = [list(engine.propose_all(engine.gather(PICTURES))) for engine in engines]
    for (_, joined), *alone in zip(*waves, strict=True):
        mean = sum(proposals.maps for _, proposals in alone) / 3
        assert torch.allclose(joined.maps, mean, atol=1e-5)


def _slow_scores(wave: Wave, scores: Tensor, image: int) -> Tensor:
    """Slide windows over an image in the classic way: enlarge each window's maps, average, resize to the lattice."""
    layout, (rows, columns) = wave.layouts[image], wave.placement.grid
    first = sum(len(other) for other in wave.layouts[:image])
    height, width = layout.image_size
    total, count = torch.zeros(scores.shape[1], height, width), torch.zeros(height, width)
    for (y, x), maps in zip(layout.origins, scores[first : first + len(layout)], strict=True):
        size = layout.window_size
        large = F.interpolate(maps.unflatten(1, (rows, columns))[None], size, mode="bilinear")[0]
        total[:, y : y + size[0], x : x + size[1]] += large
        count[y : y + size[0], x : x + size[1]] += 1
    lattice = -(-height // 4), -(-width // 4)  # patches have 8 pixels
    return F.interpolate((total / count)[None], lattice, mode="bilinear")[0]


def _slow_disagreement(
    engine: SegmentationEngine,
    wave: Wave,
    encoded: Encoded,
    image: int,
    allowed: set[int],
    maps: Tensor | None = None,
) -> float:
    """Restate the share, point by point.

    Args:
        maps: Purified ones, where the background is what they leave.
    """
    phrases, owner = engine.text.phrase_embeddings, engine.text.phrase_class.tolist()
    of_heads = [_slow_scores(wave, phrases @ features.mT, image) for features in encoded.of_heads]
    _, height, width = of_heads[0].shape
    foreground = torch.ones(height, width)
    if maps is not None:
        foreground = _slow_scores(wave, maps, image).amax(0)
    differ = 0
    for y in range(height):
        for x in range(width):
            named = set()
            for scores in of_heads:
                there = [place for place, index in enumerate(owner) if index in allowed]
                at_point = [float(scores[place, y, x]) for place in there]
                named.add(owner[there[int(np.argmax(at_point))]] if there else None)
            differ += len(named) > 1 and bool(foreground[y, x] > 0.5)
    return differ / (height * width)


@pytest.mark.parametrize("background", ["first_class", "none"])
def test_disagreement_is_the_share_of_a_lattice_on_which_stitched_scores_name_other_classes(
    background: str,
) -> None:
    engine = _engine(labels=LabelConfig(background=background))  # type: ignore[arg-type]
    allowed = set(range(5)) - ({0} if background == "none" else set())
    found = {}
    for wave, encoded in _encoded(engine):
        facts = engine.propose_encoded(wave, encoded).wait().facts["disagreement"]
        for image, place in enumerate(wave.places):
            expected = _slow_disagreement(engine, wave, encoded, image, allowed)
            assert facts[image] == pytest.approx(expected, abs=TIE)
            found[place] = facts[image]
    assert len(found) == 3
    assert max(found.values()) > 0.05


@pytest.mark.parametrize("form", ["image", "filter", "released", "paper"])
def test_with_purification_hosts_disagree_about_the_words_that_an_image_keeps(form: str) -> None:
    engine = _engine(purification=FORMS[form])
    for wave, encoded in _encoded(engine):
        proposals = engine.propose_encoded(wave, encoded).wait()
        assert proposals.decisions is not None
        for image, (share, classes) in enumerate(
            zip(proposals.facts["disagreement"], proposals.decisions.classes, strict=True)
        ):
            kept = {int(index) for index in classes if index >= 0}
            maps = proposals.maps if engine.finisher.policy == "residual" else None
            expected = _slow_disagreement(engine, wave, encoded, image, kept, maps)
            assert share == pytest.approx(expected, abs=TIE)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_gives_what_its_images_give_alone(form: str) -> None:
    engine = _engine(purification=FORMS[form], class_prior=0.2)
    for one, picture in zip(engine.segment(PICTURES), PICTURES, strict=True):
        [alone] = engine.segment([picture])
        assert (one.label_map != alone.label_map).mean() < 1e-3
        assert one.facts["disagreement"] == pytest.approx(alone.facts["disagreement"], abs=1e-4)
        assert [entry.index for entry in one.kept] == [entry.index for entry in alone.kept]


def test_hosts_that_are_the_same_head_never_disagree_and_label_as_one() -> None:
    # with all its parts off sfp is clearclip
    off = SfpConfig(outlier_mitigation=False, attention_enhancement=False, attention_integration=False)
    for one, joined in zip(
        _engine("clearclip").segment(PICTURES),
        _engine("sfp,clearclip", sfp=off).segment(PICTURES),
        strict=True,
    ):
        assert one.facts["disagreement"] is None
        assert joined.facts["disagreement"] == pytest.approx(0, abs=1e-2)
        assert (one.label_map != joined.label_map).mean() < 1e-3


def test_variants_share_each_heads_features_and_label_as_alone() -> None:
    engines = [
        _engine(host, FORMS[form])
        for host in ("sfp", "sfp,naclip", "naclip,clearclip")
        for form in ("none", "image")
    ]
    for engine, shared in zip(engines, VariantEngines(engines).segment(PICTURES), strict=True):
        for one, other in zip(engine.segment(PICTURES), shared, strict=True):
            assert (one.label_map != other.label_map).mean() < 1e-3
            assert one.facts["disagreement"] == pytest.approx(other.facts["disagreement"], abs=1e-4)


def test_an_image_taken_out_of_its_wave_keeps_its_disagreement_and_serves_other_words() -> None:
    engine = _engine(purification=FORMS["image"])
    [waves] = VariantEngines([engine]).encode(PICTURES[:2])
    for wave in waves:
        for position, within in enumerate(wave.segment(engine)):
            [alone] = wave.single(position, engine).segment(engine)
            assert alone.facts["disagreement"] == pytest.approx(within.facts["disagreement"], abs=1e-4)
        assert set(np.unique(Oracle(engine).label_map(wave.single(0, engine), [1, 3]))) <= {0, 1, 3}


def test_the_share_is_about_that_of_the_pixels_on_which_labels_of_the_hosts_alone_differ() -> None:
    alone = [_engine(host).segment(PICTURES) for host in ("sfp", "naclip")]
    for joined, one, other in zip(_engine().segment(PICTURES), *alone, strict=True):
        differ = (one.label_map != other.label_map).mean()
        assert joined.facts["disagreement"] == pytest.approx(differ, abs=0.06)


def test_more_words_than_dimensions_are_compared_by_stitched_features() -> None:
    engine = _engine(lines=[f"word {number}" for number in range(30)])
    [wave] = engine.gather(PICTURES[:1])
    encoded = engine.encode(wave)
    [found] = engine.propose_encoded(wave, encoded).wait().facts["disagreement"]
    assert found == pytest.approx(_slow_disagreement(engine, wave, encoded, 0, set(range(30))), abs=TIE)
    assert found > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_config("sfp,nclip"), r"unknown host 'nclip' \(did you mean 'naclip'\?\)"),
        (tiny_config("sfp, sfp"), "host 'sfp' is named twice; name each host once"),
        (tiny_config("sfp,"), "unknown host ''; give one of"),
        (tiny_config("sfp,cliper"), "host 'cliper' scores words by a rule of its own .* name it alone"),
        (
            replace(tiny_config("clipsurgery,sfp"), clipsurgery=ClipSurgeryConfig(True)),
            "host 'clipsurgery' scores words by a rule of its own with these settings",
        ),
        (tiny_config("sfp,gem"), "hosts 'sfp' and 'gem' change the blocks below them in different ways"),
        (
            replace(tiny_config("naclip,rfclip"), rfclip=RfClipConfig((3,))),
            "hosts 'naclip' and 'rfclip' change the blocks below",
        ),
        (
            replace(tiny_config("sfp,naclip"), sfp=SfpConfig("paper")),
            "hosts 'sfp' and 'naclip' change the blocks below them",
        ),
        (tiny_config("sfp,corrclip"), "host 'corrclip' needs a second tower beside CLIP"),
        (
            replace(tiny_config("sfp,corrclip"), proxy=ProxyConfig("dino_vitb16", "random")),
            "host 'corrclip' has its features on the patches of a second tower, 'sfp' on CLIP's",
        ),
        (
            replace(tiny_config("sfp,maskclip"), regions=RegionConfig(scope=True)),
            "host 'maskclip' cannot keep patches inside their region",
        ),
    ],
)
def test_what_cannot_be_read_together_is_refused_in_one_line(config: SegmenterConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        validate(config)
    assert "\n" not in str(refused.value)


def test_blanks_between_hosts_mean_nothing_and_their_settings_are_kept() -> None:
    config = SegmenterConfig(host="sfp, naclip", sfp=SfpConfig(max_outliers=3))
    assert config.host == "sfp,naclip"
    assert config.hosts == ("sfp", "naclip")
    assert config.deciding()["sfp"]["max_outliers"] == 3
    assert config.tower_part != replace(config, sfp=SfpConfig()).tower_part
    assert SegmenterConfig.from_dict(config.to_dict()) == config


def test_features_that_are_no_numbers_fail_their_image_alone() -> None:
    engine = _engine()
    [wave] = engine.gather(PICTURES[:1])
    encoded = engine.encode(wave)
    spoilt = encoded.of_heads[1].clone()
    spoilt[0, 0, 0] = torch.nan
    broken = Encoded.of([encoded.of_heads[0], spoilt], None, None, None)
    assert not engine.propose_encoded(wave, broken).wait().sound_images[0]
    assert F.cosine_similarity(encoded.of_heads[0], encoded.of_heads[1], dim=-1).max() < 1
