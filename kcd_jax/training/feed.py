"""How points reach the devices: resident on them, or streamed batch by batch.

Both feeders have the same interface: `epoch` yields (steps, supply), and `step.run_chunk` takes that many steps on the
supply. Both give the same batches in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Plan, run_key
from kcd_jax.data import Split, stream
from kcd_jax.runtime import sharding
from kcd_jax.training import augment, step

_AHEAD = 2  # batches transferred ahead of the one that is trained on


class Resident:
    """All points on every device, as uint8; nothing is transferred during an epoch.

    Args:
      split: the training points.
      labels: i32[N], padded to the rows of the value table.
      chunk: steps per program.
      mesh: of the devices.
    """

    def __init__(self, split: Split, labels: np.ndarray, chunk: int, mesh: Mesh):
        images = np.zeros((len(labels), *split.images.shape[1:]), np.uint8)
        images[: len(split)] = split.images
        self.points = sharding.put(step.Points(images, labels), sharding.replicated(mesh))
        self.chunk = chunk

    def epoch(
        self, order: jax.Array, plan: Plan, epoch: int, done: int, steps: int
    ) -> Iterator[tuple[int, step.Points]]:
        """Yields (steps per program, their data) for the rest of an epoch after `done` of its `steps`."""
        del order, plan, epoch
        while done < steps:
            length = self.chunk if steps - done >= self.chunk else 1
            yield length, self.points
            done += length


class Streamed:
    """Points read by index, a few batches ahead; each process reads the rows of its own devices.

    Args:
      split: the training points.
      labels: i32[N].
      batch: rows of the global batch.
      mesh: of the devices.
      seed: of the run, for random crops while reading.
      workers: processes that read; 0: threads.
      mixes: whether the policy mixes partners in.
      fixed: views that each point has in all epochs; 0: a new one in every epoch.
      every: whether the recipe mixes a partner, and its label, into every point (mixup, CutMix).
    """

    def __init__(
        self,
        split: Split,
        labels: np.ndarray,
        batch: int,
        mesh: Mesh,
        *,
        seed: int,
        workers: int,
        mixes: bool,
        fixed: int = 0,
        every: bool = False,
    ):
        self.images, self.labels, self.batch, self.mesh = split.images, labels, batch, mesh
        self.seed, self.workers, self.mixes, self.fixed, self.every = seed, workers, mixes, fixed, every

    def epoch(
        self, order: jax.Array, plan: Plan, epoch: int, done: int, steps: int
    ) -> Iterator[tuple[int, step.RawBatch]]:
        """As `Resident.epoch`; reads the first `steps * batch` points of the order and their partners."""
        order, partners, epsilon = jax.device_get((order, plan.partner, plan.epsilon))
        index, rows = order[: steps * self.batch].reshape(steps, self.batch), sharding.local_rows(self.mesh, self.batch)
        if len(rows) < self.batch:  # several processes; a single one needs no copy
            index = index[:, rows]
        partner = index
        if self.mixes or self.every:
            partner = partners[index]
        if self.mixes and not self.every:
            np.copyto(partner, index, where=epsilon[index] == 0)
        numbers = None
        if self.fixed and index.size:
            key = step.view_key(run_key(self.seed), np.int32(epoch), -1)
            numbers = np.asarray(augment.draw_number(key, index.reshape(-1), self.fixed)).reshape(index.shape)
        source = stream.Steps(self.images, index, partner, self.seed, epoch, fixed=numbers)

        def placed() -> Iterator[step.RawBatch]:
            for points, others, arrays in zip(index[done:], partner[done:], batches, strict=True):
                rows = {'index': points, 'label': self.labels[points], **arrays}
                if self.every:
                    rows['partner_label'] = self.labels[others]
                arrays = sharding.put_rows(rows, self.mesh)
                mixed_in = arrays.pop('partner', arrays['image'])
                yield step.RawBatch(partner_image=mixed_in, **arrays)

        with contextlib.closing(stream.read(source, first=done, workers=self.workers)) as batches:
            for supply in _ahead(placed()):
                yield 1, supply


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, requested early so that transfers overlap with computation."""
    waiting = []
    for item in items:
        waiting.append(item)
        if len(waiting) > _AHEAD:
            yield waiting.pop(0)
    yield from waiting


class HeldOut:
    """Evaluation batches (images, labels, valid): every image once, with a padded last batch.

    With `keep`, images in memory stay on the devices; streamed images are read at every evaluation. `chosen` i32[M] are
    the points, in this order; default: all of the split.
    """

    def __init__(
        self,
        split: Split,
        batch: int,
        mesh: Mesh,
        workers: int = 0,
        keep: bool = True,
        chosen: np.ndarray | None = None,
    ):
        batch = -(-batch // mesh.size) * mesh.size
        chosen = np.arange(len(split), dtype=np.int32) if chosen is None else chosen
        self.count, self.split, self.mesh, self.workers = len(chosen), split, mesh, workers
        places = np.arange(-(-self.count // batch) * batch).reshape(-1, batch)
        places = places[:, sharding.local_rows(mesh, batch)]
        self.valid = places < self.count
        self.index = chosen[np.where(self.valid, places, 0)]
        self.resident = list(self._in_memory()) if keep and not split.streamed else None

    def __iter__(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        if self.resident is not None:
            yield from self.resident
            return
        if not self.split.streamed:
            yield from self._in_memory()
            return
        source = stream.Steps(self.split.images, self.index, self.index, train=False)
        with contextlib.closing(stream.read(source, workers=self.workers)) as batches:
            yield from _ahead(self._placed(arrays['image'] for arrays in batches))

    def _in_memory(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        return self._placed(self.split.images[points] for points in self.index)

    def _placed(self, images: Iterator[np.ndarray]) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        for index, valid, image in zip(self.index, self.valid, images, strict=True):
            labels = np.where(valid, self.split.labels[index], 0).astype(np.int32)
            yield sharding.put_rows((image, labels, valid), self.mesh)
