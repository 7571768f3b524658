"""From any of Pillow's modes to u8[H, W, 3], each by its own range of values.

Grey pictures of 16 bits have values up to 65,535, pictures of floats up to 1; Pillow's own conversion would clip both
at 255. Transparent pictures are put on white, or on black if they would be a single colour on white, as white drawings
are. What has no defined range is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SIXTEEN = 65535
_DIRECT = ('1', 'L', 'P', 'RGB', 'RGBX', 'CMYK', 'YCbCr', 'HSV')  # Pillow converts these by their range of 8 bits
_ALPHA = {'LA': 'RGBA', 'RGBA': 'RGBA', 'PA': 'RGBA', 'La': 'LA', 'RGBa': 'RGBA'}


def to_rgb(picture: Any) -> np.ndarray:
    """The pixels of an opened Pillow picture: u8[H, W, 3].

    Raises:
      ValueError: a mode or values without a defined range; the message names them.
    """
    mode = picture.mode
    if mode.startswith('I'):
        return _grey(np.asarray(picture).astype(np.int64), mode, _SIXTEEN)
    if mode == 'F':
        return _grey(np.asarray(picture), mode, 1)
    if mode in _ALPHA:
        return _flatten(picture.convert(_ALPHA[mode]).convert('RGBA'))
    if mode not in _DIRECT:
        raise ValueError(f'mode {mode} of Pillow is not supported; save it as RGB')
    if 'transparency' in picture.info:
        return _flatten(picture.convert('RGBA'))
    return np.asarray(picture if mode == 'RGB' else picture.convert('RGB'))


def _grey(values: np.ndarray, mode: str, most: int) -> np.ndarray:
    """[H, W] from 0 to `most` -> u8[H, W, 3]."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= most):  # NaN compares false
        raise ValueError(f'mode {mode} with values from {low:,g} to {high:,g}; save it with values from 0 to {most:,}')
    image = (values + 128) // 257 if most == _SIXTEEN else np.rint(values * np.float32(255))
    return image.astype(np.uint8)[..., None].repeat(3, axis=-1)


def _flatten(picture: Any) -> np.ndarray:
    """A picture of mode RGBA on white, or on black where white would hide all of it; opaque ones keep their bits."""
    image = np.asarray(picture)
    colour, alpha = image[..., :3], image[..., 3:].astype(np.uint32)
    if (alpha == 255).all():
        return np.ascontiguousarray(colour)
    for background in (255, 0):
        flat = ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)
        if flat.max(axis=(0, 1)).tolist() != flat.min(axis=(0, 1)).tolist():
            break
    return flat
