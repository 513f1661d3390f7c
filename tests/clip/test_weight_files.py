"""What users give as weights, and what is said of it; reading itself is in `test_checkpoints`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor

from ovss_core.clip.weights import check_weight_file, load_clip
from ovss_core.config import ModelConfig
from ovss_core.errors import WeightsError
from tests.tiny import NAME, register_tiny_models, tiny_clip

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _tiny_models() -> None:
    register_tiny_models()


def _state() -> State:
    return {key: value.half().float() for key, value in tiny_clip().model.state_dict().items()}


def _prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def _compiled_tower(state: State) -> State:
    return {key.replace("visual.", "visual._orig_mod.", 1): value for key, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "compiled": _prefixed("_orig_mod."),
    "a compiled image tower": _compiled_tower,
    "data-parallel": _prefixed("module."),
    "data-parallel, compiled": _prefixed("module._orig_mod."),
    "compiled, data-parallel": _prefixed("_orig_mod.module."),
    "Lightning": lambda state: {
        "epoch": 3,
        "state_dict": _prefixed("model.")(state),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "Lightning, compiled": lambda state: {"state_dict": _prefixed("model._orig_mod.")(state)},
    "a module of one's own": lambda state: {
        "state_dict": {**_prefixed("net.clip.")(state), "head.weight": torch.zeros(3)}
    },
    "a dictionary called model": lambda state: {"model": state, "args": "x"},
    "dictionaries in dictionaries": lambda state: {"state_dict": {"model": _prefixed("module.")(state)}},
    "beside an average of itself": lambda state: {
        "ema": {key: value + 1 for key, value in state.items() if value.is_floating_point()},
        "model": state,
    },
}


@pytest.mark.parametrize("form", sorted(WRAPPED))
def test_the_wrappers_of_trained_models_come_off_in_any_nesting(form: str, tmp_path: Path) -> None:
    state = _state()
    torch.save(WRAPPED[form](state), tmp_path / "weights.pt")
    check_weight_file(ModelConfig(NAME, str(tmp_path / "weights.pt")))
    loaded = load_clip(ModelConfig(NAME, str(tmp_path / "weights.pt"))).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_safetensors_are_known_by_their_content_and_lose_wrappers_too(tmp_path: Path) -> None:
    state = _state()
    save_file(_prefixed("model._orig_mod.")(state), tmp_path / "weights.bin")
    loaded = load_clip(ModelConfig(NAME, str(tmp_path / "weights.bin"))).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def _refusal(config: ModelConfig) -> str:
    """Return the one line with which both the check and the loading refuse."""
    with pytest.raises(WeightsError) as checked:
        check_weight_file(config)
    with pytest.raises(WeightsError) as loaded:
        load_clip(config)
    assert str(checked.value) == str(loaded.value)
    assert "\n" not in str(loaded.value)
    assert "\x1b" not in str(loaded.value)
    return str(loaded.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [
                "logit_scale",
                "vision_model.encoder.layers.0.mlp.fc1.weight",
                "text_model.final_layer_norm.weight",
            ],
            "its tensors have the names of Hugging Face transformers; take the file that open_clip wrote",
        ),
        (["clip.vision_model.embeddings.class_embedding"], "the names of Hugging Face transformers"),
        (["base_model.model.visual.proj.lora_A.weight"], "the names of a LoRA adapter"),
        (["blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], "the names of a timm image tower"),
        (["layer4.0.conv1.weight", "fc.weight"], "the names of a ResNet"),
        (["class_embedding", "transformer.resblocks.0.ln_1.weight"], "the names of an image tower alone"),
        (["model.diffusion_model.out.0.weight"], "the names of a diffusion model"),
        (["encoder.weight", "decoder.weight"], "names such as 'encoder.weight', 'decoder.weight'"),
    ],
)
def test_names_that_fit_nothing_are_said_to_be_what_they_are(
    names: list[str], message: str, tmp_path: Path
) -> None:
    torch.save({name: torch.zeros(3) for name in names}, tmp_path / "weights.pt")
    assert message in _refusal(ModelConfig(NAME, str(tmp_path / "weights.pt")))


def test_weights_of_another_size_name_the_architecture_that_they_fit(tmp_path: Path) -> None:
    torch.save(_prefixed("module.")(_state()), tmp_path / "weights.pt")
    line = _refusal(ModelConfig("tiny-ViT-16", str(tmp_path / "weights.pt")))
    assert "give the architecture of these weights as --model, such as tiny-ViT-8" in line


def test_several_models_in_one_file_are_not_chosen_between(tmp_path: Path) -> None:
    state = _state()
    torch.save({"student": state, "teacher": state}, tmp_path / "weights.pt")
    assert "holds several models (student, teacher)" in _refusal(
        ModelConfig(NAME, str(tmp_path / "weights.pt"))
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_name_the_tensor(number: float, tmp_path: Path) -> None:
    state = _state()
    state["visual.proj"][3, 5] = number
    state["text_projection"][0, 0] = number
    torch.save(state, tmp_path / "weights.pt")
    line = _refusal(ModelConfig(NAME, str(tmp_path / "weights.pt")))
    assert (
        "holds NaN or infinity in 'text_projection' and 1 more tensors" in line
        or "in 'visual.proj' and 1" in line
    )


SAFETENSORS_CUT = "its end is missing, "
NOT_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.pt": (lambda path: path.write_bytes(b""), "the file is empty"),
    "pointer.pt": (
        lambda path: path.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 598516664\n"
        ),
        "it is a Git LFS pointer",
    ),
    "pointer.safetensors": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"),
        "it is a Git LFS pointer",
    ),
    "page.pt": (lambda path: path.write_text("\n<!DOCTYPE html><html>Sign in</html>"), "it is a web page"),
    "page.safetensors": (lambda path: path.write_text("<HTML>404</HTML>"), "it is a web page"),
    "index.json": (
        lambda path: path.write_text('{"metadata": {}, "weight_map": {}}'),
        "the index of weights in several",
    ),
    "config.json": (lambda path: path.write_text('{"architectures": ["CLIPModel"]}'), "it is JSON text"),
    "words.pt": (lambda path: path.write_text("not found"), "it is text ('not found')"),
    "packed.pt.gz": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(40)), "it is a gzip archive"),
    "model.gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(40)), "it is a GGUF file"),
    "zeros.pt": (lambda path: path.write_bytes(bytes(64)), "no file of PyTorch's, or it is damaged"),
    "zeros.safetensors": (lambda path: path.write_bytes(bytes(64)), "no safetensors header"),
    "whole.pt": (
        lambda path: torch.save(QuickGELU(), path),
        "a pickled object (open_clip.transformer.QuickGELU)",
    ),
    "wordy.pt": (
        lambda path: path.write_bytes(b"\x80\x02ccollections\n" + b"9" * 5000 + b"\n)R."),
        f"a pickled object (collections.{'9' * 68})",
    ),
}


@pytest.mark.parametrize("name", sorted(NOT_WEIGHTS))
def test_a_file_that_holds_no_weights_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    write, message = NOT_WEIGHTS[name]
    write(tmp_path / name)
    line = _refusal(ModelConfig(NAME, str(tmp_path / name)))
    assert line.startswith(f"cannot read weights from {tmp_path / name}: ")
    assert message in line
    assert len(line) < 600


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights.pt"])
def test_a_file_whose_end_is_missing_says_so(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save(_state(), path) if name.endswith(".pt") else save_file(_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "its end is missing" in _refusal(ModelConfig(NAME, str(path)))


@pytest.mark.parametrize("pretrained", ["/no/such/file.pt", "opnai", "laion2b_s34b_b88k", "ramdon"])
def test_a_mistyped_source_is_refused_for_the_demo_model_as_for_every_other(pretrained: str) -> None:
    line = _refusal(ModelConfig("demo", pretrained))
    assert (
        f"--pretrained {pretrained!r} is no file; the demo model has the weights that ship with ovss" in line
    )


def test_the_demo_model_takes_its_own_weights_by_default_and_others_by_path(tmp_path: Path) -> None:
    shipped = load_clip(ModelConfig("demo")).weights_hash()
    assert load_clip(ModelConfig("ovss-demo", "demo")).weights_hash() == shipped
    torch.save(load_clip(ModelConfig("demo")).model.state_dict(), tmp_path / "own.pt")
    assert load_clip(ModelConfig("demo", str(tmp_path / "own.pt"))).weights_hash() == shipped


def test_a_folder_or_a_models_name_as_weights_says_what_to_give(tmp_path: Path) -> None:
    assert "is a folder; give the file in it" in _refusal(ModelConfig(NAME, str(tmp_path)))
    assert "(it is a name for --model)" in _refusal(ModelConfig("ViT-B-16", "ViT-L-14"))


def test_a_tag_may_be_written_with_dashes_and_capitals() -> None:
    check_weight_file(ModelConfig("ViT-B-16", "LAION400M-E31"))
