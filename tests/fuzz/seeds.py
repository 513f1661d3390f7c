"""Sound files of every format and container, drawn here, as the seeds of mutation."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tests.conftest import encode_image
from tests.images.pictures import icon, progressive_jpeg, tiff
from tests.pipelines.test_tar_stream import END, header, member, pax
from tests.tiny import ParameterTree


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def image_files() -> dict[str, bytes]:
    """Return one small file for each format and the variants whose decoders differ."""
    chance = np.random.default_rng(0)
    color = Image.fromarray(chance.integers(0, 255, (6, 8, 3), np.uint8)).resize((48, 36))
    clear = color.convert("RGBA")
    wide = Image.fromarray((np.arange(48 * 36, dtype=np.uint16) * 37).reshape(36, 48))
    real = Image.fromarray(np.linspace(0, 1, 48 * 36, dtype=np.float32).reshape(36, 48))
    frames = [color.rotate(90 * turn).quantize(16) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": _saved(color, "JPEG", exif=exif),
        "jpeg-progressive": _saved(color, "JPEG", progressive=True),
        "jpeg-scans": progressive_jpeg(12),
        "jpeg-gray": _saved(color.convert("L"), "JPEG"),
        "jpeg-cmyk": _saved(color.convert("CMYK"), "JPEG"),
        "mpo": _saved(color, "MPO", save_all=True, append_images=[color]),
        "png": _saved(color, "PNG"),
        "png-rgba": _saved(clear, "PNG"),
        "png-palette": _saved(color.quantize(8), "PNG"),
        "png-16": _saved(wide, "PNG"),
        "gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": _saved(color, "BMP"),
        "dib": _saved(color, "DIB"),
        "ppm": _saved(color, "PPM"),
        "tga": _saved(color, "TGA", compression="tga_rle"),
        "ico": _saved(clear, "ICO", sizes=[(16, 16), (32, 32)]),
        "ico-png": icon(_saved(clear, "PNG")),
        "webp": _saved(color, "WEBP"),
        "webp-lossless": _saved(clear, "WEBP", lossless=True),
        "jpeg2000": _saved(color, "JPEG2000"),
        "tiff-float": _saved(real, "TIFF"),
        "tiff-16": _saved(wide, "TIFF"),
        "tiff-colors-16": tiff((6, 8), np.arange(144, dtype=np.uint16).tobytes(), (16, 16, 16)),
    }
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff-{name}"] = _saved(color, "TIFF", compression=name)
    if "AVIF" in Image.SAVE:
        files["avif"] = _saved(color, "AVIF")
    return files | _plugin_files(color)


def _plugin_files(color: Image.Image) -> dict[str, bytes]:
    """Return HEIC and JPEG XL, where the extra "formats" is installed."""
    files = {}
    try:
        plugin: Any = import_module("pillow_heif")
        plugin.register_heif_opener()
        files["heic"] = _saved(color, "HEIF")
        import_module("pillow_jxl")
        files["jxl"] = _saved(color, "JXL")
    except ImportError:
        pass
    return files


def mask_files() -> dict[str, bytes]:
    """Return label images of every kind that is read."""
    labels = (np.arange(48 * 36) // 100).reshape(36, 48)
    gray = Image.fromarray(labels.astype(np.uint8))
    palette = gray.copy()
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
    return {
        "gray": _saved(gray, "PNG"),
        "palette": _saved(palette, "PNG"),
        "bits": _saved(gray.point(lambda value: 255 * (value % 2)).convert("1"), "PNG"),
        "gray-16": _saved(Image.fromarray(labels.astype(np.uint16)), "PNG"),
        "tiff": _saved(gray, "TIFF"),
    }


def tar_files() -> dict[str, bytes]:
    """Return shards as the usual writers make them, links, long names and compression included."""
    pictures = [encode_image(number) for number in range(4)]
    long_name = "a" * 150 + "/" + "b" * 120

    def build(layout: int, names: Mapping[str, bytes], link: bool = False) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=layout) as archive:
            for name, data in names.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if layout == tarfile.PAX_FORMAT:
                    member.pax_headers = {"comment": "x" * 40}
                archive.addfile(member, io.BytesIO(data))
            if link:
                member = tarfile.TarInfo("twin.jpg")
                member.type, member.linkname = tarfile.LNKTYPE, next(iter(names))
                archive.addfile(member)
        return stream.getvalue()

    plain = {f"{number:04d}.jpg": data for number, data in enumerate(pictures)}
    full = {**plain, "0000.json": b"{}", "0000.mask.png": encode_image(9, kind="PNG"), "._0001.jpg": b"junk"}
    plain_tar = build(tarfile.USTAR_FORMAT, plain)
    return {
        "ustar": build(tarfile.USTAR_FORMAT, full),
        "gnu-long": build(tarfile.GNU_FORMAT, {**plain, f"{long_name}.jpg": pictures[0]}, link=True),
        "pax-long": build(tarfile.PAX_FORMAT, {**plain, f"{long_name}é.jpg": pictures[1]}),
        "joined": plain_tar + build(tarfile.GNU_FORMAT, full),
        "holes": _holes(pictures[0]) + member("1.jpg", pictures[1]) + END,
        "gzip": gzip.compress(build(tarfile.USTAR_FORMAT, full), mtime=0),
        "bzip2": bz2.compress(plain_tar),
        "xz": lzma.compress(plain_tar),
        **{name: pa.compress(plain_tar, name, asbytes=True) for name in ("zstd", "lz4")},
    }


def _holes(picture: bytes) -> bytes:
    """Store a picture with holes behind it as GNU's old format does and as pax 0.1 does."""
    ends = b"".join(b"%011o\0" % number for number in (0, len(picture)))
    rest = {386: ends, 483: b"%011o\0" % (len(picture) + 4096)}
    content = picture + bytes(-len(picture) % 512)
    old = header(b"old.jpg", b"%011o\0" % len(picture), b"S", rest) + content
    records = [("GNU.sparse.name", "0.jpg"), ("GNU.sparse.size", f"{len(picture) + 4096}")]
    return old + pax([*records, ("GNU.sparse.map", f"0,{len(picture)}")]) + member("h/0.jpg", picture)


