"""A trained network for use: images in, class names and probabilities out."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Network, PyTree
from kcd_jax.teachers.teacher import Teacher


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained network.

    Attributes:
      network: the architecture.
      variables: {'params', 'batch_stats', 'constants'}.
      card: what its file says of it: network, classes, data, accuracy, ...
    """

    network: Network
    variables: PyTree
    card: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the logits; '0', '1', ... where the file has none."""
        return tuple(self.card.get('class_names') or map(str, range(self.card['num_classes'])))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of the images."""
        return tuple(self.card['image_shape'])

    def __call__(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
        """Logits f32[N, K] of the images u8[N, H, W, 3], computed in batches of `batch`.

        Raises:
          ValueError: images of another shape or dtype.
        """
        images = np.asarray(images)
        if images.shape[1:] != self.input_shape or images.dtype != np.uint8:
            raise ValueError(
                f'images are {images.dtype}{list(images.shape)}; this model takes uint8[N, '
                f'{", ".join(map(str, self.input_shape))}]'
            )
        found = [np.zeros((0, self.card['num_classes']), np.float32)]
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
            found.append(np.asarray(self._forward(self.variables, padded))[: len(part)])
        return np.concatenate(found)

    @functools.cached_property
    def _forward(self) -> Any:
        def forward(variables: PyTree, images: jax.Array) -> jax.Array:
            return self.network.apply(variables, images.astype(jnp.float32) / 255.0, False)[0].logits

        return jax.jit(forward)

    def predict(self, images: np.ndarray) -> tuple[list[str], np.ndarray]:
        """(class names, probabilities f32[N]) of the most probable class of each image u8[N, H, W, 3]."""
        probabilities = np.asarray(jax.nn.softmax(jnp.asarray(self(images)), axis=-1))
        best = np.argmax(probabilities, axis=-1)
        return [self.classes[index] for index in best], probabilities[np.arange(len(best)), best]


def load(path: str | os.PathLike[str]) -> Model:
    """The student that a run left in its folder, or the network in a file of weights.

    Raises:
      ValueError: there is none, it is damaged, or it does not say what it is.
    """
    found = Teacher.restore(path)
    return Model(found.network, found.variables, found.card)
