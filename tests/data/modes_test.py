"""Every mode of Pillow becomes RGB by its own range of values, or is refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kcd_jax.data import _modes, _pictures

GREY = np.arange(24 * 10, dtype=np.uint8).reshape(24, 10)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def through(image: Image.Image, kind: str, **options) -> np.ndarray:
    """u8[H, W, 3] of a picture that was saved and read again."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return _pictures.read(stream.getvalue(), None)


def of_mode(array: np.ndarray, mode: str) -> Image.Image:
    """An array as a picture of a mode that `fromarray` does not derive from its dtype."""
    return Image.frombytes(mode, array.shape[1::-1], array.tobytes())


GREYS = {
    'PNG of 16 bits': lambda: through(Image.fromarray(GREY.astype(np.uint16) * 257), 'PNG'),
    'TIFF of 16 bits': lambda: through(Image.fromarray(GREY.astype(np.uint16) * 257), 'TIFF'),
    'TIFF of 16 bits, big-endian': lambda: through(of_mode((GREY.astype('>u2') * 257).astype('>u2'), 'I;16B'), 'TIFF'),
    'TIFF of 32 bits': lambda: through(Image.fromarray(GREY.astype(np.int32) * 257), 'TIFF'),
    'TIFF of floats': lambda: through(Image.fromarray(GREY.astype(np.float32) / 255), 'TIFF'),
    'PNG of 8 bits': lambda: through(Image.fromarray(GREY), 'PNG'),
    'opaque LA': lambda: through(Image.fromarray(GREY).convert('LA'), 'PNG'),
}


@pytest.mark.parametrize('kind', GREYS)
def test_greys_keep_their_levels(kind: str):
    np.testing.assert_array_equal(GREYS[kind](), GREY[..., None].repeat(3, axis=-1))


def test_sixteen_bits_are_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(values / 257 + 0.5)  # no value lies half way
    np.testing.assert_array_equal(through(Image.fromarray(values), 'PNG')[..., 0], expected)


def test_one_bit_is_black_and_white():
    image = through(Image.fromarray(GREY > 100), 'PNG')
    np.testing.assert_array_equal(image[..., 1], np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize('mode', ['CMYK', 'YCbCr', 'HSV', 'RGBX', 'P'])
def test_other_colour_spaces_are_as_pillow_converts_them(mode: str):
    picture = Image.fromarray(COLOUR).convert(mode)
    np.testing.assert_array_equal(_modes.to_rgb(picture), np.asarray(picture.convert('RGB')))


def composed(colour: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    """The plain formula of transparency."""
    share = alpha[..., None] / 255.0
    return colour * share + background * (1 - share)


@pytest.mark.parametrize('mode', ['RGBA', 'RGBa'])
def test_transparent_pictures_lie_on_white(mode: str):
    alpha = GREY.T.copy().reshape(GREY.shape)
    rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
    # Premultiplied colours lose bits where they are nearly transparent, and nearly nothing of these is seen.
    np.testing.assert_allclose(_modes.to_rgb(rgba.convert(mode)), composed(COLOUR, alpha, 255), atol=1.5)


@pytest.mark.parametrize(('shade', 'background'), [(0, 255), (255, 0)])
def test_a_drawing_in_the_alpha_channel_stays_visible(shade: int, background: int):
    alpha = np.zeros((16, 16), np.uint8)
    alpha[4:12, 4:12] = 255
    for picture in (
        Image.fromarray(np.dstack([np.full((16, 16, 3), shade, np.uint8), alpha])),
        Image.merge('LA', [Image.new('L', (16, 16), shade), Image.fromarray(alpha)]),
    ):
        image = through(picture, 'PNG')
        assert (image[4:12, 4:12] == shade).all() and (image[:4] == background).all()


def test_a_transparent_colour_of_a_palette_or_of_grey_is_the_background():
    palette = Image.fromarray((GREY > 100).astype(np.uint8), 'L').convert('P')
    palette.putpalette([10, 20, 30, 200, 100, 0])
    image = through(palette, 'PNG', transparency=0)
    np.testing.assert_array_equal(image, np.where((GREY > 100)[..., None], [200, 100, 0], 255))
    image = through(Image.fromarray(GREY), 'PNG', transparency=7)
    np.testing.assert_array_equal(image[..., 0], np.where(GREY == 7, 255, GREY))


@pytest.mark.parametrize(
    ('picture', 'words'),
    [
        (lambda: Image.fromarray(GREY.astype(np.int32) - 5), 'mode I with values from -5 to'),
        (lambda: Image.fromarray(GREY.astype(np.int32) * 300), 'save it with values from 0 to 65,535'),
        (lambda: Image.fromarray(GREY.astype(np.float32)), 'mode F with values from 0 to 239; save it with'),
        (lambda: Image.fromarray(np.full((4, 4), np.nan, np.float32)), 'mode F with values from nan'),
        (lambda: Image.new('LAB', (4, 4)), 'mode LAB of Pillow is not supported'),
    ],
)
def test_values_without_a_range_are_refused_by_name(picture, words: str):
    with pytest.raises(ValueError) as error:
        through(picture(), 'TIFF')
    assert words in str(error.value) and '\n' not in str(error.value)
