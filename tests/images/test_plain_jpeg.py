import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovss_core.errors import ImageError
from ovss_core.images import plain_jpeg
from ovss_core.images.decode import EncodedImage
from tests.conftest import encode_image

pytest.importorskip("simplejpeg")
LIMIT = 10**6


def jpeg(height: int = 35, width: int = 50, mode: str = "RGB", **options: Any) -> bytes:
    pixels = Image.open(io.BytesIO(encode_image(3, height, width, "PNG"))).convert(mode)
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", **options)
    return stream.getvalue()


def exif(orientation: int | None, **options: Any) -> bytes:
    block = Image.Exif()
    block[0x010E] = "a text that does not fit into its entry"
    if orientation is not None:
        block[0x0112] = orientation
    return jpeg(exif=block, **options)


def decoded(data: bytes) -> np.ndarray | str:
    try:
        return EncodedImage(data, LIMIT).pixels()
    except ImageError as error:
        return str(error)


def by_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray | str:
    with monkeypatch.context() as patch:
        patch.setattr(plain_jpeg, "simplejpeg", None)
        return decoded(data)


USUAL = {
    **{f"subsampling {kind}": jpeg(subsampling=kind) for kind in range(3)},
    "progressive": jpeg(progressive=True),
    "gray": jpeg(mode="L"),
    "restarts": jpeg(restart_marker_blocks=2),
    "one pixel": jpeg(1, 1),
    "no orientation": exif(None),
    **{f"orientation {value}": exif(value) for value in range(1, 9)},
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_jpegs_are_decoded_without_pillow_to_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = USUAL[name]
    plain = plain_jpeg.PlainJpeg.of(data, LIMIT)
    assert plain is not None
    assert plain.pixels() is not None
    np.testing.assert_array_equal(decoded(data), by_pillow(data, monkeypatch))


UNUSUAL = {
    "CMYK": jpeg(mode="CMYK"),
    "colors kept as RGB": jpeg(keep_rgb=True),
    "orientation in XMP": jpeg(xmp=b'<x tiff:Orientation="6"/>'),
    "orientation in XMP beside EXIF": exif(None, xmp=b'<x tiff:Orientation="6"/>'),
    "orientation that is none": exif(9),
    "a PNG": encode_image(0, kind="PNG"),
    "no file": b"",
    "a hundred scans": jpeg().replace(b"\xff\xd9", b"\xff\xda" * 101 + b"\xff\xd9"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_are_left_to_pillow(name: str) -> None:
    assert plain_jpeg.PlainJpeg.of(UNUSUAL[name], LIMIT) is None


def test_more_pixels_than_allowed_are_refused_as_before() -> None:
    assert plain_jpeg.PlainJpeg.of(jpeg(), 100) is None
    with pytest.raises(ImageError, match="max_pixels"):
        EncodedImage(jpeg(), 100)


def test_damaged_files_give_what_pillow_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    sources = [*USUAL.values(), *UNUSUAL.values()]
    seen = {"error": 0, "pixels": 0}
    for _ in range(600):
        data = bytearray(chance.choice([source for source in sources if source]))
        if chance.random() < 0.3:
            del data[chance.randrange(2, len(data)) :]
        else:
            for _ in range(chance.choice((1, 2, 5))):
                data[chance.randrange(min(len(data), chance.choice((300, 10**6))))] = chance.randrange(256)
        found, expected = decoded(bytes(data)), by_pillow(bytes(data), monkeypatch)
        if isinstance(expected, str):
            assert found == expected
        else:
            np.testing.assert_array_equal(found, expected)
        seen["error" if isinstance(expected, str) else "pixels"] += 1
    assert min(seen.values()) > 100


def test_without_the_library_pillow_decodes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_jpeg, "simplejpeg", None)
    assert plain_jpeg.PlainJpeg.of(jpeg(), LIMIT) is None