def parquet_files() -> dict[str, bytes]:
    """Return tables of image bytes, structs, addresses and dictionaries, in several encodings."""
    pictures = [encode_image(number, 12, 12) for number in range(12)]

    def build(column: pa.Array, **options: object) -> bytes:
        sink = pa.BufferOutputStream()
        table = pa.table({"id": pa.array([f"i{n}" for n in range(len(column))]), "image": column})
        pq.write_table(table, sink, **options)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    structs = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(pictures)]
    return {
        "bytes": build(pa.array(pictures, pa.binary()), row_group_size=5),
        "bytes-v2-zstd": build(pa.array(pictures), compression="zstd", data_page_version="2.0"),
        "bytes-no-dictionary": build(pa.array(pictures), use_dictionary=False, compression="snappy"),
        "structs": build(pa.array(structs), row_group_size=7),
        "dictionary": build(pa.array([pictures[n % 3] for n in range(12)]).dictionary_encode()),
        "addresses": build(pa.array([f"{number}.jpg" if number % 5 else None for number in range(12)])),
    }


def vocabulary_files() -> dict[str, bytes]:
    """Return vocabulary files, and files that people take for one, by their names."""
    named = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return {
        "lines.txt": b"background: sky, wall\ncat\ndog, puppy\nperson: man, woman\n",
        "commented.txt": "# words\nchat noir\nœil: eye, œil\n".encode(),
        "utf-16.txt": "cat\ndog\n".encode("utf-16"),
        "numbered.csv": b"id,name\n0,cat\n1,dog\n2,bird\n",
        "labelmap.txt": b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n",
        "list.json": json.dumps(["cat", ["dog", "puppy"], "b\u00e4r"]).encode(),
        "numbered.json": json.dumps({"0": "cat", "1": "dog"}).encode(),
        "coco.json": json.dumps({"categories": named, "images": []}).encode(),
        "names.yaml": b"names:\n  0: cat\n  1: dog\n",
        "phrases.yml": b"cat: [cat, kitten]\ndog: &d [dog]\nwolf: *d\n",
    }


def description_files() -> dict[str, bytes]:
    """Return sentences by class name."""
    sentences = {"cat": ["a small furry animal", "it purrs"], "dog": ["it b\u00e4rks"]}
    return {
        "plain.json": json.dumps(sentences, ensure_ascii=False).encode(),
        "escaped.json": json.dumps(sentences).encode(),
    }


def list_files() -> dict[str, bytes]:
    """Return lists of the files ``0.jpg``, ``1.jpg``, ... beside them, by their names."""
    entries = [{"id": number, "file_name": f"{number}.jpg", "width": 32} for number in range(4)]
    return {
        "lines.txt": b"\xef\xbb\xbf0.jpg\n# a comment\n\n./1.jpg\r\n  2.jpg \nbelow/../3.jpg\ngone.jpg\nfile:///0.jpg\n",
        "list.json": json.dumps(["0.jpg", "1.jpg", "2.jpg"]).encode(),
        "coco.json": json.dumps({"images": entries, "annotations": [], "categories": []}).encode(),
    }


def weight_files(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the weights of a model in every form that is read, by the names of the files.

    Args:
        state: The model's own tensors.
    """
    values = dict(state)
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(ParameterTree(values, {"input_resolution": 16})), archive)
    return {
        "openai.pt": archive.getvalue(),
        "state.pt": _torch_saved(values),
        "half.bin": _torch_saved({f"module.{key}": value.half() for key, value in values.items()}),
        "lightning.ckpt": _torch_saved(
            {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in values.items()}}
        ),
        "legacy.pt": _torch_saved(values, _use_new_zipfile_serialization=False),
        "model.safetensors": save_safetensors({key: value.contiguous() for key, value in values.items()}),
    }


def _torch_saved(values: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(values, stream, **options)
    return stream.getvalue()
