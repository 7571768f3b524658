"""From encoded pictures to u8[H, W, 3]: as they are, their middle, or a random resized crop.

Grey, CMYK, palette and transparent pictures become RGB, and a camera's rotation mark is followed. A JPEG is decoded at
a half, a quarter or an eighth of its size where that is still enough.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from typing import Any

import numpy as np

ASPECT = (3 / 4, 4 / 3)  # a random crop's width over its height, log-uniform; augment.ASPECT, without importing jax
_TRIES = 10
EVALUATED = 224 / 256  # of the shorter side: resize to 256, cut the middle 224
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def crop_box(
    random: np.random.RandomState, width: int, height: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop: Inception's, as every ImageNet recipe has it.

    Its share of the picture, within `area`, and its aspect are drawn until the crop lies within the picture, ten times
    at most; then it is the middle, of the nearest allowed aspect.
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
    """The square in the middle whose side is `share` of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _upright(picture: Any, orientation: int) -> Any:
    """The opened picture in RGB as it is shown; not copied where it is that already."""
    from PIL import ImageOps

    shown = ImageOps.exif_transpose(picture) if orientation != 1 else picture
    return shown if shown.mode == 'RGB' else shown.convert('RGB')


def _orientation(picture: Any) -> int:
    return picture.getexif().get(0x0112, 1)


def whole(picture: Any) -> np.ndarray:
    """An opened picture as it is: u8[H, W, 3]."""
    return np.asarray(_upright(picture, _orientation(picture)))


def cut(picture: Any, size: int, box: Any) -> np.ndarray:
    """A part of an opened picture, scaled: u8[size, size, 3].

    Args:
      box: (width, height) -> (left, top, right, bottom), of the picture as it is shown.
    """
    from PIL import Image

    orientation = _orientation(picture)
    width, height = picture.size[::-1] if orientation in _SWAPPED else picture.size
    left, top, right, bottom = box(width, height)
    scale = size / min(right - left, bottom - top)
    if scale < 1:
        picture.draft('RGB', tuple(math.ceil(side * scale) for side in picture.size))
    image = _upright(picture, orientation)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, right * x, bottom * y)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A source for `base.Images`: pictures that lie encoded somewhere.

    Attributes:
      encoded: encoded[i] -> a path, or bytes. size: of the result; None: pictures are taken as they are.
      share: of the shorter side that is seen in the middle.
    """

    encoded: Any
    size: int | None = None
    share: float = 1.0

    def __getitem__(self, point: int) -> np.ndarray:
        return self._read(point, lambda width, height: middle_box(width, height, self.share))

    def _read(self, point: int, box: Any) -> np.ndarray:
        return read(self.encoded[point], self.size, box)


@dataclasses.dataclass(frozen=True)
class CroppedPictures(Pictures):
    """The same, out of which training cuts at random; area: bounds of a crop's share of the picture."""

    area: tuple[float, float] = (0.08, 1.0)

    def crop(self, point: int, random: np.random.RandomState) -> np.ndarray:
        """A random resized crop: u8[size, size, 3]."""
        return self._read(point, lambda width, height: crop_box(random, width, height, self.area))


def source(encoded: Any, size: int | None, share: float, area: tuple[float, ...]) -> Pictures:
    """`CroppedPictures` where an `area` is given and pictures are scaled to one `size`, else `Pictures`."""
    return CroppedPictures(encoded, size, share, area) if area and size else Pictures(encoded, size, share)


def read(encoded: str | os.PathLike[str] | bytes, size: int | None, box: Any = middle_box) -> np.ndarray:
    """A picture, decoded: u8[size, size, 3], or of its own size.

    Raises:
      ValueError: it cannot be decoded, whatever Pillow raises.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as picture:
            return whole(picture) if size is None else cut(picture, size, box)
    except Exception as error:  # Pillow's formats raise all sorts
        where = 'a record' if isinstance(encoded, bytes) else str(encoded)
        raise ValueError(
            f'{where} cannot be decoded ({reason(error)}); was it changed since it was checked?'
        ) from error


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
