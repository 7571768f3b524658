"""TCIFAR-100: CIFAR-100 degraded by a Gaussian, training and test images alike.

The paper's words ("Gaussian artifacts, sigma = 1") are ambiguous. Noise of one grey level is invisible, and noise of
one normalised unit destroys the image; a blur of one pixel fits the three points of accuracy that the paper's student
loses. So `tcifar100` blurs by one pixel; `tcifar100:blur=2` blurs more, and `tcifar100:noise=16` adds grey levels of
noise instead. The noise of an image depends only on its position in the data: it is the same in every run.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kcd_jax.data import _cache, _tfds, cifar100
from kcd_jax.data._dataset import Dataset, Loading, Request, Split

OPTIONS = 'blur=PIXELS or noise=GREY_LEVELS'
SHAPES = cifar100.SHAPES


def parse(request: Request) -> tuple[str, float]:
    """'tcifar100:blur=2' -> ('blur', 2.0); ValueError if it is something else."""
    kind, _, text = (request.option or 'blur=1').partition('=')
    try:
        sigma = float(text)
    except ValueError:
        sigma = -1.0
    if kind not in ('blur', 'noise') or not 0.0 < sigma < 256.0:
        raise ValueError(
            f'data set {request.name!r} is not understood; use tcifar100:blur=PIXELS or tcifar100:noise=GREY_LEVELS'
        )
    return kind, sigma


def load(request: Request) -> Dataset:
    """CIFAR-100 degraded; labels, ids, order and constants stay those of CIFAR-100."""
    kind, sigma = parse(request)
    clean = _tfds.load(_clean(request))

    def make() -> tuple[_cache.Arrays, dict[str, str]]:
        splits = {'train': clean.train, 'test': clean.test}
        return {part: _degrade(of.images, kind, sigma, seed) for seed, (part, of) in enumerate(splits.items())}, {}

    made_from = {'clean': clean.digests, 'degraded': [kind, sigma]}
    words, unit = ('a Gaussian blur', 'px') if kind == 'blur' else ('Gaussian noise', 'grey levels')
    arrays, _ = _cache.fetch(request.name, clean.description, made_from, make, request.cache)
    return dataclasses.replace(
        clean,
        train=Split(arrays['train'], clean.train.labels, clean.train.ids),
        test=Split(arrays['test'], clean.test.labels, clean.test.ids),
        description=f'{words} of {sigma:g} {unit} over {clean.description}',
    )


def needs_tensorflow(request: Request) -> bool:
    """Whether CIFAR-100 has to be downloaded and prepared first."""
    return _tfds.needs_tensorflow(_clean(request))


def prepare(request: Request, file_format: str = '') -> str:
    """Downloads and prepares CIFAR-100. Arguments as in `_tfds.prepare`."""
    return _tfds.prepare(_clean(request), file_format)


def _clean(request: Request) -> Request:
    """The request for CIFAR-100 itself, in memory."""
    return dataclasses.replace(request, name='cifar100', option='', loading=Loading(stream=False))


def _degrade(images: np.ndarray, kind: str, sigma: float, split: int) -> np.ndarray:
    """u8[N, H, W, C] -> the same, each channel blurred with mirrored borders, or with noise drawn by its position."""
    from scipy import ndimage

    result = np.empty_like(images)
    for point, image in enumerate(images):
        if kind == 'blur':
            spoilt = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
        else:
            spoilt = image + np.random.RandomState([split, point]).normal(0.0, sigma, image.shape)
        result[point] = np.rint(spoilt).clip(0, 255)
    return result
