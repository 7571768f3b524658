"""Runs over random images, taken step by step for timing. No other benchmark touches the internals of a `Trainer`."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax import data, methods, networks, policies
from kcd_jax.contracts import Phase, TrainState
from kcd_jax.runtime import sharding
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import ledger, step
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_pass import TeacherPass
from kcd_jax.training.trainer import Trainer

ROOT = pathlib.Path(__file__).parent.parent
BATCH = Recipe().batch


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


def run_of(
    pair: str,
    dataset: data.Dataset,
    method: str = 'kd',
    policy: str = 'none',
    recipe: Recipe | None = None,
    teaching: Mapping[str, Any] = MappingProxyType({'in_step': True}),
    **keywords: Any,
) -> Run:
    """A run with an untrained teacher.

    Args:
      pair: 'TEACHER-STUDENT'.
      dataset: what is trained on.
      method: by name, with its defaults.
      policy: by name.
      recipe: default that of CIFAR-100.
      teaching: how the teacher is asked; by default inside the step, which is then timed with it.
      **keywords: of the policy.
    """
    teacher, student = pair.split('-')
    network = networks.get(teacher)(dataset.num_classes, normalization=dataset.normalization)
    variables = network.init(jax.random.PRNGKey(0), dataset.image_shape)
    return Run(
        student=student,
        data=dataset,
        teacher=Teacher(network, variables, card={}, identity='untrained'),
        method=methods.get(method).make(),
        policy=policies.get(policy).make(**keywords),
        recipe=(recipe or Recipe()).replace(teaching=dict(teaching)),
    )


class TimedRun:
    """A run that is moved on by `step` and `epoch`.

    Attributes:
      run: what is trained.
      trainer: its programs.
      state: the current state.
      phase: the steps are of this phase, at first the last one; `enter` changes it.
    """

    def __init__(self, run: Run, mesh: Mesh | None = None):
        self.run, self.mesh = run, mesh or sharding.make_mesh()
        self.trainer = Trainer(run, run.teacher.variables, self.mesh)
        self.state: TrainState = self.trainer.initial_state()
        self.enter(run.phases[-1])

    def enter(self, phase: Phase) -> None:
        """Makes the next steps those of `phase`."""
        self.phase = phase
        self._order, self._rates = None, self.trainer._rates(phase, 0)

    def arguments(self) -> tuple[Any, ...]:
        """What a step takes after the state: the epoch's order, learning rates, points, teacher variables."""
        if self._order is None:
            self._order = self.order(0)
        return self._order, self._rates, self.trainer.feed.points, self.trainer.teacher_variables, None

    def program(self) -> jax.stages.Compiled:
        """The compiled step of the phase."""
        return self.trainer._program(self.phase, 1, self.state).compiled(self.state, *self.arguments())

    def function(self) -> Callable[..., tuple[TrainState, jax.Array]]:
        """The step of the phase before compilation: (state, *arguments) -> (state, loss)."""
        return functools.partial(step.run_chunk, spec=self.trainer._spec, phase=self.phase, length=1)

    def step(self) -> jax.Array:
        """Takes one training step and returns its loss; the first call compiles."""
        self.state, loss = self.program()(self.state, *self.arguments())
        return jax.block_until_ready(loss)

    def epoch(self, num_keep: int, *, again: bool = False) -> None:
        """Trains for one epoch of `num_keep` points, without evaluation; `again`: the first one, with its views."""
        whole = sharding.replicated(self.mesh)
        self.state = self.state.replace(plan=self.state.plan.replace(num_keep=sharding.put(np.int32(num_keep), whole)))
        if again:
            self.state = self.state.replace(epoch=sharding.put(np.int32(0), whole))
        ignore = lambda *values, **named: None  # noqa: E731
        self.state, _ = self.trainer.train_epoch(self.state, int(self.state.epoch), ignore, ignore)

    def order(self, epoch: int) -> jax.Array:
        """The order of an epoch, on the devices."""
        return jax.block_until_ready(self.trainer._order(self.state.key, self.state.plan, jnp.int32(epoch)))

    @property
    def teacher_pass(self) -> TeacherPass:
        """What asks a teacher that answers before the steps."""
        return self.trainer._answers.teacher_pass

    @property
    def num_programs(self) -> int:
        """Programs of training steps that were compiled so far."""
        return len(self.trainer._programs)

    @property
    def macs_per_step(self) -> int:
        """Multiply-accumulates of a step, as the ledger counts them."""
        return ledger.step_cost(self.run, self.phase).total

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, method state and optimiser state."""
        kept = self.state.params, self.state.method_state, self.state.opt_state
        return sum(leaf.nbytes for leaf in jax.tree.leaves(kept))


def timed_run(pair: str, num_points: int, *, streamed: bool = False, **settings: Any) -> TimedRun:
    """A `TimedRun` over random images.

    Args:
      pair: 'TEACHER-STUDENT'.
      num_points: training images.
      streamed: reads the images by index instead of keeping them on the devices.
      **settings: further arguments of `run_of`.
    """
    dataset = random_data(num_points)
    return TimedRun(run_of(pair, data.by_index(dataset) if streamed else dataset, **settings))


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
