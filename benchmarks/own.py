"""Our own training loop on made-up data, to be timed."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kcd_jax
from kcd_jax import data, networks
from kcd_jax.contracts import Phase, TrainState
from kcd_jax.experiments import experiment
from kcd_jax.runtime import runlog, sharding
from kcd_jax.training import check
from kcd_jax.training.loop import Loop

CONFIG = pathlib.Path(kcd_jax.__file__).parent.parent / 'configs' / 'cifar100_kd.py'


def made_up_data(num_points: int) -> data.Dataset:
    """Random images and labels of CIFAR-100's shapes: how long a step takes does not depend on them."""
    rng = np.random.default_rng(0)

    def split(count: int) -> data.Split:
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return data.Split(images, rng.integers(0, 100, count, np.int32))

    return data.Dataset(
        name='made-up',
        train=split(num_points),
        test=split(64),
        class_names=tuple(map(str, range(100))),
        num_classes=100,
        image_shape=(32, 32, 3),
        normalization=data.Normalization((0.5,) * 3, (0.25,) * 3),
        description='made-up images',
    )


class OwnRun:
    """A run of `loop.Loop` with an untrained teacher.

    Attributes:
      state: the state, moved on by `step` and `epoch`. loop: the loop itself.
    """

    def __init__(self, words: str, num_points: int, workdir: pathlib.Path):
        if not CONFIG.exists():
            raise ValueError(f'{CONFIG} is missing; run the bench from a checkout of the repository')
        config = experiment.load_config(f'{CONFIG}:{words}')
        mesh, dataset = sharding.make_mesh(), made_up_data(num_points)
        if data.STREAM[config.data.stream]:
            dataset = data.by_index(dataset)
        teacher = networks.get(config.teacher.name)(dataset.num_classes)
        variables = teacher.init(jax.random.PRNGKey(0), dataset.image_shape)
        run = check.resolve(config, dataset, device_count=mesh.size, teacher=teacher, teacher_variables=variables)
        self.log = runlog.RunLog(workdir, config.to_dict())
        self.log.__enter__()
        self.log.rewind([], -1)
        self.loop = Loop(config, run, dataset, variables, workdir, mesh, self.log)
        self.state: TrainState = self.loop.initial_state(None if dataset.train.streamed else dataset.train.images)
        self.phase = run.phases[-1]
        self._arguments: tuple[Any, ...] | None = None

    def close(self) -> None:
        self.log.__exit__(None, None, None)

    def enter(self, phase: Phase) -> None:
        """The next steps are of `phase`; at first they are of the last one, which trains the student."""
        self.phase, self._arguments = phase, None

    def program(self) -> jax.stages.Compiled:
        """The compiled step of the phase."""
        return self._compiled()[-1]

    def _compiled(self) -> tuple[Any, ...]:
        loop = self.loop
        if self._arguments is None:
            order = loop.order(self.state.key, self.state.plan, jnp.int32(0))
            rates = loop.rates(self.phase, 0)
            self._arguments = (order, rates, loop.program(self.state, order, rates, loop.feed.points, self.phase, 1))
        return self._arguments

    def step(self) -> jax.Array:
        """One training step, up to its end; at first it compiles."""
        loop = self.loop
        order, rates, program = self._compiled()
        self.state, loss = program(self.state, order, rates, loop.feed.points, loop.teacher_variables)
        return jax.block_until_ready(loss)

    def epoch(self, num_keep: int) -> None:
        """One epoch of `num_keep` points, as training does it, without evaluation."""
        kept = sharding.put(np.int32(num_keep), sharding.replicated(self.loop.mesh))
        self.state = self.state.replace(plan=self.state.plan.replace(num_keep=kept))
        self.state = self.loop.train_epoch(self.state, int(self.state.epoch), lambda state: None)
        self.state = self.loop.end_epoch(self.state)


_numbers = itertools.count()


@contextlib.contextmanager
def own_run(words: str, num_points: int, scratch: pathlib.Path) -> Iterator[OwnRun]:
    """An `OwnRun` in a new folder below `scratch`."""
    run = OwnRun(words, num_points, scratch / f'run_{next(_numbers)}')
    try:
        yield run
    finally:
        run.close()
