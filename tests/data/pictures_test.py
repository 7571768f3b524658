"""Crops of pictures: where they lie, how large they are, what JPEG's own scaling changes."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, ImageOps

from kcd_jax.data import _pictures as pictures
from kcd_jax.training import augment


def encoded(image: np.ndarray, kind: str = 'PNG', **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, by one grey level a pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def noise(height: int, width: int, mode: str = 'RGB') -> Image.Image:
    random = np.random.default_rng(height * width)
    coarse = random.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image: Image.Image, kind: str = 'JPEG', **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(content: bytes, size: int | None = None, box=pictures.middle_box) -> np.ndarray:
    """What Pillow alone makes of a picture."""
    with Image.open(io.BytesIO(content)) as picture:
        width, height = ImageOps.exif_transpose(picture).size
        with Image.open(io.BytesIO(content)) as picture:
            if size is None:
                return np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))
            left, top, right, bottom = box(width, height)
            scale = size / min(right - left, bottom - top)
            if scale < 1:
                picture.draft('RGB', tuple(math.ceil(side * scale) for side in picture.size))
            image = ImageOps.exif_transpose(picture).convert('RGB')
            x, y = image.width / width, image.height / height
            box = (left * x, top * y, right * x, bottom * y)
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of what simplejpeg decoded."""
    sizes: list[tuple[int, int]] = []
    original = simplejpeg.decode_jpeg

    def decode(*arguments, **keywords) -> np.ndarray:
        image = original(*arguments, **keywords)
        sizes.append(image.shape[:2])
        return image

    monkeypatch.setattr(simplejpeg, 'decode_jpeg', decode)
    return sizes


