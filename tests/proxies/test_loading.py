import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ovss_core.config import ProxyConfig
from ovss_core.errors import ConfigError, WeightsError
from ovss_core.proxies.loading import check_proxy_file, load_proxy
from tests.tiny import random_windows
from tests.tiny_towers import (
    DINO,
    POSITIONS,
    RADIO,
    REGISTERS,
    ROTARY,
    add_tiny_families,
    original_radio,
    tiny_model,
)


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_families(monkeypatch)


def tokens_of(config: ProxyConfig, windows: Tensor) -> Tensor:
    return load_proxy(config).tower("cpu", torch.float32).features(windows, {"tokens"}).vectors["tokens"]


def equal_states(first: Any, second: Any) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "wrapped", "prefixed"])
@pytest.mark.parametrize("name", list(POSITIONS))
def test_weights_in_the_names_of_timm_load_from_any_form_of_file(
    name: str, form: str, tmp_path: Path
) -> None:
    options = {"img_size": 256} if name == RADIO else {}
    model, path = tiny_model(name, seed=3, **options), tmp_path / "weights"
    state = dict(model.state_dict())
    if form == "safetensors":
        save_file(state, path)
    elif form == "state dict":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    config = ProxyConfig(name, str(path))
    check_proxy_file(config)
    loaded = load_proxy(config)
    assert equal_states(loaded.model, model)
    assert loaded.choice.name == name


def test_the_hash_names_the_weights_and_not_the_file(tmp_path: Path) -> None:
    model = tiny_model(DINO, seed=4)
    save_file(dict(model.state_dict()), tmp_path / "one.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "two.pt")
    first, second = (
        load_proxy(ProxyConfig(DINO, str(tmp_path / file))) for file in ("one.safetensors", "two.pt")
    )
    assert first.weights_hash() == second.weights_hash()
    assert first.weights_hash() != load_proxy(ProxyConfig(DINO, "random")).weights_hash()


def test_a_table_of_another_size_gives_the_tower_its_own_base_grid(tmp_path: Path) -> None:
    larger = tiny_model(DINO, seed=5, img_size=80)
    save_file(dict(larger.state_dict()), tmp_path / "larger.safetensors")
    windows = random_windows(2, 80, 80)
    expected = larger.forward_features(windows)[:, 1:]
    found = tokens_of(ProxyConfig(DINO, str(tmp_path / "larger.safetensors")), windows)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_file_of_dinov2s_own_names_is_read(tmp_path: Path) -> None:
    model = tiny_model(REGISTERS, seed=6)
    state = dict(model.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    # the original keeps a place for the class token, which timm adds to the token itself
    first = torch.randn(1, 1, 24)
    state["cls_token"] = state["cls_token"] - first
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 24)
    torch.save(state, tmp_path / "dinov2.pth")
    windows = random_windows(2, 98, 98)
    expected = model.forward_features(windows)[:, model.num_prefix_tokens :]
    found = tokens_of(ProxyConfig(REGISTERS, str(tmp_path / "dinov2.pth")), windows)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_file_of_dinov3s_own_names_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(ROTARY, seed=7)
    state = {}
    for key, value in model.state_dict().items():
        renamed = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        state[renamed.replace("reg_token", "storage_tokens")] = value
    state["mask_token"] = torch.zeros(1, 32)
    state["rope_embed.periods"] = torch.ones(4)
    for block in range(3):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(96)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(96)
    torch.save(state, tmp_path / "dinov3.pth")
    loaded = load_proxy(ProxyConfig(ROTARY, str(tmp_path / "dinov3.pth")))
    assert equal_states(loaded.model, model)
    assert capsys.readouterr().out == ""


def test_a_file_of_radios_own_names_is_read_with_its_whole_table(tmp_path: Path) -> None:
    model = tiny_model(RADIO, seed=8, img_size=256)
    model.patch_embed.proj.bias.zero_()
    save_file(
        {key: value.contiguous() for key, value in original_radio(model, model.pos_embed).items()},
        tmp_path / "radio.safetensors",
    )
    loaded = load_proxy(ProxyConfig(RADIO, str(tmp_path / "radio.safetensors")))
    assert loaded.model.pos_embed.shape[1] == 16 * 16
    assert equal_states(loaded.model, model)


def fake_hub(folder: Path, repository: str, state: dict[str, Tensor]) -> None:
    """Lay a file out as the hub's client keeps what it has downloaded."""
    place = folder / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    save_file(state, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({}))


def test_the_hubs_weights_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(DINO, seed=9)
    fake_hub(tmp_path, f"timm/{DINO}", dict(model.state_dict()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loaded = load_proxy(ProxyConfig("dino"))
    assert loaded.choice.name == DINO
    assert equal_states(loaded.model, model)
    with pytest.raises(WeightsError, match=r"cannot download the weights of vit_test_patch14_reg4.dinov2"):
        load_proxy(ProxyConfig(REGISTERS))


def test_weights_of_another_tower_are_refused_with_what_to_give(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(dict(tiny_model(REGISTERS).state_dict()), path)
    with pytest.raises(WeightsError, match=r"does not hold the weights of vit_test_patch8.*as --proxy"):
        check_proxy_file(ProxyConfig(DINO, str(path)))
    save_file({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"tensors have names such as 'conv1.weight'"):
        load_proxy(ProxyConfig(DINO, str(path)))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in tiny_model(DINO).state_dict().items()}
    state["norm.bias"][3] = torch.nan
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"holds NaN or infinity in 'norm.bias'"):
        check_proxy_file(ProxyConfig(DINO, str(tmp_path / "weights.safetensors")))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--proxy-pretrained 'dino.pth' is no file; give hub"):
        load_proxy(ProxyConfig(DINO, "dino.pth"))
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="the file is empty"):
        check_proxy_file(ProxyConfig(DINO, str(tmp_path / "empty.pth")))
    with pytest.raises(ConfigError, match="needs a second tower; give --proxy"):
        load_proxy(ProxyConfig())


def test_random_weights_are_the_same_each_time() -> None:
    first, second = (load_proxy(ProxyConfig(DINO, "random")) for _ in range(2))
    assert first.weights_hash() == second.weights_hash()
