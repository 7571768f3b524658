"""Every method and every policy in the one loop: they train on the digits, and resume to the bit.

The networks are the tests' tiny ones. Methods and policies are found in their folders: a new file is trained here
without an edit. `reuse` needs a run to reuse and has its own tests; every pair of the two: tests/faults/matrix.py.
"""

from __future__ import annotations

import os
import signal

import jax
import numpy as np
import pytest

from kcd_jax import methods, policies
from kcd_jax.training import train
from tests import digits
from tests.digits import assert_same_run, final_state, metrics

PAIRS = {'fsp': 'tiny_teacher-tiny_teacher', 'one': 'tiny_teacher-tiny_one'}  # what the others' pair does not offer

CASES = [(method, 'kcd') for method in methods.names()]
CASES += [('kd', policy) for policy in policies.names() if policy not in ('kcd', 'reuse')]
CASES += [('at', 'unix'), ('sp', 'unix'), ('kr', 'unix')]
CASES += [(f'kr,{word}', 'none') for word in ('posterior=kdgan', 'posterior=nst', 'sparse=penalty', 'sparse=none')]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def teacher_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('teacher')


def config_for(method, policy):
    pair = PAIRS.get(method, 'tiny_teacher-tiny')
    config = digits.config_for('num_points=120', pair=pair, method=method, policy=policy)
    if policy == 'unix':
        config.policy.k = 12  # three quarters of 20 do not divide by four devices
    return config


@pytest.mark.parametrize(('method', 'policy'), CASES)
def test_it_trains_and_resumes_to_the_bit(tiny_networks, teacher_dir, tmp_path, monkeypatch, method, policy):
    config = config_for(method, policy)
    loops, before = [], []
    look = train.Loop.initial_state

    def remember(self, images):
        loops.append(self)
        before.append(jax.device_get(self.teacher_variables))
        return look(self, images)

    monkeypatch.setattr(train.Loop, 'initial_state', remember)
    whole = train.train(config, tmp_path / 'whole', teacher_dir=teacher_dir)
    # The teacher is the same to the bit; the last loop is the student's (the first test trains the teacher before).
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loops[-1].teacher_variables), before[-1])
    assert bool(before[-1]) == (loops[-1].run.teacher is not None)
    arrays, records = final_state(whole.workdir), metrics(whole.workdir)
    for path, array in arrays.items():
        if array.dtype.kind == 'f':
            assert np.isfinite(array).all(), path
    # Six epochs of a tiny network teach little, and warm-ups make a loss rise: what must hold is that it is a number.
    assert all(isinstance(record['loss'], float) for record in records if record['kind'] == 'train')

    original = train.Loop.train_epoch

    def cut_in_the_middle(self, current, epoch, between):
        seen = []

        def counting(state):
            seen.append(1)
            if epoch == len(self.epochs) // 2 and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            between(state)

        return original(self, current, epoch, counting)

    monkeypatch.setattr(train.Loop, 'train_epoch', cut_in_the_middle)
    with pytest.raises(train.Preempted):
        train.train(config, tmp_path / 'cut', teacher_dir=teacher_dir)
    monkeypatch.setattr(train.Loop, 'train_epoch', original)
    train.train(config, tmp_path / 'cut', teacher_dir=teacher_dir)
    assert_same_run(whole.workdir, tmp_path / 'cut')
