"""The data that needs no files: scikit-learn's digits, made hard on purpose.

The original 1,797 images of 8x8 pixels are so easy that every method ends near 99 % and none can be told apart. So each
is doubled to 16x16, shifted by up to `SHIFT` pixels in each direction and covered with grey Gaussian noise of standard
deviation `NOISE`; the shift and the noise of a point are drawn once, from a fixed seed, for training and test points
alike. 1,200 points train and 597 test. `configs/digits_kd.py` goes further: the teacher learns from all 1,200, the
student distils on 300 of them (`load('digits', num_points=300)`).

`digits:REGIME` is a regime of training data, in which policies that select points can be compared:

| name               | training points                                                                               |
|--------------------|-----------------------------------------------------------------------------------------------|
| `digits:clean`     | the 1,200, doubled but neither shifted nor noisy                                               |
| `digits:hard`      | those of `digits`                                                                              |
| `digits:long`      | 327 of them: classes of 110 points down to 3                                                   |
| `digits:redundant` | 300 of them, a third of which come with nine near copies each: 1,200 images                    |
| `digits:noisy`     | those of `digits`, a fifth of them with the label of another class                             |

Test labels are always right and the test classes of nearly equal size. Where test images are noisy, each of the 597 is
shown in ten draws of its shift and noise, draw by draw: 5,970 images, in which the id of a point occurs ten times.

Accuracies on this data tell which of two runs is better. They are not comparable with published numbers on the digits.
"""

from __future__ import annotations

import numpy as np

from kcd_jax.data._dataset import Dataset, Request, Shapes, Split, measure

OPTIONS = 'REGIME'
NUM_TRAIN, NUM_TEST = 1200, 597
SCALE = 2  # 8x8 -> 16x16, each pixel repeated
SHIFT = 2  # pixels of the 16x16 image, uniform in {-SHIFT, ..., SHIFT} for each axis
NOISE = 64.0  # grey levels of 255
SEED = 1797
DRAWS = 10  # of each test point, in the regimes with noise
LONGEST, SHORTEST = 110, 3  # points of the largest and the smallest class of the long tail, in geometric steps
COPIES, COPY_NOISE = 9, 8.0  # near copies of each redundant point, and the grey levels in which they differ
DISTINCT, REDUNDANT = 300, 100  # different points of the redundant regime, and those of them that have copies
WRONG = 0.2  # fraction of wrong labels
REGIMES = {
    '': 'noise of 64 grey levels, shifts of up to 2 px',
    'clean': 'doubled in size alone',
    'hard': 'noise of 64 grey levels, shifts of up to 2 px',
    'long': 'hard and long-tailed, 110 to 3 points per class',
    'redundant': 'hard, a third of 300 points with nine near copies each',
    'noisy': 'hard, a fifth of the training labels wrong',
}
_SIZES = tuple(round(LONGEST * (SHORTEST / LONGEST) ** (label / 9)) for label in range(10))


def regime(request: Request) -> str:
    """The regime that a request names, '' for `digits` itself.

    Raises:
      ValueError: there is no such regime.
    """
    if request.option not in REGIMES:
        raise ValueError(
            f'unknown regime {request.option!r} of the digits; use digits or digits:REGIME with one of '
            f'{", ".join(filter(None, REGIMES))}'
        )
    return request.option


def shapes(request: Request) -> Shapes:
    """Counts and shapes of the regime."""
    name = regime(request)
    test = NUM_TEST if name in ('', 'clean') else DRAWS * NUM_TEST
    return Shapes(sum(_SIZES) if name == 'long' else NUM_TRAIN, test, num_classes=10, image_shape=(16, 16, 3))


def load(request: Request) -> Dataset:
    """All points: train u8[1200, 16, 16, 3], test u8[597, 16, 16, 3], 10 classes, three equal channels.

    Regimes have other counts (`shapes`).
    """
    name = regime(request)
    from sklearn import datasets  # takes a second to import

    source = datasets.load_digits()
    # NumPy guarantees that RandomState's streams never change, unlike those of its newer generators.
    random = np.random.RandomState(SEED)
    order = random.permutation(len(source.target))
    images = (source.images[order] * (255.0 / 16.0)).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    labels, ids = source.target[order].astype(np.int32), np.array([f'digits_{i:04d}' for i in order])
    shown = _as_bytes(images) if name == 'clean' else _harden(images, random)
    train = Split(shown[:NUM_TRAIN], labels[:NUM_TRAIN], ids[:NUM_TRAIN])
    test = Split(shown[NUM_TRAIN:], labels[NUM_TRAIN:], ids[NUM_TRAIN:])
    if name not in ('', 'clean'):
        draws = [_harden(images[NUM_TRAIN:], np.random.RandomState([SEED, draw])) for draw in range(DRAWS)]
        test = Split(np.concatenate(draws), np.tile(test.labels, DRAWS), np.tile(test.ids, DRAWS))
        train = {'long': _long, 'redundant': _redundant, 'noisy': _noisy}.get(name, lambda split: split)(train)
    return Dataset(
        name='digits',
        train=train,
        test=test,
        class_names=tuple(str(name) for name in source.target_names),
        num_classes=10,
        image_shape=train.images.shape[1:],
        normalization=measure(train.images),
        description=f"scikit-learn's digits{' made hard' if not name else ''}: {REGIMES[name]}",
    )


def _harden(images: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """f64[N, H, W] in 0..255 -> u8[N, H, W, 3], shifted and noisy."""
    number, height, width = images.shape
    corner = random.randint(0, 2 * SHIFT + 1, (number, 2))
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    images = windows[np.arange(number), corner[:, 0], corner[:, 1]]
    return _as_bytes(images + random.normal(0.0, NOISE, images.shape))


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """f64[N, H, W] -> u8[N, H, W, 3]."""
    return np.rint(images).clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _long(split: Split) -> Split:
    """The first points of each class, fewer of each further class."""
    return split.take(np.sort(np.concatenate([np.flatnonzero(split.labels == k)[:n] for k, n in enumerate(_SIZES)])))


def _redundant(split: Split) -> Split:
    """The first `DISTINCT` points; the first `REDUNDANT` of them with copies, which share their id."""
    random = np.random.RandomState([SEED, 1])
    distinct = split.take(np.arange(DISTINCT))
    copies = distinct.take(np.repeat(np.arange(REDUNDANT), COPIES))
    grey = copies.images[..., 0].astype(np.float64)
    near = _as_bytes(grey + random.normal(0.0, COPY_NOISE, grey.shape))
    order = random.permutation(DISTINCT + REDUNDANT * COPIES)
    parts = [(distinct.images, near), (distinct.labels, copies.labels), (distinct.ids, copies.ids)]
    return Split(*(np.concatenate(part)[order] for part in parts))


def _noisy(split: Split) -> Split:
    """The points, a fraction `WRONG` of them with the label of another class, each of the nine equally often drawn."""
    random = np.random.RandomState([SEED, 2])
    wrong = random.permutation(len(split))[: round(WRONG * len(split))]
    labels = split.labels.copy()
    labels[wrong] = (labels[wrong] + random.randint(1, 10, len(wrong))) % 10
    return Split(split.images, labels, split.ids)
