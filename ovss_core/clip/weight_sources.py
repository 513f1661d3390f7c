"""Where weights come from, and what a file that should hold them really is; nothing here loads a tensor."""

import json
import os
import zipfile
from pathlib import Path
from typing import Literal

from ovss_core.clip.architectures import (
    DEMO,
    LOCAL_FOLDER,
    architecture_names,
    is_place,
    open_clip_name,
    weight_tags,
)
from ovss_core.clip.demo import DEMO_ARCHITECTURE, demo_weights_path
from ovss_core.errors import WeightsError, nearest

WeightSource = Literal["random", "file", "tag", "folder"]
RANDOM = "random"
_DEMO_SPELLINGS = ("openai", DEMO, DEMO_ARCHITECTURE)
"""What means the shipped weights: the default of --pretrained, and the model's own names."""
_MAGIC = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file it points to; fetch that with `git lfs pull`",
    b"\x1f\x8b": "it is a gzip archive; unpack it",
    b"\xfd7zXZ": "it is an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "it is a zstd archive; unpack it",
    b"GGUF": "it is a GGUF file of a language model",
    b"\x89HDF": "it is an HDF5 file of another framework",
    b"\x93NUMPY": "it is a NumPy array",
}
_SPAN = 1 << 12


def resolve_weights(name: str, pretrained: str) -> tuple[WeightSource, str]:
    """Say what `pretrained` means for an architecture.

    Returns:
        The kind of source, and the path of a file, the tag as open_clip spells it, or the name itself. "folder" is
        an architecture that brings its weights along (``hf-hub:`` and ``local-dir:``).

    Raises:
        WeightsError: It is neither a file nor a tag, or a file that holds no weights.
    """
    if pretrained == RANDOM:
        return "random", pretrained
    path = Path(pretrained)
    if path.is_file():
        require_weight_file(path)
        return "file", pretrained
    if open_clip_name(name) == DEMO_ARCHITECTURE and pretrained in _DEMO_SPELLINGS:
        return "file", str(demo_weights_path())
    if path.is_dir() and (os.sep in pretrained or pretrained in (".", "..")):
        raise WeightsError(
            f"--pretrained {pretrained!r} is a folder; give the file in it that holds the weights, or, for a folder "
            f"that open_clip saved, --model {LOCAL_FOLDER}{pretrained}"
        )
    if is_place(name):
        return "folder", pretrained
    tags = weight_tags(name)
    spelled = pretrained.lower().replace("-", "_")
    if spelled in tags:
        return "tag", spelled
    if open_clip_name(name) == DEMO_ARCHITECTURE:
        raise WeightsError(
            f"--pretrained {pretrained!r} is no file; the demo model has the weights that ship with ovss (leave the "
            "flag out), a file of your own, or random"
        )
    is_model = pretrained in architecture_names()
    hint = " (it is a name for --model)" if is_model else nearest(pretrained, tags)
    raise WeightsError(
        f"--pretrained {pretrained!r} is neither a file nor a weight tag of {name}{hint}; give the path of a state "
        f"dict, a safetensors file or an OpenAI archive, or one of: {', '.join(tags) or 'no tag is known for it'}"
    )


def require_weight_file(path: Path) -> None:
    """Refuse a file whose first bytes say that it holds no weights, or that its end is missing.

    Raises:
        WeightsError: It is empty, cut, a pointer to the file, a web page or of another kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_SPAN)
    except OSError as error:
        raise WeightsError(unreadable(path, str(error.strerror or error))) from error
    found = _what_it_is(path, start)
    if found:
        raise WeightsError(unreadable(path, found))


def unreadable(path: Path, reason: str) -> str:
    """Return the message for a file that cannot be read as weights."""
    return (
        f"cannot read weights from {path}: {reason}; give a state dict (tensors only), a .safetensors file or an "
        "OpenAI TorchScript archive"
    )


def is_safetensors(start: bytes) -> bool:
    """Say whether a file that begins so is of safetensors: eight bytes of length, then JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _what_it_is(path: Path, start: bytes) -> str | None:
    """Say what is wrong with a file, or None where it may hold weights."""
    if not start:
        return "the file is empty"
    if is_safetensors(start):  # first, for its length may begin with any byte
        return _safetensors_fault(path, start)
    for magic, meaning in _MAGIC.items():
        if start.startswith(magic):
            return meaning
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")):
        return "it is a web page, saved in place of the file; download it again"
    if text.startswith((b"{", b"[")):
        if b'"weight_map"' in text:
            return "it is the index of weights in several files, which ovss does not join"
        return "it is JSON text, no weights"
    if path.suffix == ".safetensors":
        return _safetensors_fault(path, start)
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "its end is missing; copy or download it again"
    if start.isascii() and start.decode().isprintable():
        return f"it is text ({start[:40].decode()!r})"
    return None


def _safetensors_fault(path: Path, start: bytes) -> str | None:
    """Compare the size that a safetensors header promises with the file's."""
    size, length = path.stat().st_size, int.from_bytes(start[:8], "little")
    if not is_safetensors(start):
        return "it has no safetensors header"
    if 8 + length > size:
        return f"its end is missing, {size:,} bytes are there; copy or download it again"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        end = max(
            (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "its safetensors header is damaged"
    if 8 + length + end > size:
        return (
            f"its end is missing, {size:,} of {8 + length + end:,} bytes are there; copy or download it again"
        )
    return None
