"""ImageNet (ILSVRC 2012), prepared by TFDS: photographs in 1,000 classes, at 224 pixels or `imagenet2012:SIZE`.

Its validation split is evaluated on, because the labels of its test split are not public."""

from kcd_jax.data._dataset import Normalization, Shapes

_CONSTANTS = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of common ImageNet recipes
SHAPES = Shapes(1_281_167, 50_000, num_classes=1000, image_shape=(224, 224, 3), normalization=_CONSTANTS, scaled=True)
