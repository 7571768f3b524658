"""The default, which needs no files: scikit-learn's digits, made hard on purpose.

The original 1,797 images of 8x8 pixels are so easy that every method ends near 99 % and none can be told apart. So each
is doubled to 16x16, shifted by up to `SHIFT` pixels in each direction and covered with grey Gaussian noise of standard
deviation `NOISE`; the shift and the noise of a point are drawn once, from a fixed seed, for training and test points
alike. 1,200 points train and 597 test. The default experiment goes further: the teacher learns from all 1,200, the
student distils on 300 of them (`load('digits', num_points=300)`).

Accuracies on this data tell which of two runs is better. They are not comparable with published numbers on the digits.
"""

from __future__ import annotations

import numpy as np

from kcd_jax.data._dataset import Dataset, Request, Shapes, Split, measure

NUM_TRAIN, NUM_TEST = 1200, 597
SCALE = 2  # 8x8 -> 16x16, each pixel repeated
SHIFT = 2  # pixels of the 16x16 image, uniform in {-SHIFT, ..., SHIFT} for each axis
NOISE = 64.0  # grey levels of 255
SEED = 1797
SHAPES = Shapes(NUM_TRAIN, NUM_TEST, num_classes=10, image_shape=(16, 16, 3))


def load(request: Request) -> Dataset:
    """All points: train u8[1200, 16, 16, 3], test u8[597, 16, 16, 3], 10 classes, three equal channels."""
    del request
    from sklearn import datasets  # takes a second to import

    source = datasets.load_digits()
    images, labels = source.images, source.target.astype(np.int32)
    # NumPy guarantees that RandomState's streams never change, unlike those of its newer generators.
    random = np.random.RandomState(SEED)
    order = random.permutation(len(labels))
    images = _harden(images[order] * (255.0 / 16.0), random)
    whole = Split(images, labels[order], np.array([f'digits_{i:04d}' for i in order]))
    train = whole.take(np.arange(NUM_TRAIN))
    return Dataset(
        name='digits',
        train=train,
        test=whole.take(np.arange(NUM_TRAIN, NUM_TRAIN + NUM_TEST)),
        class_names=tuple(str(name) for name in source.target_names),
        num_classes=10,
        image_shape=images.shape[1:],
        normalization=measure(train.images),
        description=f"scikit-learn's digits made hard: noise of {NOISE:g} grey levels, shifts of up to {SHIFT} px",
    )


def _harden(images: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """f64[N, 8, 8] in 0..255 -> u8[N, 16, 16, 3], shifted and noisy."""
    images = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    number, height, width = images.shape
    corner = random.randint(0, 2 * SHIFT + 1, (number, 2))
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    images = windows[np.arange(number), corner[:, 0], corner[:, 1]]
    noisy = np.rint(images + random.normal(0.0, NOISE, images.shape)).clip(0, 255)
    return noisy.astype(np.uint8)[..., None].repeat(3, axis=-1)
