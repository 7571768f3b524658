"""TCIFAR-100: CIFAR-100 spoilt by a Gaussian, in training and test images alike.

The paper's words ("Gaussian artifacts, sigma = 1") leave open what is meant. Noise of one grey level is invisible, and
of one normalised unit destroys the image; a blur of one pixel fits the three points that the paper's student loses.
So `tcifar100` blurs by one pixel; `tcifar100:blur=2` blurs more, and `tcifar100:noise=16` adds grey levels of noise
instead. The noise of an image belongs to its place in the data: it is the same in every run.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data import prepared, tfds
from kcd_jax.data.base import Dataset, Loading, Split

NAME = 'tcifar100'
_DEFAULT = 'blur=1'
_CHUNK = 2048


def parse(name: str) -> tuple[str, float]:
    """'tcifar100:blur=2' -> ('blur', 2.0); ValueError when it is something else."""
    option = name.partition(':')[2] or _DEFAULT
    kind, _, text = option.partition('=')
    try:
        sigma = float(text)
    except ValueError:
        sigma = -1.0
    if kind not in ('blur', 'noise') or not 0.0 < sigma < 256.0:
        raise ValueError(
            f'data set {name!r} is not understood; use tcifar100, tcifar100:blur=PIXELS or tcifar100:noise=GREY_LEVELS'
        )
    return kind, sigma


def load(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> Dataset:
    """CIFAR-100 by way of TFDS, spoilt; labels, ids, order and constants stay those of CIFAR-100."""
    kind, sigma = parse(name)
    clean = tfds.load('cifar100', dir, cache, Loading(stream=False))
    source = prepared.find('cifar100', dir)
    assert source is not None  # it was loaded just now

    def make() -> tuple[cache_lib.Arrays, dict[str, str]]:
        spoil = _blur if kind == 'blur' else _noise
        return {'train': spoil(clean.train.images, sigma, 0), 'test': spoil(clean.test.images, sigma, 1)}, {}

    made_from = tfds.made_from(source) | {'spoilt': [kind, sigma]}
    arrays, _ = cache_lib.fetch(name, str(source.path.resolve()), made_from, make, cache)
    return dataclasses.replace(
        clean,
        name=name,
        train=Split(arrays['train'], clean.train.labels, clean.train.ids),
        test=Split(arrays['test'], clean.test.labels, clean.test.ids),
        description=f'{_words(kind, sigma)} over {clean.description}',
    )


def check(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on the data, without decoding any."""
    kind, sigma = parse(name)
    return f'{name}: {_words(kind, sigma)} over {tfds.check("cifar100", dir, cache)}'


def _words(kind: str, sigma: float) -> str:
    return f'a Gaussian blur of {sigma:g} px' if kind == 'blur' else f'Gaussian noise of {sigma:g} grey levels'


def _blur(images: np.ndarray, sigma: float, split: int) -> np.ndarray:
    """u8[N, H, W, C] -> the same, each channel blurred; the border is mirrored."""
    from scipy import ndimage

    del split
    result = np.empty_like(images)
    for first in range(0, len(images), _CHUNK):
        part = images[first : first + _CHUNK].astype(np.float32)
        result[first : first + _CHUNK] = np.rint(ndimage.gaussian_filter(part, (0, sigma, sigma, 0))).clip(0, 255)
    return result


def _noise(images: np.ndarray, sigma: float, split: int) -> np.ndarray:
    """u8[N, H, W, C] -> the same with noise that is seeded by the split and the image's place."""
    result = np.empty_like(images)
    for point, image in enumerate(images):
        noise = np.random.RandomState([split, point]).normal(0.0, sigma, image.shape)
        result[point] = np.rint(image + noise).clip(0, 255)
    return result
