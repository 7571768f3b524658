"""CIFAR-10, prepared by TFDS: colour images of 32 x 32 pixels in 10 classes."""

from kcd_jax.data._dataset import Normalization, Shapes

_CONSTANTS = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of common CIFAR-10 recipes
SHAPES = Shapes(50_000, 10_000, num_classes=10, image_shape=(32, 32, 3), normalization=_CONSTANTS)
