"""CIFAR-10, prepared by TFDS: colour images of 32 x 32 pixels in 10 classes."""

from __future__ import annotations

from kcd_jax.data._dataset import Normalization, Shapes
from kcd_jax.data._tfds import OPTIONS, check, load, needs_tensorflow, prepare

__all__ = ['OPTIONS', 'SHAPES', 'check', 'load', 'needs_tensorflow', 'prepare']

# The constants of common CIFAR-10 recipes.
SHAPES = Shapes(
    train=50_000,
    test=10_000,
    num_classes=10,
    image_shape=(32, 32, 3),
    normalization=Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
)
