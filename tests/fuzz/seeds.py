"""Sound files of every format and container, drawn here, as the seeds of mutation."""

import bz2
import gzip
import io
import json
import tarfile
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import encode_image


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def image_files() -> dict[str, bytes]:
    """Return one small file for each format and the variants whose decoders differ."""
    chance = np.random.default_rng(0)
    colour = Image.fromarray(chance.integers(0, 255, (6, 8, 3), np.uint8)).resize((48, 36))
    clear = colour.convert("RGBA")
    wide = Image.fromarray((np.arange(48 * 36, dtype=np.uint16) * 37).reshape(36, 48))
    real = Image.fromarray(np.linspace(0, 1, 48 * 36, dtype=np.float32).reshape(36, 48))
    frames = [colour.rotate(90 * turn).quantize(16) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": _saved(colour, "JPEG", exif=exif),
        "jpeg-progressive": _saved(colour, "JPEG", progressive=True),
        "jpeg-grey": _saved(colour.convert("L"), "JPEG"),
        "jpeg-cmyk": _saved(colour.convert("CMYK"), "JPEG"),
        "mpo": _saved(colour, "MPO", save_all=True, append_images=[colour]),
        "png": _saved(colour, "PNG"),
        "png-rgba": _saved(clear, "PNG"),
        "png-palette": _saved(colour.quantize(8), "PNG"),
        "png-16": _saved(wide, "PNG"),
        "gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": _saved(colour, "BMP"),
        "dib": _saved(colour, "DIB"),
        "ppm": _saved(colour, "PPM"),
        "tga": _saved(colour, "TGA", compression="tga_rle"),
        "ico": _saved(clear, "ICO", sizes=[(16, 16), (32, 32)]),
        "webp": _saved(colour, "WEBP"),
        "webp-lossless": _saved(clear, "WEBP", lossless=True),
        "jpeg2000": _saved(colour, "JPEG2000"),
        "tiff-float": _saved(real, "TIFF"),
        "tiff-16": _saved(wide, "TIFF"),
    }
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff-{name}"] = _saved(colour, "TIFF", compression=name)
    if "AVIF" in Image.SAVE:
        files["avif"] = _saved(colour, "AVIF")
    return files


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
    return {
        "ustar": build(tarfile.USTAR_FORMAT, full),
        "gnu-long": build(tarfile.GNU_FORMAT, {**plain, f"{long_name}.jpg": pictures[0]}, link=True),
        "pax-long": build(tarfile.PAX_FORMAT, {**plain, f"{long_name}é.jpg": pictures[1]}),
        "joined": build(tarfile.USTAR_FORMAT, plain) + build(tarfile.GNU_FORMAT, full),
        "gzip": gzip.compress(build(tarfile.USTAR_FORMAT, full)),
        "bzip2": bz2.compress(build(tarfile.USTAR_FORMAT, plain)),
    }


def parquet_files() -> dict[str, bytes]:
    """Return tables of image bytes, structs, addresses and dictionaries, in several encodings."""
    pictures = [encode_image(number, 12, 12) for number in range(40)]

    def build(column: pa.Array, **options: object) -> bytes:
        sink = pa.BufferOutputStream()
        table = pa.table({"id": pa.array([f"i{n}" for n in range(len(column))]), "image": column})
        pq.write_table(table, sink, **options)
        data: bytes = sink.getvalue().to_pybytes()
        return data

    structs = [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(pictures)]
    return {
        "bytes": build(pa.array(pictures, pa.binary()), row_group_size=16),
        "bytes-v2-zstd": build(pa.array(pictures), compression="zstd", data_page_version="2.0"),
        "bytes-no-dictionary": build(pa.array(pictures), use_dictionary=False, compression="snappy"),
        "structs": build(pa.array(structs), row_group_size=7),
        "dictionary": build(pa.array([pictures[n % 3] for n in range(40)]).dictionary_encode()),
        "addresses": build(pa.array([f"{number}.jpg" if number % 5 else None for number in range(40)])),
    }


def vocabulary_files() -> dict[str, bytes]:
    """Return vocabulary files, and files that people take for one."""
    return {
        "lines": b"background: sky, wall\ncat\ndog, puppy\nperson: man, woman\n",
        "commented": "# words\nchat noir\nœil: eye, œil\n".encode(),
        "json": json.dumps(["cat", "dog"]).encode(),
        "csv": b"id,name\n1,cat\n2,dog\n",
        "labelmap": b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n",
    }
