import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovss_core.api import ImageLike, OpenVocabSegmenter
from ovss_core.config import ModelConfig, SegmenterConfig, WindowConfig
from ovss_core.errors import ImageError, VocabularyError
from ovss_core.vocabulary import Vocabulary
from tests.images.pictures import encoded, png_header_only, tiff
from tests.tiny import NAME, random_picture, register_tiny_models, tiny_config


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> OpenVocabSegmenter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVSS_CACHE", str(tmp_path_factory.mktemp("cache")))
        register_tiny_models()
        return OpenVocabSegmenter.from_pretrained(
            NAME,
            "random",
            vocabulary=["cat, kitten", "sofa", "grass: lawn, meadow"],
            config=tiny_config(),
            device="cpu",
        )


def test_three_lines_label_a_picture(segmenter: OpenVocabSegmenter) -> None:
    result = segmenter.segment(random_picture(40, 56))
    assert result.label_map.shape == (40, 56)
    assert segmenter.vocabulary.names == ["cat", "sofa", "grass"]
    assert {entry.name for entry in result.present} <= {"cat", "sofa", "grass"}
    assert {entry.index for entry in result.kept} | {entry.index for entry in result.removed} == {0, 1, 2}


def test_picture_array_path_and_bytes_get_the_same_labels(
    segmenter: OpenVocabSegmenter, tmp_path: Path
) -> None:
    pixels = random_picture(33, 47)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    (tmp_path / "picture.png").write_bytes(stream.getvalue())
    forms: list[ImageLike] = [
        Image.fromarray(pixels),
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        stream.getvalue(),
    ]
    expected = segmenter.segment(pixels).label_map
    for form in forms:
        assert np.array_equal(segmenter.segment(form).label_map, expected)


def _files() -> dict[str, bytes]:
    """Draw pictures whose files hold more than plain pixels."""
    picture = Image.fromarray(random_picture(33, 47))
    frames = [Image.fromarray(random_picture(33, 47, seed)) for seed in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = picture.quantize(16)
    wide = np.asarray(picture.convert("L")).astype(np.uint16) * 16
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.arange(33 * 47, dtype=np.uint8).reshape(33, 47)))
    many = {"save_all": True, "append_images": frames[1:]}
    return {
        "turned.jpg": encoded(picture, "JPEG", exif=exif),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "gray.jpg": encoded(picture.convert("L"), "JPEG"),
        "turned.tif": encoded(picture, "TIFF", exif=exif),
        "clear_palette.png": encoded(palette, transparency=3),
        "clear.png": encoded(clear),
        "clear_gray.png": encoded(clear.convert("LA")),
        "turned.png": encoded(picture, exif=exif),
        "sixteen_bits.png": encoded(Image.fromarray(wide * 16)),
        "bits.png": encoded(picture.convert("1")),
        "twelve_bits.tif": encoded(Image.fromarray(wide), "TIFF"),
        "floats.tif": encoded(Image.fromarray(wide.astype(np.float32)), "TIFF"),
        "twelve_bit_colors.tif": tiff((33, 47), (np.asarray(picture).astype("<u2") * 16).tobytes(), [16] * 3),
        "moving.gif": encoded(frames[0], "GIF", **many),
        "moving.png": encoded(frames[0], "PNG", **many),
        "moving.webp": encoded(frames[0], "WEBP", lossless=True, **many),
        "pages.tif": encoded(frames[0], "TIFF", **many),
        "icon.ico": encoded(clear.resize((32, 32)), "ICO", sizes=[(32, 32)]),
    }


