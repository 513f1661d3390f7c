"""Several hosts over one pass: the mean of their scores, and the share of an image on which they disagree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
from ovss_core.engine.agreement import patch_shares
from ovss_core.engine.engine import Encoded, SegmentationEngine, Wave
from ovss_core.engine.variants import VariantEngines
from ovss_core.errors import ConfigError
from ovss_core.evaluation.oracle import Oracle
from ovss_core.images.stitch import Stitcher
from ovss_core.images.windows import WindowLayout
from tests.tiny import random_picture, tiny_clip, tiny_config, tiny_text

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


def _slow_disagreement(
    engine: SegmentationEngine, wave: Wave, encoded: Encoded, image: int, allowed: set[int]
) -> float:
    """Restate the share: each pixel of the image asks each patch how much it decides of it, and who wins there."""
    phrases, owner = engine.text.phrase_embeddings.double().numpy(), engine.text.phrase_class.tolist()
    first = sum(len(layout) for layout in wave.layouts[:image])
    count = len(wave.layouts[image])
    differ = np.zeros((count, encoded.features.shape[1]))
    for window in range(count):
        for patch in range(differ.shape[1]):
            named = set()
            for features in encoded.of_heads:
                vector = features[first + window, patch].double().numpy()
                best, best_score = 0, -np.inf
                for phrase, words in enumerate(phrases):
                    if owner[phrase] in allowed and vector @ words > best_score:
                        best, best_score = owner[phrase], float(vector @ words)
                named.add(best)
            differ[window, patch] = len(named) > 1
    stitcher = Stitcher((wave.layouts[image],), wave.placement.grid, (wave.sizes[image],))
    maps = torch.from_numpy(differ).float()[:, None]
    return float(stitcher.stitch(stitcher.tile(maps))[0, 0].double().mean())


@pytest.mark.parametrize("background", ["first_class", "none"])
def test_disagreement_is_the_stitched_share_of_patches_whose_best_class_differs(background: str) -> None:
    engine = _engine(labels=LabelConfig(background=background))  # type: ignore[arg-type]
    allowed = set(range(5)) - ({0} if background == "none" else set())
    found = {}
    for wave, encoded in _encoded(engine):
        facts = engine.propose_encoded(wave, encoded).wait().facts["disagreement"]
        for image, place in enumerate(wave.places):
            expected = _slow_disagreement(engine, wave, encoded, image, allowed)
            assert facts[image] == pytest.approx(expected, abs=1e-5)
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
            expected = _slow_disagreement(engine, wave, encoded, image, kept)
            assert share == pytest.approx(expected, abs=1e-5)


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


def test_patches_share_the_pixels_of_their_image() -> None:
    config = tiny_config().windows
    layouts = [WindowLayout.of(*size, config) for size in ((48, 64), (48, 48))]
    shares = patch_shares(layouts, (4, 4), [(60, 80), (50, 50)])
    first = len(layouts[0])
    assert shares.shape == (first + len(layouts[1]), 16)
    assert shares[:first].sum() == pytest.approx(1, abs=1e-5)
    assert shares[first:].sum() == pytest.approx(1, abs=1e-5)
    assert shares.min() > 0


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
