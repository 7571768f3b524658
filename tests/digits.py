"""Short runs on the digits with the tests' tiny networks (fixture `tiny_networks`), and what a run leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kcd_jax import data, methods, networks, policies
from kcd_jax.runtime import checkpoint, sharding
from kcd_jax.training import loop, trainer
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / 'tests' / 'tiny')  # the folder with the family of tiny networks
PAIR = 'tiny_teacher-tiny'
RECIPE = {
    'epochs': 6,
    'batch': 20,
    'augment': {'crop': 2, 'flip': False},
    'eval_every': 6,
    'eval_batch': 600,
    'checkpoint': {'seconds': 1e9},
}


def know_tiny_networks(patch: pytest.MonkeyPatch) -> None:
    """Makes the networks 'tiny', 'tiny_one' and 'tiny_teacher' known by their names, as a user's own file is."""
    patch.setattr(networks, '__path__', [*networks.__path__, TINY])


def words_for(words: str = '', pair: str = PAIR, method: str = 'kd', policy: str = 'kcd') -> str:
    """'FILE:words' of the digits config in quicktest form, evaluated and saved at the end alone."""
    named = f'quicktest,{pair},method={method},policy={policy},eval_every=6,checkpoint.seconds=1e9'
    return f'{ROOT}/configs/digits_kd.py:{named}' + (f',{words}' if words else '')


def run_for(words: str = '', pair: str = PAIR, method: str = 'kd', policy: str = 'kcd', **changes: Any) -> Run:
    """The run of `words_for`; `changes` replace fields of its recipe."""
    run = Run.from_config(words_for(words, pair, method, policy))
    return run.replace(recipe=run.recipe.replace(**changes))


def object_run(teacher: Any = None, **changes: Any) -> Run:
    """A run built from objects alone, without a config file; `changes` replace its fields."""
    if teacher is None:
        teacher = Run('tiny_teacher', data.load('digits', num_points=300), recipe={**RECIPE, 'survey': False})
    fields = {
        'student': 'tiny',
        'teacher': teacher,
        'data': data.load('digits', num_points=300),
        'method': methods.get('kd').make(),
        'policy': policies.get('kcd').make(stages=3),
        'recipe': Recipe(**RECIPE),
    }
    return Run(**{**fields, **changes})


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device: programs for it compile faster than those for four."""
    return sharding.make_mesh(jax.devices()[:1])


@contextlib.contextmanager
def sigterm(epoch: int, chunks: int) -> Iterator[None]:
    """Inside, a student's training gets SIGTERM after `chunks` chunks of steps of epoch `epoch` (from 0)."""
    original = trainer.Trainer.train_epoch

    def train_epoch(self, current, number, between, told):
        seen = []

        def counting(state):
            seen.append(1)
            if number == epoch and len(seen) == chunks:
                os.kill(os.getpid(), signal.SIGTERM)
            between(state)

        return original(self, current, number, counting, told)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(loop.Preempted, match='SIGTERM'):
        patch.setattr(trainer.Trainer, 'train_epoch', train_epoch)
        yield


def final_state(workdir: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    with checkpoint.Checkpointer(pathlib.Path(workdir) / 'checkpoints') as keeper:
        return keeper.read(keeper.steps()[-1])[0]


def metrics(workdir: str | pathlib.Path) -> list[dict]:
    """The records of a run without their times."""
    lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != 'time'} for line in lines]


def stage(workdir: str | pathlib.Path, number: int) -> dict[str, np.ndarray]:
    """The arrays of a run's stage file."""
    with np.load(pathlib.Path(workdir) / 'knowledge' / f'stage_{number}.npz') as arrays:
        return dict(arrays)


def assert_same_run(one: str | pathlib.Path, other: str | pathlib.Path) -> None:
    """Bit-identical arrays and equal records."""
    arrays, others = final_state(one), final_state(other)
    assert arrays.keys() == others.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, others[path], err_msg=path)
    assert metrics(one) == metrics(other)
