"""Synthetic photographs in a folder, to test and time what reads folders."""

from __future__ import annotations

import pathlib

import numpy as np


def folder(
    root: pathlib.Path,
    *,
    train: int,
    test: int,
    classes: int,
    used: int = 0,
    size: tuple[int, int] = (500, 375),
    detail: int = 4,
    quality: int = 93,
    seed: int = 0,
) -> pathlib.Path:
    """Writes root/train/CLASS/*.jpg and root/test/CLASS/*.jpg, and returns root.

    Args:
      root: the folder.
      train: training images, dealt in turn to the first `used` classes.
      test: test images, dealt likewise.
      classes: number of class folders.
      used: number of classes that get images (0: all).
      size: (width, height).
      detail: pixels of a patch; smaller patches take more bytes. At the default size, detail and quality a file has
        the 110 kB of ImageNet's average.
      quality: of the JPEG files.
      seed: of the pixels.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    width, height = size
    for split, number in (('train', train), ('test', test)):
        for label in range(classes):
            (root / split / f'class_{label:04d}').mkdir(parents=True, exist_ok=True)
        for point in range(number):
            label = point % (used or classes)
            coarse = random.integers(0, 256, (-(-height // detail), -(-width // detail), 3), np.uint8)
            colour = np.random.default_rng(label).integers(0, 256, 3, np.uint8)
            patches = Image.fromarray(coarse // 2 + colour // 2).resize(size, Image.Resampling.BICUBIC)
            grain = random.integers(-8, 9, (height, width, 1), np.int16)
            pixels = (np.asarray(patches).astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
            path = root / split / f'class_{label:04d}' / f'{point:06d}.jpg'
            Image.fromarray(pixels).save(path, quality=quality)
    return root


def by_pillow(file: str) -> None:
    """Decodes a picture by Pillow alone, to time it."""
    from PIL import Image

    with Image.open(file) as picture:
        picture.load()
