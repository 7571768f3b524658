"""CIFAR-100, prepared by TFDS: colour images of 32 x 32 pixels in 100 classes."""

from __future__ import annotations

from kcd_jax.data._dataset import Normalization, Shapes
from kcd_jax.data._tfds import OPTIONS, check, load, needs_tensorflow, prepare

__all__ = ['OPTIONS', 'SHAPES', 'check', 'load', 'needs_tensorflow', 'prepare']

# The constants of the papers' code (RepDistiller).
SHAPES = Shapes(
    train=50_000,
    test=10_000,
    num_classes=100,
    image_shape=(32, 32, 3),
    normalization=Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
)
