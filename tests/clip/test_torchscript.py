import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ovss_core.clip.torchscript import ArchiveError, is_torchscript, read_torchscript
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.errors import WeightsError
from tests.tiny import NAME, ParameterTree, register_tiny_models, tiny_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]


class Block(nn.Module):
    """What a tower is made of: nested modules, lists, half and whole numbers, buffers, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 2, bias=False).half()
        self.resblocks = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6))
        self.attn = nn.MultiheadAttention(8, 2)
        self.transposed = nn.Parameter(torch.arange(12.0).view(3, 4).T)
        self.register_buffer("number", torch.tensor(77))
        self.sizes = [1, 2]
        self.words = ["a", "b"]
        self.table = {"a": 1.5}

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.resblocks(values) + self.sizes[0]
        return result


@pytest.mark.parametrize(
    "compile_it", [torch.jit.script, lambda block: torch.jit.trace(block, torch.zeros(2, 4))]
)
def test_the_tensors_are_those_that_torch_would_load(
    compile_it: Callable[[Block], object], tmp_path: Path
) -> None:
    path = tmp_path / "block.pt"
    torch.jit.save(compile_it(Block()), str(path))
    expected = torch.jit.load(str(path)).state_dict()
    found = read_torchscript(path)
    assert is_torchscript(path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


class Writer(nn.Module):
    """Creates a file when `torch.jit.load` restores it: the archive's own code runs at that moment."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(2))

    def forward(self, values: Tensor) -> Tensor:
        return values

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.path = state[0]
        self.weight = torch.from_file(state[0], True, 8)
        self.training = state[2]


class Tower(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.writer = Writer(path)
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.writer(values)
        return result


def test_an_archive_whose_code_writes_a_file_is_read_without_running_it(tmp_path: Path) -> None:
    register_tiny_models()
    path, target = tmp_path / "weights.pt", tmp_path / "executed"
    torch.jit.save(torch.jit.script(Tower(str(target))), str(path))
    torch.jit.load(str(path))
    assert target.exists()  # such an archive does run code where torch loads it
    target.unlink()
    with pytest.raises(
        WeightsError, match=r"cannot read weights from .*weights\.pt: a module of it has no attributes"
    ):
        load_clip(ModelConfig(NAME, str(path)))
    assert not target.exists()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


def _archive(path: Path) -> Path:
    state = {key: value.half() for key, value in tiny_clip().model.state_dict().items()}
    torch.jit.save(torch.jit.trace(ParameterTree(state, {"input_resolution": 32}), torch.zeros(1)), str(path))
    return path


def _rewritten(
    path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write an archive anew with the content of its records changed, or left out where it becomes None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_suffix(".new"), "w", compression) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    shutil.move(path.with_suffix(".new"), path)
    return path


def test_a_pickle_with_code_inside_an_archive_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    harmful = pickle.dumps(Malicious(target))
    path = _rewritten(
        _archive(tmp_path / "weights.pt"), lambda name, old: harmful if name.endswith("/data.pkl") else old
    )
    with pytest.raises(WeightsError, match=r"asks for pathlib\S*, which no weights need"):
        load_clip(ModelConfig(NAME, str(path)))
    assert not target.exists()


def test_an_archive_is_read_whatever_its_code_says(tmp_path: Path) -> None:
    expected = read_torchscript(_archive(tmp_path / "weights.pt"))
    path = _rewritten(tmp_path / "weights.pt", lambda name, old: b"exit(1)" if "/code/" in name else old)
    found = read_torchscript(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, old: None if name.endswith("/data/0") else old, "record '0' of it is missing or cut"),
        (
            lambda name, old: old[:-2] if name.endswith("/data/0") else old,
            "record '0' of it is missing or cut",
        ),
        (lambda name, old: None if name.endswith("/data.pkl") else old, "no tree of modules"),
        (lambda name, old: old[:-20] if name.endswith("/data.pkl") else old, "tree of modules is damaged"),
        (
            lambda name, old: b"big" if name.endswith("/byteorder") else old,
            "not in this machine's byte order",
        ),
        (
            lambda name, old: (
                old.replace(b"HalfStorage", b"EvilStorage") if name.endswith("/data.pkl") else old
            ),
            r"asks for torch\.EvilStorage",
        ),
    ],
)
def test_a_damaged_archive_says_what_is_wrong_with_it(
    change: Callable[[str, bytes], bytes | None], message: str, tmp_path: Path
) -> None:
    path = _rewritten(_archive(tmp_path / "weights.pt"), change)
    with pytest.raises(ArchiveError, match=message):
        read_torchscript(path)
    with pytest.raises(WeightsError, match=message):
        load_clip(ModelConfig(NAME, str(path)))


def test_records_that_would_blow_up_when_unpacked_are_refused(tmp_path: Path) -> None:
    path = _rewritten(_archive(tmp_path / "weights.pt"), lambda name, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="compressed, which PyTorch does not do"):
        read_torchscript(path)


@pytest.mark.parametrize("record", [b"/byteorder", b"/constants.pkl"])
def test_an_archive_whose_table_of_contents_is_damaged_is_refused_in_one_line(
    record: bytes, tmp_path: Path
) -> None:
    path = _archive(tmp_path / "weights.pt")
    content = path.read_bytes()
    entry = content.index(record, content.index(b"PK\x01\x02"))
    flags = content.rindex(b"PK\x01\x02", 0, entry) + 8
    named = content[:flags] + b"\x00\x08" + content[flags + 2 : entry] + b"/\xff" + content[entry + 2 :]
    path.write_bytes(named)  # names in UTF-8, and one that is none
    with pytest.raises(WeightsError, match=r"cannot read weights from .*weights\.pt: .*damaged"):
        load_clip(ModelConfig(NAME, str(path)))


def test_an_archive_whose_byte_order_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    path = _rewritten(
        _archive(tmp_path / "weights.pt"), lambda name, old: b"\xff" if name.endswith("/byteorder") else old
    )
    with pytest.raises(WeightsError, match="not in this machine's byte order"):
        load_clip(ModelConfig(NAME, str(path)))


def test_a_compressed_tree_that_is_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    path = _rewritten(_archive(tmp_path / "weights.pt"), lambda name, old: old, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    start = entry.header_offset + 30 + len(entry.filename)
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="it is a damaged archive"):
        load_clip(ModelConfig(NAME, str(path)))
