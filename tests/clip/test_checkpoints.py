import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.errors import ModelError, WeightsError
from tests.tiny import NAME, ParameterTree, register_tiny_models, tiny_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]
State = dict[str, Tensor]


def _state() -> State:
    """Weights of a tiny CLIP that float16 holds exactly."""
    return {key: value.half().float() for key, value in tiny_clip().model.state_dict().items()}


def _save_archive(state: State, path: Path) -> None:
    extras = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    module = ParameterTree({key: value.half() for key, value in state.items()}, extras)
    torch.jit.save(torch.jit.trace(module, torch.zeros(1)), str(path))


def _save_data_parallel(state: State, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "plain.pt": lambda state, path: torch.save(state, path),
    "half.pt": lambda state, path: torch.save({k: v.half() for k, v in state.items()}, path),
    "legacy.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "data_parallel.pt": _save_data_parallel,
    "weights.safetensors": lambda state, path: save_file(state, path),
    "archive.pt": _save_archive,
}


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_file_format_loads_to_the_same_weights_and_the_same_hash(form: str, tmp_path: Path) -> None:
    state = _state()
    WRITERS[form](state, tmp_path / form)
    clip = load_clip(ModelConfig(NAME, str(tmp_path / form)))
    loaded = clip.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert all(value.dtype == torch.float32 for value in loaded.values())
    WRITERS["plain.pt"](state, tmp_path / "reference.pt")
    assert clip.weights_hash() == load_clip(ModelConfig(NAME, str(tmp_path / "reference.pt"))).weights_hash()


def _activations(model: Any) -> set[type]:
    towers = (model.visual.transformer, model.transformer)
    return {type(block.mlp.gelu) for tower in towers for block in tower.resblocks}


@pytest.mark.parametrize(
    ("form", "name", "asked", "expected"),
    [
        ("archive.pt", NAME, None, QuickGELU),
        ("archive.pt", NAME, False, nn.GELU),
        ("plain.pt", NAME, None, nn.GELU),
        ("plain.pt", NAME, True, QuickGELU),
        ("plain.pt", f"{NAME}-quickgelu", None, QuickGELU),
        ("weights.safetensors", NAME, True, QuickGELU),
    ],
)
def test_the_activation_is_what_file_name_or_setting_say(
    form: str, name: str, asked: bool | None, expected: type, tmp_path: Path
) -> None:
    WRITERS[form](_state(), tmp_path / form)
    clip = load_clip(ModelConfig(name, str(tmp_path / form), quick_gelu=asked))
    assert _activations(clip.model) == {expected}


def test_the_hash_changes_with_a_single_weight() -> None:
    clip = tiny_clip()
    before = clip.weights_hash()
    with torch.no_grad():
        clip.model.visual.proj[3, 5] += 1e-3
    assert clip.weights_hash() != before


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    register_tiny_models()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_clip(ModelConfig(NAME, "random")).weights_hash()
    assert torch.equal(torch.rand(3), expected)
    assert load_clip(ModelConfig(NAME, "random")).weights_hash() == first


class Calls(TorchDispatchMode):
    """Note the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [NAME, "demo"])
def test_a_model_from_a_file_is_not_drawn_first_and_has_all_that_no_file_holds(
    name: str, tmp_path: Path
) -> None:
    register_tiny_models()
    with Calls() as calls:
        drawn = load_clip(ModelConfig(name, "random")).model
    assert calls.names & {"normal_", "uniform_"}
    save_file(
        {key: tensor.contiguous() for key, tensor in drawn.state_dict().items()}, tmp_path / "a.safetensors"
    )
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with Calls() as calls:
        read = load_clip(ModelConfig(name, str(tmp_path / "a.safetensors"))).model
    assert not calls.names & {"normal_", "uniform_"}
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in (
        (dict(drawn.named_parameters()), dict(read.named_parameters())),
        (dict(drawn.named_buffers()), dict(read.named_buffers())),
    ):
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), key


def test_a_loaded_model_is_frozen_and_in_evaluation_mode() -> None:
    model = tiny_clip().model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(legacy: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "weights.pt"
    torch.save({"state_dict": _Malicious(target)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"cannot read weights from .*weights\.pt"):
        load_clip(ModelConfig(NAME, str(path)))
    assert not target.exists()
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(_Malicious(target)))
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_clip(ModelConfig(NAME, str(bare)))
    assert not target.exists()


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_a_truncated_file_is_named_as_unreadable(form: str, tmp_path: Path) -> None:
    path = tmp_path / form
    WRITERS[form](_state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"cannot read weights from .*give a state dict"):
        load_clip(ModelConfig(NAME, str(path)))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04", b"\x00" * 64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_a_file_that_holds_no_weights_at_all_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot read weights from"):
        load_clip(ModelConfig(NAME, str(path)))


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(3)])
def test_a_file_without_a_state_dict_says_how_to_save_one(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"holds no state dict; save one with torch\.save"):
        load_clip(ModelConfig(NAME, str(tmp_path / "odd.pt")))


@pytest.mark.parametrize("form", ["plain.pt", "weights.safetensors", "archive.pt"])
def test_weights_of_another_architecture_name_the_first_wrong_tensor(form: str, tmp_path: Path) -> None:
    WRITERS[form](_state(), tmp_path / form)
    with pytest.raises(
        WeightsError, match=r"does not hold the weights of tiny-ViT-16: \d+ of \d+ tensors.*--model"
    ):
        load_clip(ModelConfig("tiny-ViT-16", str(tmp_path / form)))


def test_a_state_dict_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    state = _state()
    del state["visual.proj"]
    torch.save(state, tmp_path / "partial.pt")
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors .* first 'visual.proj'"):
        load_clip(ModelConfig(NAME, str(tmp_path / "partial.pt")))


def test_an_unknown_architecture_lists_some_that_work() -> None:
    with pytest.raises(
        ModelError,
        match=r"unknown architecture 'ViT-B-17' \(did you mean 'ViT-B-16'\?\); give an open_clip ViT such as ViT-B-16",
    ):
        load_clip(ModelConfig("ViT-B-17", "openai"))


def test_an_unknown_tag_lists_the_tags_of_the_architecture() -> None:
    with pytest.raises(
        WeightsError,
        match=r"'opnai' is neither a file nor a weight tag of ViT-B-16 \(did you mean 'openai'\?\); .*openai, ",
    ):
        load_clip(ModelConfig("ViT-B-16", "opnai"))


def test_a_path_that_does_not_exist_says_so() -> None:
    with pytest.raises(WeightsError, match=r"'/nowhere/weights\.pt' is neither a file nor a weight tag"):
        load_clip(ModelConfig("ViT-B-32", "/nowhere/weights.pt"))


def test_without_a_network_the_error_says_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"connect to the internet once.*--pretrained PATH.*--model demo"):
        load_clip(ModelConfig("ViT-B-32", "laion2b_e16"))
