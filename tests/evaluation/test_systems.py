"""The list of systems agrees with the heads and refiners that exist, and says what it should of each."""

import re
from dataclasses import replace

import pytest

from ovss_core.check import validate
from ovss_core.config import ModelConfig, PurificationConfig, SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.evaluation.benchmarks import (
    BENCHMARKS,
    ORDER,
    list_systems,
    published_miou,
    published_system,
)
from ovss_core.evaluation.benchmarks.systems import NEEDS, System
from ovss_core.head_names import host_names, refiner_names

SYSTEMS = {system.name: system for system in list_systems()}
PLANNED = {
    *("clipsurgery", "cliptrase", "resclip", "itaclip", "pearl", "rfclip", "cliper"),
    *("proxyclip", "corrclip"),
}
"""Heads that systems of the list wait for; each is in as soon as its file is there."""


def test_every_head_and_refiner_has_its_row() -> None:
    assert set(host_names()) <= {system.host for system in SYSTEMS.values()}, "name the head in systems.toml"
    assert set(refiner_names()) <= {system.refine for system in SYSTEMS.values()}


def test_a_system_is_in_exactly_where_its_parts_are_there() -> None:
    for system in SYSTEMS.values():
        parts = system.host in host_names() and system.refine in refiner_names()
        assert system.is_in == (parts and not system.out), system.name
        assert not (parts and system.out), f"{system.name} is there: take its reason out of systems.toml"
        assert system.host is not None or system.out, f"{system.name} has neither a head nor a reason"
        if system.host is not None and not parts:
            assert system.host in PLANNED, f"{system.name} names the head {system.host}, which nobody plans"


def test_a_reason_is_one_line_and_names_are_told_once() -> None:
    assert len(SYSTEMS) == len(list_systems())
    for system in SYSTEMS.values():
        assert system.is_in or system.reason
        assert "\n" not in system.reason
        assert len(system.reason) < 140
        assert system.paper
        assert system.source
        assert system.license


@pytest.mark.parametrize(
    "name",
    [
        *("LaVG", "LPOSS", "CASS", "GroupViT", "SegCLIP", "TCL", "CLIP-DINOiser", "SAM-CLIP", "PnP-OVSS"),
        *("Trident", "SAM 3"),
    ],
)
def test_what_is_left_out_says_why(name: str) -> None:
    assert not SYSTEMS[name].is_in
    assert SYSTEMS[name].out
    assert SYSTEMS[name].flags == ""


def test_the_benchmarks_of_the_tables_are_those_of_the_registry() -> None:
    assert set(ORDER) == set(BENCHMARKS)
    assert all(set(system.miou) <= set(ORDER) for system in SYSTEMS.values())
    assert all(0 < value < 100 for system in SYSTEMS.values() for value in system.miou.values())


def test_the_figures_of_rf_clip_are_told_apart_from_those_with_pamr() -> None:
    plain, refined = SYSTEMS["RF-CLIP"], SYSTEMS["RF-CLIP + PAMR"]
    assert list(plain.miou.values()) == [64.8, 36.4, 37.9, 87.0, 39.8, 26.3, 20.4, 41.3]
    assert list(refined.miou.values()) == [67.2, 37.9, 39.1, 87.0, 41.4, 27.5, 21.0, 43.0]
    assert (plain.refine, refined.refine) == ("none", "pamr")
    assert plain.mean == pytest.approx(44.2, abs=0.05)


def test_a_mean_is_told_only_of_all_eight() -> None:
    assert SYSTEMS["SFP"].mean == pytest.approx(44.0, abs=0.05)
    assert SYSTEMS["ITACLIP"].mean is None


def test_published_figures_are_found_with_and_without_a_refiner() -> None:
    plain = PurificationConfig(method="none")
    assert published_miou("voc21", SegmenterConfig(host="naclip", purification=plain)) == 58.9
    assert published_miou("voc21", SegmenterConfig(host="naclip", purification=plain, refine="pamr")) == 64.07
    assert published_miou("voc21", SegmenterConfig(host="naclip", purification=plain, refine="tlp")) is None


def test_systems_with_one_head_are_told_apart_by_the_parts_that_run() -> None:
    assert SYSTEMS["ResCLIP"].is_in
    assert SYSTEMS["ResCLIP"].flags == "--host resclip --purify none --resclip.feedback true"
    for name, system in SYSTEMS.items():
        if system.is_in:
            purification = PurificationConfig(method=system.purify)
            config = system.configure(
                SegmenterConfig(host=system.host or "", purification=purification), "voc21"
            )
            found = published_system(config.to_dict())
            assert found is not None
            assert found.name == name
    alone = SegmenterConfig(host="cliptrase", purification=PurificationConfig(method="none"))
    assert published_system(alone.to_dict()) is None, "published figures are with clusters"


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.is_in])
def test_every_system_that_is_in_gives_settings_that_work(name: str) -> None:
    system = SYSTEMS[name]
    base = SegmenterConfig(ModelConfig("demo"), host=system.host or "")
    for benchmark in (None, *ORDER):
        config = system.configure(base, benchmark)
        assert config.refine == system.refine
        if not system.needs:
            validate(config)


def test_settings_are_taken_by_benchmark_and_unknown_ones_are_refused() -> None:
    system = System("x", "p", {}, "s", host="sfp", refine="tlp", settings={"tlp.grid": [80] * 7 + [224]})
    assert system.configure(SegmenterConfig(), "cityscapes").tlp.grid == 224
    assert system.configure(SegmenterConfig(), "voc21").tlp.grid == 80
    assert system.configure(SegmenterConfig(), None).tlp.grid == 80
    wrong = System("x", "p", {}, "s", host="sfp", settings={"sfp.magic": 1})
    with pytest.raises(ConfigError, match=re.escape("x sets sfp.magic, which is no setting")):
        wrong.configure(SegmenterConfig(), None)


def test_needs_are_named_in_words() -> None:
    assert {need for system in SYSTEMS.values() for need in system.needs} == set(NEEDS)


def test_figures_of_more_than_runs_here_are_held_against_no_run() -> None:
    assert SYSTEMS["CaR"].is_in
    assert SYSTEMS["CaR"].miou["voc21"] == 48.6
    config = replace(SegmenterConfig(), purification=PurificationConfig("car"))
    assert published_miou("voc21", config) is None
