"""Batches of points that are read by index, in a given order, some steps ahead, by threads or processes.

Only the points of that order and the partners that are mixed into them are read. One task is the batch of one step, so
a run continues in the middle of an epoch by skipping steps, not by reading them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from kcd_jax.data._dataset import Images

WORKERS_PER_CORE = 4
_steps: Steps | None = None  # of a worker process


@dataclasses.dataclass(frozen=True)
class Steps:
    """The batches of an epoch by their number; seed and epoch are those of random crops.

    Attributes:
      images: of the split.
      index: i32[steps, B], the points of each step.
      partner: i32[steps, B], the point that is mixed into each; the point itself where none is.
      train: False takes the images as they are evaluated.
      fixed: i32[steps, B], which of its fixed views each point shows, whatever the seed and the epoch; None: new ones.
    """

    images: Images
    index: np.ndarray
    partner: np.ndarray
    seed: int = 0
    epoch: int = 0
    train: bool = True
    fixed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """{'image': u8[B, H, W, 3]}, and 'partner' of the same shape if anything is mixed into any of the rows."""
        points, partners = self.index[number].tolist(), self.partner[number].tolist()
        drawn = [(self.seed, self.epoch)] * len(points)
        if self.fixed is not None:
            drawn = [(0, view) for view in self.fixed[number].tolist()]
        image = np.empty((len(points), *self.images.image_shape), np.uint8)
        for row, point in enumerate(points):
            image[row] = self._view(point, drawn[row])
        if points == partners:
            return {'image': image}
        partner = image.copy()
        for row, (point, other) in enumerate(zip(points, partners)):
            if other != point:
                partner[row] = self._view(point, drawn[row], other)
        return {'image': image, 'partner': partner}

    def _view(self, point: int, drawn: tuple[int, int], partner: int | None = None) -> np.ndarray:
        return self.images.training(point, *drawn, partner) if self.train else self.images[point]


def threads() -> int:
    """Reading threads: one per core. Decoders release Python's lock, so threads are enough for about ten cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def check_workers(workers: int) -> None:
    """ValueError for a number of worker processes below 0, or above `WORKERS_PER_CORE` times the cores."""
    most = WORKERS_PER_CORE * threads()
    if not 0 <= workers <= most:
        raise ValueError(
            f'data.workers={workers} is out of range; this machine has {threads()} cores: use 0 (threads) to {most}'
        )


def read(steps: Steps, *, first: int = 0, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """The batches from step `first` on, in order, read ahead. Closing the iterator ends its threads and processes.

    Args:
      steps: of this process.
      first: number of the first step.
      workers: processes that read; 0: threads of this one.

    Raises:
      ValueError: what reading a point raised, or a worker process died.
    """
    check_workers(workers)
    before = set(multiprocessing.active_children())
    if workers:
        # Forked from a small process that has imported this module: 0.1 s instead of 1 s per epoch.
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['__main__', __name__])
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start, initargs=(steps,))
        task = _read
    else:
        pool, task = concurrent.futures.ThreadPoolExecutor(threads()), steps.__getitem__
    numbers = iter(range(first, len(steps)))
    # Besides the batches that are being read, two wait to be taken.
    waiting = collections.deque(pool.submit(task, n) for n in itertools.islice(numbers, (workers or threads()) + 2))
    children = set(multiprocessing.active_children()) - before
    try:
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(task, number) for number in itertools.islice(numbers, 1))
            yield batch
    except BrokenProcessPool as error:
        for child in children:  # they ignore the signal by which the pool would end them
            child.kill()
        raise ValueError(
            'a process that reads data died, perhaps for lack of memory; use fewer data.workers, or 0 for threads'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(steps: Steps) -> None:
    """Prepares a worker process: it ends when its parent does, however that ends, and leaves signals to it."""
    global _steps
    _steps = steps
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent saves and closes the pool
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _read(number: int) -> dict[str, np.ndarray]:
    assert _steps is not None
    return _steps[number]
