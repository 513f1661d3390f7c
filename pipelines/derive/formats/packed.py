"""Many images a file: Parquet for the Hugging Face Hub, and shards for WebDataset."""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipelines.derive.formats.base import SPLITS, Format, Item
from pipelines.derive.units import Outcome
from pipelines.label.masks import encode_mask
from pipelines.storage import Folder

_ROW_GROUP = 64
_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("label", pa.binary()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("words", pa.list_(pa.string())),
    ]
)


class _Packed(Format):
    """Images and masks of a unit, split by split."""

    with_images = True

    def add(self, item: Item, output: Folder, outcome: Outcome) -> None:
        """Do nothing: all is written when the unit ends."""

    def close(self, unit: str, added: Sequence[tuple[Item, Any]], output: Folder, outcome: Outcome) -> None:
        """Write a file a split that has images."""
        number = int(unit.rpartition("-")[2])
        for split in SPLITS:
            items = [item for item, _ in added if item.split == split]
            if items:
                outcome.store(output, self.file(split, number), self.pack(items))

    def file(self, split: str, number: int) -> str:
        raise NotImplementedError

    def pack(self, items: Sequence[Item]) -> bytes:
        raise NotImplementedError


class HuggingFace(_Packed):
    """Parquet files with images inside, and a card that makes `load_dataset` decode them."""

    name = "huggingface"
    folders = ("data", "README.md")

    def file(self, split: str, number: int) -> str:
        """Return the name of a unit's file."""
        return f"data/{split}-{number:05d}.parquet"

    def pack(self, items: Sequence[Item]) -> bytes:
        """Encode rows of image and label."""
        columns = {
            "image": [item.image[0] if item.image else None for item in items],
            "label": [encode_mask(item.mask) for item in items],
            **{name: [item.row[name] for item in items] for name in ("image_id", "uri", "words")},
        }
        sink = pa.BufferOutputStream()
        stored = {name: "NONE" if name in ("image", "label") else "ZSTD" for name in _SCHEMA.names[:4]}
        compression = {**stored, "words.list.element": "ZSTD"}
        pq.write_table(pa.table(columns, _SCHEMA), sink, row_group_size=_ROW_GROUP, compression=compression)
        return bytes(sink.getvalue().to_pybytes())

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Write the card."""
        files = output.names("data")
        splits = [split for split in SPLITS if any(name.startswith(f"{split}-") for name in files)]
        features = [{"name": name, "dtype": "image"} for name in ("image", "label")]
        features += [{"name": name, "dtype": "string"} for name in ("image_id", "uri")]
        header = {
            "task_categories": ["image-segmentation"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [
                        {
                            "split": "validation" if split == "val" else split,
                            "path": f"data/{split}-*.parquet",
                        }
                        for split in splits
                    ],
                }
            ],
            "dataset_info": {"features": [*features, {"name": "words", "list": "string"}]},
            "class_names": list(self.classes.names),
            "ignore_index": self.classes.ignore,
        }
        written = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
        text = f"---\n{written}---\n\nPseudo-labels by ovss; `label` holds positions in `class_names`.\n"
        output.write("README.md", text.encode("utf-8", "replace"))


class WebDataset(_Packed):
    """Tar shards of ``key.jpg`` (or png), ``key.mask.png`` and ``key.json``, and ``classes.json`` beside them."""

    name = "webdataset"
    folders = ("train", "val", "classes.json")

    def file(self, split: str, number: int) -> str:
        """Return the name of a unit's shard."""
        return f"{split}/{split}-{number:06d}.tar"

    def pack(self, items: Sequence[Item]) -> bytes:
        """Write the members of a shard, the same bytes every time."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for item in items:
                data, ending = item.image or (b"", ".jpg")
                facts = {name: item.row[name] for name in ("image_id", "uri", "words")}
                members = {
                    ending: data,
                    ".mask.png": encode_mask(item.mask),
                    ".json": json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace"),
                }
                for field, content in members.items():
                    entry = tarfile.TarInfo(f"{item.name}{field}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        return stream.getvalue()

    def finish(self, output: Folder, units: Sequence[str]) -> None:
        """Name the classes."""
        content = {"classes": self.classes.names, "ignore_index": self.classes.ignore}
        output.write("classes.json", json.dumps(content, ensure_ascii=False, indent=2).encode())