JPEGS = {
    'plain': {},
    'full colours': {'subsampling': 0},
    'half colours': {'subsampling': 1, 'quality': 40},
    'progressive': {'progressive': True},
    'restarts': {'restart_marker_blocks': 3},
    'profile': {'icc_profile': b'x' * 70_000, 'comment': b'a remark'},
}


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('options', JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize('side', [(1, 1), (7, 5), (97, 131), (240, 320)])
def test_a_jpeg_has_the_pixels_of_pillow(side: tuple[int, int], options: dict, mode: str, decoded: list):
    content = file_of(noise(*side, mode), **options)
    np.testing.assert_array_equal(pictures.read(content, None), by_pillow(content))
    for size, box in (
        (24, pictures.middle_box),
        (80, lambda w, h: pictures.middle_box(w, h, 0.875)),
        (400, pictures.middle_box),
    ):
        found, expected = pictures.read(content, size, box), by_pillow(content, size, box)
        # The resizer rounds its coefficients to fewer bits.
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert len(decoded) == 4 and decoded[0] == side


@pytest.mark.parametrize('shrink', [1, 2, 4, 8])
def test_a_jpeg_is_decoded_as_small_as_is_enough(shrink: int, decoded: list):
    pictures.read(file_of(noise(240, 320)), 240 // shrink)
    pictures.read(file_of(noise(240, 320)), 240 // shrink + 1)
    assert decoded == [(240 // shrink, 320 // shrink), (240 // max(1, shrink // 2), 320 // max(1, shrink // 2))]


ODD = {
    'CMYK': lambda: file_of(noise(50, 70).convert('CMYK')),
    'mark': lambda: file_of(noise(50, 70), exif=b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0'),
    'grey': lambda: file_of(noise(50, 70, 'L'), 'PNG'),
    'palette': lambda: file_of(noise(50, 70).quantize(16), 'PNG'),
    'alpha': lambda: file_of(noise(50, 70, 'RGBA'), 'PNG'),
    'one bit': lambda: file_of(noise(50, 70, '1'), 'PNG'),
    'GIF': lambda: file_of(noise(50, 70), 'GIF'),
    'WebP': lambda: file_of(noise(50, 70), 'WEBP', lossless=True),
    'BMP': lambda: file_of(noise(50, 70), 'BMP'),
    'two pictures': lambda: file_of(noise(50, 70), 'MPO', save_all=True, append_images=[noise(50, 60)]),
    'garbage behind': lambda: file_of(noise(50, 70)) + b'garbage',
    'garbage within': lambda: (content := file_of(noise(50, 70)))[:900] + b'\xff\xd9\0' + content[903:],
}  # fmt: skip


@pytest.mark.parametrize('kind', ODD)
def test_other_formats_match_pillow(kind: str, decoded: list):
    content = ODD[kind]()
    np.testing.assert_array_equal(pictures.read(content, None), by_pillow(content))
    assert np.abs(pictures.read(content, 20).astype(int) - by_pillow(content, 20)).max() <= 1
    assert bool(decoded) == (kind == 'garbage behind')


def test_a_truncated_jpeg_is_refused_as_by_pillow(monkeypatch: pytest.MonkeyPatch):
    content = file_of(noise(240, 320))
    content = content[: len(content) // 2]
    for size in (None, 60):
        with pytest.raises(ValueError, match='image file is truncated'):
            pictures.read(content, size)
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    np.testing.assert_array_equal(pictures.read(content, None), by_pillow(content))


def test_without_the_resizer_pillow_scales(monkeypatch: pytest.MonkeyPatch):
    content = file_of(noise(97, 131))
    monkeypatch.setattr(pictures, '_RESIZER', False)
    for size in (24, 80, 200):
        np.testing.assert_array_equal(pictures.read(content, size), by_pillow(content, size))


def test_a_box_may_end_at_the_border(decoded: list):
    random = np.random.RandomState(0)
    for _ in range(200):
        height, width = random.randint(9, 70, 2)
        content = file_of(noise(height, width))
        share = random.uniform(0.5, 1)
        left, top = width * (1 - share), height * (1 - share)
        assert pictures.read(content, 5, lambda w, h, at=(left, top): (*at, w, h)).shape == (5, 5, 3)


def test_random_crops_fill_the_bounds_of_area_and_aspect():
    random = np.random.RandomState(0)
    boxes = np.array([pictures.crop_box(random, 200, 100, (0.08, 0.5)) for _ in range(2000)], float)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 200).all() and (boxes[:, 3] <= 100).all()
    share, aspect = width * height / 20_000, width / height
    assert 0.075 < share.min() < 0.1 and 0.47 < share.max() < 0.51  # whole pixels round
    assert 0.72 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.37
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 200  # corners reach every side


def test_a_picture_that_no_crop_fits_gives_its_centre():
    assert pictures.crop_box(np.random.RandomState(0), 1000, 10, (0.9, 1.0)) == (493, 0, 506, 10)
    assert pictures.crop_box(np.random.RandomState(0), 9, 900, (0.9, 1.0)) == (0, 444, 9, 456)


def test_host_and_device_draw_from_the_same_aspects():
    assert pictures.ASPECT == augment.ASPECT


def test_the_evaluation_crop_is_224_of_256():
    image = pictures.read(encoded(ramp(128, 192)), 112, lambda w, h: pictures.middle_box(w, h, pictures.EVALUATED))
    assert image.shape == (112, 112, 3)
    # 112 of the 128 rows, and the 112 columns in the middle of the 192: no scaling is left to do.
    np.testing.assert_array_equal(image, ramp(128, 192)[8:120, 40:152])


def test_a_random_crop_is_the_part_inside_its_box():
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
def test_crops_follow_the_orientation_tag(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = pictures.read(encoded(ramp(60, 90), exif=exif), None)
    source = pictures.CroppedPictures([encoded(ramp(60, 90), exif=exif)], 16)
    plain = pictures.CroppedPictures([encoded(shown)], 16)
    np.testing.assert_array_equal(source.crop(0, np.random.RandomState(1)), plain.crop(0, np.random.RandomState(1)))
    np.testing.assert_array_equal(source[0], plain[0])


def test_an_undecodable_picture_raises_one_line():
    with pytest.raises(ValueError, match='a record cannot be decoded') as error:
        pictures.read(b'nothing', 16)
    assert '\n' not in str(error.value)
