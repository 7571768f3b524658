"""MNIST, prepared by TFDS: grey digits of 28 x 28 pixels in 10 classes."""

from __future__ import annotations

from kcd_jax.data._dataset import Shapes
from kcd_jax.data._tfds import OPTIONS, check, load, needs_tensorflow, prepare

__all__ = ['OPTIONS', 'SHAPES', 'check', 'load', 'needs_tensorflow', 'prepare']

SHAPES = Shapes(train=60_000, test=10_000, num_classes=10, image_shape=(28, 28, 3))
