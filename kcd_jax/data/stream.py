"""Batches of points that are read by index, in a given order, with grain.

Only the points of that order and the partners that are mixed into them are read. An element of the grain data set is
the batch of one step, so a run goes on in the middle of an epoch by skipping steps, not by reading them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from kcd_jax.data.base import Images


@dataclasses.dataclass(frozen=True)
class Steps:
    """The batches of an epoch by their number, as a random-access source for grain.

    Attributes:
      images: of the split. index: i32[steps, B], the points of each step.
      partner: i32[steps, B], what is mixed into each; the point itself where nothing is.
      seed, epoch: what random crops depend on, beside the point. train: False takes the images as they are evaluated.
    """

    images: Images
    index: np.ndarray
    partner: np.ndarray
    seed: int = 0
    epoch: int = 0
    train: bool = True

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """{'image': u8[B, H, W, 3], and 'partner' the same, where anything is mixed into any of the rows}."""
        points, partners = self.index[number].tolist(), self.partner[number].tolist()
        image = np.empty((len(points), *self.images.image_shape), np.uint8)
        for row, point in enumerate(points):
            image[row] = self._view(point)
        if points == partners:
            return {'image': image}
        partner = image.copy()
        for row, (point, other) in enumerate(zip(points, partners)):
            if other != point:
                partner[row] = self._view(other)
        return {'image': image, 'partner': partner}

    def _view(self, point: int) -> np.ndarray:
        return self.images.training(point, self.seed, self.epoch) if self.train else self.images[point]


def threads() -> int:
    """Reading threads: one a core. Decoders let go of Python's lock, so threads are enough for some ten cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def read(steps: Steps, *, first: int = 0, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """The batches from step `first` on, in order, read ahead. Closing it stops whoever reads.

    Args:
      steps: of this process. workers: processes that read; 0: threads of this one.
    """
    import grain  # a second that only a streamed run pays

    number = threads() if not workers else max(1, threads() // workers)
    # An element is a whole batch: beside those that are being read, two wait to be taken.
    options = grain.ReadOptions(num_threads=number, prefetch_buffer_size=number + 2)
    stream = grain.MapDataset.source(steps)[first:].to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its flags, which a caller without absl.app never parses
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    iterator = iter(stream)
    try:
        yield from iterator
    finally:
        iterator.close()
