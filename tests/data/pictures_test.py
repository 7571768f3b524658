"""Crops of pictures: where they lie, how large they are, what JPEG's own scaling changes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kcd_jax import augment
from kcd_jax.data import pictures


def encoded(image: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, by one grey level a pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def test_random_crops_fill_the_bounds_of_area_and_aspect():
    random = np.random.RandomState(0)
    boxes = np.array([pictures.crop_box(random, 200, 100, (0.08, 0.5)) for _ in range(2000)], float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 200).all() and (boxes[:, 3] <= 100).all()
    share, aspect = width * height / 20_000, width / height
    assert 0.075 < share.min() < 0.1 and 0.47 < share.max() < 0.51  # whole pixels round
    assert 0.72 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.37
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 200  # corners reach every side


def test_a_picture_that_no_crop_fits_gives_its_middle():
    assert pictures.crop_box(np.random.RandomState(0), 1000, 10, (0.9, 1.0)) == (493, 0, 506, 10)
    assert pictures.crop_box(np.random.RandomState(0), 9, 900, (0.9, 1.0)) == (0, 444, 9, 456)


def test_host_and_device_draw_from_the_same_aspects():
    assert pictures.ASPECT == augment.ASPECT


def test_the_evaluation_crop_is_224_of_256():
    image = pictures.read(encoded(ramp(128, 192)), 112, lambda w, h: pictures.middle_box(w, h, pictures.EVALUATED))
    assert image.shape == (112, 112, 3)
    # 112 of the 128 rows, and the 112 columns in the middle of the 192: no scaling is left to do.
    np.testing.assert_array_equal(image, ramp(128, 192)[8:120, 40:152])


def test_a_random_crop_is_the_part_of_the_picture_that_its_box_says():
    source = pictures.CroppedPictures([encoded(ramp(200, 240))], 32, area=(0.1, 0.3))
    for seed in range(20):
        left, top, right, bottom = pictures.crop_box(np.random.RandomState(seed), 240, 200, (0.1, 0.3))
        image = source.crop(0, np.random.RandomState(seed)).astype(float)
        columns = left + (np.arange(32) + 0.5) * (right - left) / 32 - 0.5
        rows = top + (np.arange(32) + 0.5) * (bottom - top) / 32 - 0.5
        # Antialiasing is one-sided at the borders of the box, and pixels are rounded.
        np.testing.assert_allclose(image[2:-2, 2:-2, 0], np.broadcast_to(columns, (32, 32))[2:-2, 2:-2], atol=1.0)
        np.testing.assert_allclose(image[2:-2, 2:-2, 1], np.broadcast_to(rows[:, None], (32, 32))[2:-2, 2:-2], atol=1.0)


def test_jpeg_is_decoded_small_and_looks_the_same():
    smooth = np.asarray(Image.fromarray(ramp(25, 30)).resize((960, 800), Image.Resampling.BICUBIC))
    content = encoded(smooth, 'JPEG', quality=95)
    image = pictures.read(content, 40)
    assert image.shape == (40, 40, 3)
    expected = pictures.read(encoded(smooth), 40)
    assert np.abs(image.astype(int) - expected).max() <= 4


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_crops_follow_a_cameras_mark(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = pictures.read(encoded(ramp(60, 90), exif=exif), None)
    source = pictures.CroppedPictures([encoded(ramp(60, 90), exif=exif)], 16)
    plain = pictures.CroppedPictures([encoded(shown)], 16)
    np.testing.assert_array_equal(source.crop(0, np.random.RandomState(1)), plain.crop(0, np.random.RandomState(1)))
    np.testing.assert_array_equal(source[0], plain[0])


def test_what_cannot_be_decoded_is_one_line():
    with pytest.raises(ValueError, match='a record cannot be decoded') as error:
        pictures.read(b'nothing', 16)
    assert '\n' not in str(error.value)