@pytest.mark.parametrize("name", _files())
@pytest.mark.parametrize("frame", [0, 1])
def test_one_picture_has_one_mask_whichever_way_it_comes_in(
    segmenter: OpenVocabSegmenter, tmp_path: Path, name: str, frame: int
) -> None:
    (tmp_path / name).write_bytes(_files()[name])
    expected = segmenter.segment(tmp_path / name).label_map
    np.testing.assert_array_equal(segmenter.segment(_files()[name]).label_map, expected)
    with Image.open(tmp_path / name) as picture:
        if frame < getattr(picture, "n_frames", 1):
            picture.seek(frame)
        for _ in range(2):  # unread, then loaded
            np.testing.assert_array_equal(segmenter.segment(picture).label_map, expected)
            if name == "twelve_bit_colors.tif":
                return  # once Pillow has loaded it, its low bytes are gone
            assert picture.tell() == min(frame, getattr(picture, "n_frames", 1) - 1)


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_a_picture_object_is_held_to_max_pixels_before_it_is_loaded(
    segmenter: OpenVocabSegmenter,
) -> None:
    with (
        Image.open(io.BytesIO(png_header_only(20_000, 6_000))) as picture,
        pytest.raises(ImageError, match="max_pixels"),
    ):
        segmenter.segment(picture)


def test_arrays_are_taken_as_they_are(segmenter: OpenVocabSegmenter) -> None:
    pixels = random_picture(33, 47)
    expected = segmenter.segment(pixels).label_map
    np.testing.assert_array_equal(segmenter.segment(np.asfortranarray(pixels)).label_map, expected)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(segmenter.segment(pixels).label_map, expected)


def test_a_list_gets_what_its_pictures_get_alone(segmenter: OpenVocabSegmenter) -> None:
    pictures = [random_picture(33, 47), random_picture(20, 90), random_picture(64, 64)]
    for picture, result in zip(pictures, segmenter.segment_batch(list(pictures)), strict=True):
        assert (result.label_map != segmenter.segment(picture).label_map).mean() <= 0.002
    assert segmenter.segment_batch([]) == []


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused(segmenter: OpenVocabSegmenter, pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"are no picture; give uint8 RGB \[height, width, 3\]"):
        segmenter.segment(pixels)


def test_a_broken_file_is_an_image_error(segmenter: OpenVocabSegmenter) -> None:
    with pytest.raises(ImageError):
        segmenter.segment(b"not an image")


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_a_picture_above_max_pixels_is_refused(segmenter: OpenVocabSegmenter) -> None:
    stream = io.BytesIO()
    Image.new("1", (10_001, 10_001)).save(stream, "PNG")
    with pytest.raises(ImageError, match="max_pixels"):
        segmenter.segment(stream.getvalue())


def test_descriptions_reach_the_text_side(segmenter: OpenVocabSegmenter, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVSS_CACHE", str(tmp_path))
        described = OpenVocabSegmenter.from_pretrained(
            NAME,
            "random",
            vocabulary=segmenter.vocabulary,
            descriptions={"sofa": ["a piece of furniture to sit on"]},
            config=SegmenterConfig(
                model=ModelConfig(precision="bfloat16"), windows=WindowConfig(32, 16, 48, 160)
            ),
            device="cpu",
        )
    first, second = (made.engine.text.description_embeddings for made in (segmenter, described))
    changed = (first - second).abs().amax(1) > 1e-4
    assert changed.tolist() == [False, True, False]
    assert described.engine.config.model == ModelConfig(NAME, "random", "bfloat16")


@pytest.mark.parametrize("source", ["voc21", Vocabulary.load("voc21"), ["a cat, a kitten"]])
def test_a_vocabulary_may_be_a_name_an_object_or_a_list(
    source: str | Vocabulary | list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    register_tiny_models()
    made = OpenVocabSegmenter.from_pretrained(
        NAME, "random", vocabulary=source, config=tiny_config(), device="cpu"
    )
    assert len(made.vocabulary) == (1 if isinstance(source, list) else 21)


def test_an_unknown_vocabulary_is_refused() -> None:
    with pytest.raises(VocabularyError, match="unknown vocabulary 'cats and dogs'"):
        OpenVocabSegmenter.from_pretrained(NAME, "random", vocabulary="cats and dogs", device="cpu")
