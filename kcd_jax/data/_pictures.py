"""From encoded pictures to u8[H, W, 3]: as they are, their centre, or a random resized crop.

Every mode becomes RGB (`_modes`), and a camera's orientation tag is followed. A JPEG is decoded at a half, a quarter or
an eighth of its size where that is still enough.

Pillow opens every picture. An ordinary JPEG is then decoded by simplejpeg, into the same pixels as Pillow's, and crops
are scaled by cykooz_resizer, within one grey level of Pillow; where there is no such resizer (Linux on ARM), Pillow
scales. `FILTER` names the one that does.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import math
import os
import re
from typing import Any

import numpy as np

from kcd_jax.data import _modes

ASPECT = (3 / 4, 4 / 3)  # a random crop's width over its height, log-uniform; augment.ASPECT, without importing jax
_TRIES = 10
EVALUATED = 224 / 256  # of the shorter side: resize to 256, cut the middle 224
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_RESIZER = importlib.util.find_spec('cykooz_resizer') is not None
FILTER = 'bilinear, cykooz_resizer' if _RESIZER else 'bilinear'  # what scaled pixels depend on


def crop_box(
    random: np.random.RandomState, width: int, height: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop: Inception's, as in every ImageNet recipe.

    Its share of the picture and its aspect are drawn until it lies within the picture, at most ten times; after that
    it is the central crop of the nearest allowed aspect.
    """
    draws = random.random_sample((_TRIES, 4))
    for share, aspect, x, y in draws.tolist():
        size = width * height * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(math.log(ASPECT[0]) + aspect * math.log(ASPECT[1] / ASPECT[0]))
        w, h = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h


def middle_box(width: int, height: int, share: float = 1.0) -> tuple[float, float, float, float]:
    """The central square whose side is `share` of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def shrinkage(width: int, height: int, scale: float) -> int:
    """The largest of 8, 4, 2 and 1 by which a JPEG can be decoded smaller and still has `scale` of its sides."""
    least = min(width // math.ceil(width * scale), height // math.ceil(height * scale)) if scale < 1 else 1
    return max(shrink for shrink in (1, 2, 4, 8) if shrink <= least)


def _decode(picture: Any, orientation: int, shrink: int = 1) -> np.ndarray:
    """An opened picture as it is shown: u8[H, W, 3], a JPEG `shrink` times smaller."""
    width, height = picture.size
    if picture.format == 'JPEG' and picture.mode in ('RGB', 'L') and orientation == 1:
        import simplejpeg

        picture.fp.seek(0)
        least = {'min_width': -(-width // shrink), 'min_height': -(-height // shrink)}
        try:
            return simplejpeg.decode_jpeg(picture.fp.read(), 'RGB', **least)
        except ValueError:  # it refuses every warning; Pillow tolerates some, and its errors are clearer
            pass
    from PIL import ImageOps

    picture.draft('RGB', (width // shrink, height // shrink))
    return _modes.to_rgb(ImageOps.exif_transpose(picture) if orientation != 1 else picture)


def _scale(image: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """The part of u8[H, W, 3] within (left, top, right, bottom), antialiased, bilinear: u8[size, size, 3]."""
    if not _RESIZER:
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
    import cykooz_resizer as resizer

    left, top, right, bottom = box
    options = resizer.ResizeOptions(
        resizer.ResizeAlg.convolution(resizer.FilterType.bilinear),
        crop_box=resizer.CropBox(left, top, right - left, bottom - top),
    )
    height, width, _ = image.shape
    source = resizer.ImageData(width, height, resizer.PixelType.U8x3, image.tobytes())
    scaled = resizer.ImageData(size, size, resizer.PixelType.U8x3)
    resizer.Resizer().resize(source, scaled, options)
    return np.frombuffer(scaled.get_buffer(), np.uint8).reshape(size, size, 3)


def _cut(picture: Any, orientation: int, size: int, box: Any) -> np.ndarray:
    """The part box(width, height) of an opened picture, as it is shown, scaled: u8[size, size, 3]."""
    width, height = picture.size[::-1] if orientation in _SWAPPED else picture.size
    left, top, right, bottom = box(width, height)
    image = _decode(picture, orientation, shrinkage(width, height, size / min(right - left, bottom - top)))
    down, across = image.shape[:2]
    x, y = across / width, down / height
    # Rounding must not move the crop beyond the border.
    return _scale(image, size, (left * x, top * y, min(right * x, across), min(bottom * y, down)))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A source for `Images`: encoded pictures in files or records.

    Attributes:
      encoded: encoded[i] -> a path, or bytes.
      size: of the result; None: pictures keep their size.
      share: fraction of the shorter side that the central crop covers.
      content: identifies the pictures.
    """

    encoded: Any
    size: int | None = None
    share: float = 1.0
    content: str = ''

    def __getitem__(self, point: int) -> np.ndarray:
        return read(self.encoded[point], self.size, functools.partial(middle_box, share=self.share))


@dataclasses.dataclass(frozen=True)
class CroppedPictures(Pictures):
    """The same, with random crops for training; area: bounds of a crop's share of the picture."""

    area: tuple[float, float] = (0.08, 1.0)

    def crop(self, point: int, random: np.random.RandomState) -> np.ndarray:
        """A random resized crop: u8[size, size, 3]."""
        return read(self.encoded[point], self.size, lambda width, height: crop_box(random, width, height, self.area))


def source(encoded: Any, size: int | None, share: float, area: tuple[float, ...], content: str) -> Pictures:
    """`CroppedPictures` where an `area` is given and pictures are scaled to one `size`, else `Pictures`."""
    content = f'{content} {size} {share}'
    if area and size:
        return CroppedPictures(encoded, size, share, content, area)
    return Pictures(encoded, size, share, content)


def read(encoded: str | os.PathLike[str] | bytes, size: int | None, box: Any = middle_box) -> np.ndarray:
    """A decoded picture: u8[size, size, 3], or of its own size; ValueError if it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as picture:
            orientation = picture.getexif().get(0x0112, 1)
            return _decode(picture, orientation) if size is None else _cut(picture, orientation, size, box)
    except Exception as error:  # Pillow's formats raise many kinds
        where = 'a record' if isinstance(encoded, bytes) else str(encoded)
        raise ValueError(
            f'{where} cannot be decoded ({reason(error, where)}); was it changed since it was checked?'
        ) from error


def reason(error: BaseException, path: str = '') -> str:
    """The first line of an error message, without the file that Pillow names in it: `path`, or an object."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    named = rf'|{re.escape(repr(path))}' if path else ''
    return re.sub(rf'\s*(<_io\.\S+ object at \w+>{named})', '', line)[:120]
