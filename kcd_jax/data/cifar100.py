"""CIFAR-100, prepared by TFDS: colour images of 32 x 32 pixels in 100 classes."""

from kcd_jax.data._dataset import Normalization, Shapes

_CONSTANTS = Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # of the papers' code (RepDistiller)
SHAPES = Shapes(50_000, 10_000, num_classes=100, image_shape=(32, 32, 3), normalization=_CONSTANTS)
