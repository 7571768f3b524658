"""SVHN, prepared by TFDS: colour house numbers cropped to 32 x 32 pixels, 10 classes."""

from kcd_jax.data._dataset import Shapes

SHAPES = Shapes(train=73_257, test=26_032, num_classes=10, image_shape=(32, 32, 3))
