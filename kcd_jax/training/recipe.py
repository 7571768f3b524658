"""How a student is trained, whatever its networks: epochs, batch, optimiser, augmentation, evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from kcd_jax.contracts import Optimiser
from kcd_jax.objective import LOGITS
from kcd_jax.settings import nested, setting, validate
from kcd_jax.training import optim

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser and its learning rate by epoch."""

    name: str = setting('sgd', "optimiser, by PyTorch's definitions", choices=('sgd', 'adam', 'adamw', 'rmsprop'))
    lr: float = setting(0.05, 'initial learning rate; never rescaled with the batch or the devices', above=0, high=1000)
    momentum: float = setting(0.9, "momentum of SGD and RMSprop, or Adam's first decay rate", low=0, below=1)
    weight_decay: float = setting(5e-4, 'added to the gradient; by adamw to the update, times lr', low=0, high=10)
    decay: str = setting(
        'all', 'what weight decay applies to; kernels: no biases, no norms', choices=('all', 'kernels')
    )
    clip: float = setting(0.0, "bound on the gradient's global norm, before weight decay; 0: none", low=0, high=1e6)
    nesterov: bool = setting(False, "Nesterov's momentum (SGD only)")
    schedule: str = setting(
        'drops',
        'how the rate falls, by epoch; cosine: to 0 after the last epoch',
        choices=('drops', 'cosine', 'constant'),
    )
    drops: tuple[float, ...] = setting(
        (0.625, 0.75, 0.875), 'when the rate drops (schedule=drops), as fractions of the epochs', above=0, high=1
    )
    factor: float = setting(0.1, 'factor of each drop', above=0, high=1)
    warmup: int = setting(
        0,
        'epochs w of a linear warm-up: the rates of epochs 1, 2, ... times 1/(w+1), 2/(w+1), ...',
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        validate(self, 'optim.')
        if self.nesterov and (self.name != 'sgd' or self.momentum == 0):
            raise ValueError('optim.nesterov=True needs optim.name=sgd and a momentum above 0')

    def optimiser(self, epochs: int) -> Optimiser:
        """The optax chain without the learning rate, and the rate by epoch of a phase of `epochs` epochs."""
        decay = {'weight_decay': self.weight_decay, 'decayed': optim.kernels if self.decay == 'kernels' else None}
        if self.name == 'sgd':
            transform = optim.sgd(self.momentum, nesterov=self.nesterov, **decay)
        elif self.name == 'rmsprop':
            transform = optim.rmsprop(self.momentum, **decay)
        else:
            transform = {'adam': optim.adam, 'adamw': optim.adamw}[self.name](b1=self.momentum, **decay)
        if self.clip:
            transform = optax.chain(optax.clip_by_global_norm(self.clip), transform)
        if self.schedule == 'cosine':
            rate = optim.cosine(self.lr, epochs)
        elif self.schedule == 'drops':
            rate = optim.step_drops(self.lr, tuple(round(part * epochs) for part in self.drops), self.factor)
        else:
            rate = optim.constant(self.lr)
        return Optimiser(transform, optim.warmup(rate, self.warmup) if self.warmup else rate)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of the training images, on the devices."""

    crop: int = setting(4, 'pixels of black padding of the random crop, 0 for none; less than the image', low=0)
    flip: bool = setting(True, 'mirror at random')
    area: tuple[float, ...] = setting(
        (), "bounds of the random resized crop's share of the image, e.g. (0.08, 1.0); () for none", low=0.01, high=1
    )
    views: int = setting(
        0,
        'views that a point has in all epochs and seeds, with augment.area; 0: a new one in every epoch',
        low=0,
        high=4096,
    )
    mixup: float = setting(
        0.0, 'a of the share ~ Beta(a, a) of another point in every image and label; 0: no mixup', low=0, high=1000
    )
    cutmix: float = setting(
        0.0, 'as mixup, by a rectangle of the other point; with both, either at random', low=0, high=1000
    )
    trivial: bool = setting(False, 'one of the 14 operations of TrivialAugment (wide) for every image')
    erase: float = setting(
        0.0, "probability that a rectangle of an image is filled with the image's mean colour", low=0, high=1
    )
    seed: int = setting(
        -1, "of the views, so that runs of several seeds show the same ones; -1: the run's own seed", low=-1
    )

    def __post_init__(self) -> None:
        validate(self, 'augment.')
        if self.area and not (len(self.area) == 2 and self.area[0] <= self.area[1]):
            raise ValueError(f'augment.area is {self.area}; use () or two shares of the image, e.g. (0.08, 1.0)')
        if self.views and not self.area:
            raise ValueError(f'augment.views is {self.views} and augment.area (); set augment.area, e.g. (0.08, 1.0)')

    @property
    def endless(self) -> str:
        """The first setting whose views are not one of a few per point, so that no cache can hold them; '' if none."""
        names = ('mixup', 'cutmix', 'trivial', 'erase')
        names = names if self.views else ('area', *names)
        return next((name for name in names if getattr(self, name)), '')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are written and how many stay."""

    seconds: float = setting(60.0, 'at least this time between two checkpoints', low=0, high=1e9)
    keep: int = setting(2, 'newest checkpoints that stay; a damaged one needs a predecessor', low=2, high=1000)

    def __post_init__(self) -> None:
        validate(self, 'checkpoint.')


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How the teacher is asked. None of it but `cache_dtype` changes a number of the run beyond rounding."""

    allow_weak: bool = setting(False, 'use a teacher that is no better than guessing')
    in_step: bool = setting(False, 'run the teacher inside the training step, even where it could answer before')
    cache: str = setting('memory', "where its answers are kept for all runs: 'off', 'memory' or a folder")
    cache_gb: float = setting(
        4.0, 'bound on each cache on disk, and on those in memory together, in GiB', low=0, high=1e6
    )
    cache_dtype: str = setting(
        'float32', 'dtype to which answers are rounded, kept or not', choices=('float32', 'float16')
    )

    def __post_init__(self) -> None:
        validate(self, 'teaching.')
        if not self.cache:
            raise ValueError("teaching.cache is ''; use 'off', 'memory' or a folder")

    @property
    def folder(self) -> str:
        """The folder of the cache; '' if it is not on disk."""
        return '' if self.cache in ('off', 'memory') else self.cache


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a student is trained. The defaults are the papers' recipe for CIFAR-100.

    A mapping is accepted for the nested parts: `Recipe(epochs=60, optim={'lr': 0.1})`.
    """

    epochs: int = setting(240, 'epochs of the main phase', low=1, high=100_000)
    batch: int = setting(64, 'rows of the global batch, whatever the number of devices', low=1, high=2**20)
    accumulate: int = setting(
        1, 'micro-batches of batch/accumulate rows per update, to save memory; it divides batch', low=1, high=2**20
    )
    optim: Optim = dataclasses.field(default_factory=Optim)
    augment: Augment = dataclasses.field(default_factory=Augment)
    teaching: Teaching = dataclasses.field(default_factory=Teaching)
    logits: str = setting('plain', 'logits of the KD term', choices=LOGITS)
    label_smoothing: float = setting(
        0.0, 'share of the label spread evenly over all classes, in the cross entropy only', low=0, below=1
    )
    ema: float = setting(
        0.0, 'decay per step of the average of the student, which is evaluated and saved; 0: none', low=0, below=1
    )
    dtype: str = setting('float32', 'dtype of the computation; values and parameters stay float32', choices=DTYPES)
    deterministic: bool = setting(False, 'deterministic operations on a GPU, at some cost in speed')
    chunk: int = setting(0, 'steps per program; 0: 1 on a CPU, 100 elsewhere', low=0, high=100_000)
    eval_every: int = setting(
        1, 'epochs between two evaluations; the last epoch is always evaluated', low=1, high=100_000
    )
    eval_batch: int = setting(500, 'images per evaluation batch', low=1, high=2**20)
    survey: bool = setting(True, 'at the end, record what both networks say of every training point')
    workers: int = setting(0, 'processes that read streamed images; 0: threads, one per core', low=0, high=1024)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        for name, cls in _NESTED.items():
            nested(self, name, cls)
        validate(self)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def plain(self) -> Recipe:
        """A copy for a teacher that is trained first: without what is meant for the student alone.

        So one teacher serves runs that differ in these settings; a teacher with them is trained as a run of its own.
        """
        return self.replace(
            augment=dataclasses.replace(self.augment, mixup=0.0, cutmix=0.0, trivial=False, erase=0.0, seed=-1),
            logits='plain',
            label_smoothing=0.0,
            accumulate=1,
            ema=0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, from which `Recipe(**...)` makes the same recipe."""
        return dataclasses.asdict(self)


_NESTED = {'optim': Optim, 'augment': Augment, 'teaching': Teaching, 'checkpoint': Checkpoint}
