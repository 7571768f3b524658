"""ImageNet (ILSVRC 2012), prepared by TFDS: photographs in 1,000 classes, at 224 pixels or `imagenet2012:SIZE`.

Its validation split is evaluated on, because the labels of its test split are not public."""

from __future__ import annotations

from kcd_jax.data._dataset import Normalization, Shapes
from kcd_jax.data._tfds import OPTIONS, check, load, needs_tensorflow, prepare

__all__ = ['OPTIONS', 'SHAPES', 'check', 'load', 'needs_tensorflow', 'prepare']

# The constants of common ImageNet recipes.
SHAPES = Shapes(
    train=1_281_167,
    test=50_000,
    num_classes=1000,
    image_shape=(224, 224, 3),
    normalization=Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    scaled=True,
)
