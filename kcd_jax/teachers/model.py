"""A trained network for use: images in, class names and probabilities out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.data import _pictures
from kcd_jax.teachers.teacher import Teacher

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network.

    Attributes:
      network: the architecture.
      variables: as `network.init` makes them.
      card: what its file says of it: 'num_classes' and 'image_shape'; usually also 'network', 'class_names', 'dataset',
        'accuracy', ...
    """

    network: Network
    variables: PyTree
    card: dict[str, Any]

    def __repr__(self) -> str:
        height, width, _ = self.input_shape
        return f'Model({self.network.name}, {len(self.classes)} classes, uint8 images of {height}x{width} pixels)'

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the logits; '0', '1', ... where the file has none."""
        return tuple(self.card.get('class_names') or map(str, range(self.card['num_classes'])))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of the images."""
        return tuple(self.card['image_shape'])

    @property
    def function(self) -> Callable[[Array], Array]:
        """The network with its weights as one JAX function, u8[B, H, W, 3] -> logits f32[B, K]."""

        def logits(images: Array) -> Array:
            return self.network.apply(self.variables, images.astype(jnp.float32) / 255.0, False)[0].logits

        return logits

    def __call__(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
        """Logits f32[N, K] of the images u8[N, H, W, 3], computed in batches of at most `batch`.

        Raises:
          ValueError: images of another shape or dtype.
        """
        images = self._checked(images)
        batch = max(min(batch, len(images)), 1)
        found = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
            found.append(np.asarray(self._forward(self.variables, padded))[: len(part)])
        return np.concatenate(found)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype == np.uint8 and images.shape[1:] == self.input_shape:
            return images
        remedy = ''
        if images.shape == self.input_shape:
            remedy = '; for one image use images[None]'
        elif np.issubdtype(images.dtype, np.floating):
            remedy = '; pixels are whole numbers from 0 to 255, and the model normalises them itself'
        elif images.ndim == 4 and images.shape[1] == 3:
            remedy = '; the channels come last'
        wanted = ', '.join(map(str, self.input_shape))
        raise ValueError(f'images are {images.dtype}{list(images.shape)}; this model takes uint8[N, {wanted}]{remedy}')

    @functools.cached_property
    def _forward(self) -> Callable[..., Array]:
        # The weights are an argument: as constants of the program they would be compiled again for every size of batch.
        return jax.jit(lambda variables, images: dataclasses.replace(self, variables=variables).function(images))

    def predict(
        self, images: np.ndarray | Path | Sequence[Path], top: int | None = None
    ) -> tuple[list[str] | list[list[str]], np.ndarray]:
        """The most probable classes of each image.

        Args:
          images: u8[N, H, W, 3], or the path of a picture, or several paths; pictures of any size are cut and scaled as
            the test images of the training were.
          top: how many classes; None: the most probable one.

        Returns:
          (class names, probabilities): a list of N names and f32[N], or with `top` N lists of names and f32[N, top],
          the most probable first.
        """
        if top is not None and not 1 <= top <= len(self.classes):
            raise ValueError(f'top is {top}; use 1 to {len(self.classes)}')
        if isinstance(images, str | os.PathLike):
            images = [images]
        if isinstance(images, list | tuple) and all(isinstance(image, str | os.PathLike) for image in images):
            images = self.read(images)
        logits = self(images)
        best = np.argsort(-logits, axis=-1, kind='stable')[:, : top or 1]
        probabilities = np.take_along_axis(np.asarray(jax.nn.softmax(logits, axis=-1)), best, -1)
        names = [[self.classes[index] for index in row] for row in best]
        return (names, probabilities) if top else ([row[0] for row in names], probabilities[:, 0])

    def read(self, paths: Sequence[Path]) -> np.ndarray:
        """Pictures of any size as images u8[N, H, W, 3]: the middle square, scaled.

        Raises:
          ValueError: a file is missing or no picture, or the model takes images that are not square.
        """
        height, width, _ = self.input_shape
        if height != width:
            raise ValueError(f'this model takes images of {height}x{width} pixels; scale the pictures yourself')
        cropped = self.card.get('run', {}).get('recipe', {}).get('augment', {}).get('area')
        box = functools.partial(_pictures.middle_box, share=_pictures.EVALUATED if cropped else 1.0)
        found = np.zeros((len(paths), *self.input_shape), np.uint8)
        for row, path in enumerate(paths):
            if not os.path.isfile(path):
                raise ValueError(f'there is no picture {path}')
            found[row] = _pictures.read(path, height, box)
        return found


def load(path: Path, network: Network | None = None) -> Model:
    """The student that a run left in its folder, or the network in a file of weights.

    Args:
      path: a run's folder or a file.
      network: the one that was built in Python (`networks.from_linen`, ...); None: the file's name says it.

    Raises:
      ValueError: there is none, it is damaged, or it does not say what it is.
    """
    found = Teacher.restore(path, network or '')
    return Model(found.network, found.variables, found.card)
