"""Fashion-MNIST, prepared by TFDS: grey clothes of 28 x 28 pixels in 10 classes."""

from kcd_jax.data._dataset import Shapes

SHAPES = Shapes(train=60_000, test=10_000, num_classes=10, image_shape=(28, 28, 3))
