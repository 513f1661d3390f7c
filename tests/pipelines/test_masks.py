import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipelines.label.masks import decode_mask, encode_mask


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=20))
    )
)
def test_every_mask_comes_back_as_it_was_also_through_pillow(mask: np.ndarray) -> None:
    data = encode_mask(mask)
    decoded = decode_mask(data)
    assert decoded.dtype == mask.dtype
    np.testing.assert_array_equal(decoded, mask)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("L" if mask.dtype == np.uint8 else "I;16")
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_regions_compress_as_well_as_pillows_default() -> None:
    noise = np.random.default_rng(0).normal(size=(8, 12, 16)).astype(np.float32)
    smooth = [
        np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)) for coarse in noise
    ]
    mask = np.argmax(smooth, 0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    assert len(encode_mask(mask)) <= 1.1 * len(stream.getvalue())


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        encode_mask(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\)"):
        encode_mask(np.zeros((2, 2, 3), np.uint8))
