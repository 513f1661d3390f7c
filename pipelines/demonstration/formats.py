"""How drawn scenes are stored: folders of pictures, Parquet tables, or tar shards in the WebDataset layout."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.demonstration.options import SEED_SPACING
from pipelines.demonstration.scenes import render_scene
from pipelines.storage import Folder

_ROW_GROUP = 64
_SUFFIX = {"png": ".png", "jpeg": ".jpg"}


@dataclass(frozen=True)
class SceneShard:
    """Consecutive scenes that one process draws and stores.

    Attributes:
        number: Position of the shard.
        first: Index of its first scene.
        count: Number of scenes.
        seed: Seed of the whole set.
        size: Side of the pictures in pixels.
        image_format: "png" (lossless) or "jpeg" (quality 92).
    """

    number: int
    first: int
    count: int
    seed: int
    size: int
    image_format: str

    def scenes(self) -> Iterable["StoredScene"]:
        """Draw the scenes one after another."""
        return (encode_scene(self, index) for index in range(self.first, self.first + self.count))


@dataclass(frozen=True)
class StoredScene:
    """One scene as encoded bytes; `mask` is a one-channel PNG of class indices."""

    scene_id: str
    image: bytes
    suffix: str
    mask: bytes
    caption: str
    classes: tuple[str, ...]


def encode_scene(shard: SceneShard, index: int) -> StoredScene:
    """Draw scene `index` of a shard's set; the bytes depend on seed, index, size and image format alone."""
    scene = render_scene(shard.seed * SEED_SPACING + index, shard.size)
    picture = Image.fromarray(scene.image)
    options = {"compress_level": 1} if shard.image_format == "png" else {"quality": 92}
    return StoredScene(
        scene_id=f"{index:09d}",
        image=_encode(picture, shard.image_format, options),
        suffix=_SUFFIX[shard.image_format],
        mask=encode_mask(scene.labels),
        caption=scene.caption,
        classes=scene.classes,
    )


def encode_mask(labels: np.ndarray) -> bytes:
    """Encode a uint8 label map as a one-channel PNG."""
    return _encode(Image.fromarray(labels), "png", {"compress_level": 6})


def _encode(picture: Image.Image, image_format: str, options: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_folder(output: Folder, shard: SceneShard) -> None:
    """Write ``images/ID.png`` (or .jpg) and ``masks/ID.png``, scene by scene; the mask comes first."""
    for scene in shard.scenes():
        output.write(f"masks/{scene.scene_id}.png", scene.mask)
        output.write(f"images/{scene.scene_id}{scene.suffix}", scene.image)


def write_parquet(output: Folder, shard: SceneShard) -> None:
    """Write one Parquet file: image {bytes, path}, mask, id, caption, classes; 64 rows a row group."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCENE_TABLE, compression="none") as writer:
        rows: list[dict[str, object]] = []
        for scene in shard.scenes():
            image = {"bytes": scene.image, "path": f"{scene.scene_id}{scene.suffix}"}
            row: dict[str, object] = {"id": scene.scene_id, "image": image, "mask": scene.mask}
            rows.append(row | {"caption": scene.caption, "classes": list(scene.classes)})
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCENE_TABLE))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCENE_TABLE))
    output.write(shard_name("parquet", shard.number), buffer.getvalue())


SCENE_TABLE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("classes", pa.list_(pa.string()), nullable=False),
    ]
)


def write_webdataset(output: Folder, shard: SceneShard) -> None:
    """Write one tar shard with ``ID.png`` (or .jpg), ``ID.mask.png`` and ``ID.json`` for each scene."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for scene in shard.scenes():
            described = {"caption": scene.caption, "classes": scene.classes}
            members = {
                scene.suffix: scene.image,
                ".mask.png": scene.mask,
                ".json": json.dumps(described).encode(),
            }
            for suffix, data in members.items():
                member = tarfile.TarInfo(scene.scene_id + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    output.write(shard_name("webdataset", shard.number), buffer.getvalue())


def shard_name(layout: str, number: int) -> str:
    """Return the file name of a shard of a layout that stores shards as files."""
    return f"scenes-{number:06d}.{'parquet' if layout == 'parquet' else 'tar'}"


WRITERS: dict[str, Callable[[Folder, SceneShard], None]] = {
    "folder": write_folder,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
