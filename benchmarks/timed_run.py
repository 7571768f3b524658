"""The training loop over random images, step by step, for timing. No other benchmark touches the loop."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import data, networks
from kcd_jax.contracts import Phase, PyTree, TrainState
from kcd_jax.data import base
from kcd_jax.experiments import experiment
from kcd_jax.runtime import runlog, sharding
from kcd_jax.training import check, step
from kcd_jax.training.loop import Loop

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / 'configs' / 'cifar100_kd.py'
BATCH = 64  # of the config


def random_data(num_points: int) -> data.Dataset:
    """Random images and labels of CIFAR-100's shapes; the time of a step does not depend on the pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_points, 32, 32, 3), np.uint8)
    return dataset_of(data.Split(images, rng.integers(0, 100, num_points, np.int32)), (32, 32, 3), 100)


def black_data(num_points: int, image_shape: tuple[int, int, int], num_classes: int) -> data.Dataset:
    """Black images that take no memory."""
    images = np.broadcast_to(np.uint8(0), (num_points, *image_shape))
    return dataset_of(data.Split(images, np.zeros(num_points, np.int32)), image_shape, num_classes)


def dataset_of(train: data.Split, image_shape: tuple[int, int, int], num_classes: int) -> data.Dataset:
    """A data set with one test image."""
    return data.Dataset(
        name='benchmark',
        train=train,
        test=data.Split(np.zeros((1, *image_shape), np.uint8), np.zeros(1, np.int32)),
        class_names=tuple(map(str, range(num_classes))),
        num_classes=num_classes,
        image_shape=image_shape,
        normalization=data.Normalization((0.5,) * 3, (0.25,) * 3),
        description=f'{len(train):,} images for a benchmark',
    )


class TimedRun:
    """A run with an untrained teacher, moved on by `step` and `epoch`.

    Attributes:
      state: the current state.
      loop: the run's own loop.
      mesh: of its devices.
      policy: the run's policy.
      phases: the method's phases; the steps are those of the last one until `enter` changes it.
    """

    def __init__(self, words: str, dataset: data.Dataset, workdir: pathlib.Path, devices: list[Any] | None = None):
        """Prepares the run; nothing is compiled yet.

        Args:
          words: what follows `configs/cifar100_kd.py:` on a command line.
          dataset: what is trained on.
          workdir: a new folder for the run's files.
          devices: default all.
        """
        config = experiment.load_config(f'{CONFIG}:{words}')
        self.mesh = mesh = sharding.make_mesh(devices)
        if data.STREAM[config.data.stream]:
            dataset = base.by_index(dataset)
        teacher = networks.get(config.teacher.name)(dataset.num_classes)
        variables = teacher.init(jax.random.PRNGKey(0), dataset.image_shape)
        run = check.resolve(config, dataset, device_count=mesh.size, teacher=teacher, teacher_variables=variables)
        self.policy, self.phases, self.num_points = run.policy, run.phases, len(dataset.train)
        self.log = runlog.RunLog(workdir, config.to_dict())
        self.log.__enter__()
        self.log.rewind([], -1)
        self.loop = Loop(config, run, dataset, variables, workdir, mesh, self.log)
        self.state: TrainState = self.loop.initial_state(None if dataset.train.streamed else dataset.train.images)
        self.enter(run.phases[-1])

    def close(self) -> None:
        """Closes the run's log."""
        self.log.__exit__(None, None, None)

    def enter(self, phase: Phase) -> None:
        """Makes the next steps those of `phase`."""
        self.phase, self._arguments = phase, None

    def arguments(self) -> tuple[Any, ...]:
        """What a step takes beside the state: the epoch's order, learning rates, points, teacher variables."""
        if self._arguments is None:
            order = self.loop.order(self.state.key, self.state.plan, jnp.int32(0))
            self._arguments = (
                order,
                self.loop.rates(self.phase, 0),
                self.loop.feed.points,
                self.loop.teacher_variables,
            )
        return self._arguments

    def program(self) -> jax.stages.Compiled:
        """The compiled step of the phase."""
        order, rates, points, _ = self.arguments()
        return self.loop.program(self.state, order, rates, points, self.phase, 1)

    def function(self) -> Callable[..., tuple[TrainState, jax.Array]]:
        """The step of the phase before compilation: (state, *arguments) -> (state, loss)."""
        return functools.partial(step.run_chunk, spec=self.loop.spec, phase=self.phase, length=1)

    def step(self) -> jax.Array:
        """Takes one training step and returns its loss; the first call compiles."""
        self.state, loss = self.program()(self.state, *self.arguments())
        return jax.block_until_ready(loss)

    def macs_per_step(self) -> int:
        """Multiply-accumulates of a step, as the run's ledger counts them."""
        self.program()
        return self.loop.step_costs[self.phase.name].total

    @property
    def num_programs(self) -> int:
        """Programs compiled so far for training steps."""
        return len(self.loop.programs)

    @property
    def chunk(self) -> int:
        """Steps per program."""
        return self.loop.feed.chunk

    def epoch(self, num_keep: int) -> None:
        """Trains for one epoch of `num_keep` points, without evaluation."""
        kept = sharding.put(np.int32(num_keep), sharding.replicated(self.loop.mesh))
        self.state = self.state.replace(plan=self.state.plan.replace(num_keep=kept))
        self.state = self.loop.train_epoch(self.state, int(self.state.epoch), lambda state: None)
        self.state = self.loop.end_epoch(self.state)

    def condense(self, epoch: int) -> float:
        """Condenses before `epoch` and writes the stage file; returns the seconds of the condensation alone."""
        self.state = self.loop.condense_before(self.state, epoch)
        return self.loop.seconds['condense']

    def order(self, epoch: int) -> jax.Array:
        """The order of an epoch, on the devices."""
        return jax.block_until_ready(self.loop.order(self.state.key, self.state.plan, jnp.int32(epoch)))

    def state_bytes(self) -> int:
        """Bytes of parameters, method state and optimiser state."""
        state = self.state
        kept: PyTree = (state.params, state.method_state, state.opt_state)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(kept))


_numbers = itertools.count()


@contextlib.contextmanager
def timed_run(words: str, num_points: int, scratch: pathlib.Path) -> Iterator[TimedRun]:
    """A `TimedRun` over `num_points` random images in a new folder below `scratch`."""
    run = TimedRun(words, random_data(num_points), scratch / f'run_{next(_numbers)}')
    try:
        yield run
    finally:
        run.close()


def in_own_process(*arguments: str, **environment: str) -> str:
    """The last line that `python ARGUMENTS` prints.

    Raises:
      ValueError: it failed.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    variables = {**os.environ, **environment, 'PYTHONPATH': os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f'status {done.returncode}, perhaps out of memory'])[-1]
        raise ValueError(f'python {" ".join(arguments[:3])} failed: {reason}')
    return done.stdout.splitlines()[-1]
