"""Checkpoints: what comes back, what damage does, and what a kill or a full disk leaves."""

from __future__ import annotations

import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.contracts import TrainState, ValueTable, full_plan
from kcd_jax.runtime import checkpoint, sharding
from kcd_jax.runtime.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_state(seed: int = 0, num_points: int = 300, width: int = 5, devices: int = 4) -> TrainState:
    """A small training state with empty, scalar, integer, bfloat16 and zero-sized leaves."""
    rng = np.random.default_rng(seed)
    table = ValueTable.create(num_points)
    table = table.replace(value=jnp.asarray(rng.normal(size=table.value.shape), jnp.float32))
    params = {'student': {'kernel': jnp.asarray(rng.normal(size=(7, width)), jnp.float32)}, 'method': {}}
    state = TrainState(
        step=jnp.int32(seed), epoch=jnp.int32(0), done=jnp.int32(0), key=jax.random.PRNGKey(seed), params=params,
        model_state={'half': jnp.ones((3, 2), jnp.bfloat16), 'empty': jnp.zeros((0, 4))}, method_state={},
        opt_state={'main': ({}, params)}, table=table, plan=full_plan(num_points), policy_state={},
        metrics={'loss': jnp.zeros(2)}, bad_step=jnp.int32(-1),
    )  # fmt: skip
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return sharding.put(state, sharding.state_shardings(mesh, state))


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, wanted)


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    with Checkpointer(folder) as keeper:
        for step in (1, 2):
            keeper.save(step, make_state(step), {'seconds': {'train': step / 3}, 'evaluations': [{'epoch': step}]})
    return folder


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path) as keeper:
        assert keeper.restore_latest(make_state()) is None and keeper.steps() == []


def test_the_newest_checkpoint_is_restored(saved):
    wanted = make_state(2)
    with Checkpointer(saved) as keeper:
        state, meta = keeper.restore_latest(make_state(9))
    assert_same(state, wanted)
    assert meta == {'seconds': {'train': 2 / 3}, 'evaluations': [{'epoch': 2}]}
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, wanted)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('devices', [1, 2])
def test_another_number_of_devices(saved, devices):
    with Checkpointer(saved) as keeper:
        state, _ = keeper.restore_latest(make_state(9, devices=devices))
    assert_same(state, make_state(2))
    assert state.table.value.sharding.mesh.size == devices


def test_an_abstract_state_is_enough(saved):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_state())
    with Checkpointer(saved) as keeper:
        assert_same(keeper.restore_latest(abstract)[0], make_state(2))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    with Checkpointer(tmp_path, keep=2) as keeper:
        for step in (3, 7, 20, 100):
            keeper.save(step, make_state(step), {})
    with Checkpointer(tmp_path) as keeper:
        assert keeper.steps() == [20, 100]


def test_the_arrays_are_copied_before_the_run_donates_them(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    state = make_state(1)
    with Checkpointer(tmp_path) as keeper:
        keeper.save(1, state, {})
        for _ in range(5):
            state = step(state)
        keeper.wait()
        assert_same(keeper.restore_latest(make_state())[0], make_state(1))


def test_a_step_that_is_there_is_kept(tmp_path):
    with Checkpointer(tmp_path) as keeper:
        keeper.save(1, make_state(1), {'first': True})
        keeper.save(1, make_state(2), {'first': False})
        assert keeper.restore_latest(make_state())[1] == {'first': True}


def rewrite(path: pathlib.Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def biggest(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGE = {
    'a flipped byte': lambda step: rewrite(biggest(step / 'state' / 'ocdbt.process_0' / 'd'), flip),
    'a changed note': lambda step: rewrite(step / 'meta' / 'metadata', lambda b: b.replace(b'666', b'667')),
    'truncated data': lambda step: rewrite(biggest(step / 'state'), lambda b: b[: len(b) // 2]),
    'deleted data': lambda step: biggest(step / 'state' / 'ocdbt.process_0' / 'd').unlink(),
    'cut notes': lambda step: rewrite(step / 'meta' / 'metadata', lambda b: b[: len(b) // 2]),
    'a missing item': lambda step: shutil.rmtree(step / 'meta'),
    'missing arrays': lambda step: shutil.rmtree(step / 'state'),
    'an empty step': lambda step: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in step.iterdir()],
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path, capfd, damage):
    folder = shutil.copytree(saved, tmp_path / 'checkpoints')
    DAMAGE[damage](folder / '2')
    with Checkpointer(folder) as keeper:
        state, meta = keeper.restore_latest(make_state(9))
        assert_same(state, make_state(1))
        assert meta['evaluations'] == [{'epoch': 1}]
        out, err = capfd.readouterr()
        assert out.count('\n') == 1 and out.startswith('checkpoint 2 is damaged (') and not err
        assert out.endswith('); passed over\n')
        assert (folder / '2').exists(), 'nothing is deleted before there is something newer'
        keeper.save(2, make_state(5), {'again': True})  # the damaged one neither hides nor outlives the new one
        keeper.wait()
        assert keeper.steps() == [1, 2]
    with Checkpointer(folder) as keeper:
        state, meta = keeper.restore_latest(make_state(9))
    assert meta == {'again': True}
    assert_same(state, make_state(5))


def test_resuming_below_a_damaged_step(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / 'checkpoints')
    (folder / '2').rename(folder / '30')
    DAMAGE['a flipped byte'](folder / '30')
    with Checkpointer(folder) as keeper:
        keeper.restore_latest(make_state())
        keeper.save(12, make_state(12), {})
        keeper.wait()
        assert keeper.steps() == [1, 12]


def test_without_a_whole_checkpoint_nothing_is_restored(saved, tmp_path, capfd):
    folder = shutil.copytree(saved, tmp_path / 'checkpoints')
    for step in ('1', '2'):
        DAMAGE['a missing item'](folder / step)
    with Checkpointer(folder) as keeper:
        assert keeper.restore_latest(make_state()) is None
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(' is')[0] for line in lines] == ['checkpoint 2', 'checkpoint 1', 'no checkpoint']
    assert lines[2] == 'no checkpoint is whole; starting from the beginning'


@pytest.mark.parametrize(
    ('lost', 'step', 'lines'),
    [
        ([2], 1, ['stage_2.npz is damaged or missing; looking for a checkpoint from before it']),
        (
            [1, 2],
            2,
            [
                'stage_2.npz is damaged or missing; looking for a checkpoint from before it',
                'no checkpoint is from before stage_2.npz, which stays lost; nothing else depends on it',
            ],
        ),
    ],
)
def test_a_checkpoint_from_before_a_lost_file_is_preferred(saved, capfd, lost, step, lines):
    def lacks(meta):
        epoch = meta['evaluations'][-1]['epoch']
        return f'stage_{epoch}.npz' if epoch in lost else ''

    with Checkpointer(saved) as keeper:
        state, _ = keeper.restore_latest(make_state(9), lacks)
    assert_same(state, make_state(step))
    assert capfd.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    'other, words',
    [
        (lambda: make_state(width=6), r'params/student/kernel \(float32\[7,5\] there, float32\[7,6\] here\)'),
        (lambda: make_state(num_points=600), r'plan/epsilon \(float32\[512\] there, float32\[1024\] here\)'),
        (lambda: make_state().replace(policy_state={'pool': jnp.zeros(3)}), r'policy_state/pool \(nothing there'),
    ],
)
def test_another_configuration_is_refused(saved, other, words):
    with Checkpointer(saved) as keeper, pytest.raises(ValueError, match=f'of another configuration: .*{words}'):
        keeper.restore_latest(other())


def test_one_checkpoint_is_too_few(tmp_path):
    with pytest.raises(ValueError, match='checkpoint.keep is 1; keep at least 2'):
        Checkpointer(tmp_path, keep=1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be written'):
        Checkpointer(tmp_path / 'file' / 'checkpoints')


def test_a_full_disk_is_reported_in_one_line_and_earlier_checkpoints_survive(tmp_path, capfd):
    big = sharding.put(np.random.default_rng(0).normal(size=1 << 20), sharding.replicated(sharding.make_mesh()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = make_state(1)
    try:
        with pytest.raises(OSError, match='could not be written under .* earlier ones are intact'):
            with Checkpointer(tmp_path) as keeper:
                keeper.save(1, small, {})
                keeper.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
                keeper.save(2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not capfd.readouterr().err
    with Checkpointer(tmp_path) as keeper:
        assert keeper.steps() == [1]
        assert_same(keeper.restore_latest(make_state())[0], small)


KILLED = """
import sys, jax, jax.numpy as jnp
from kcd_jax.runtime import checkpoint, sharding
from kcd_jax.runtime.checkpoint import Checkpointer
replicated = sharding.replicated(sharding.make_mesh())
with Checkpointer(sys.argv[1]) as keeper:
    for step in range(1, 10000):
        keeper.save(step, sharding.put({'x': jnp.full(50000, step, jnp.int32)}, replicated), {'step': step})
        print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.0, 0.05])
def test_sigkill_leaves_a_whole_checkpoint(tmp_path, delay):
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    for line in process.stdout:
        if int(line) >= 4:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    started = max([4, *(int(line) for line in process.stdout)])
    process.wait()
    wanted = sharding.put({'x': jnp.zeros(50000, jnp.int32)}, sharding.replicated(sharding.make_mesh()))
    with Checkpointer(tmp_path) as keeper:
        state, meta = keeper.restore_latest(wanted)
    assert started - 2 <= meta['step'] <= started + 1
    assert np.unique(state['x']).tolist() == [meta['step']]
    assert not list(tmp_path.glob('*tmp*'))


def test_late_writes_of_a_failed_save_print_nothing(monkeypatch, caplog):
    reported = []
    monkeypatch.setattr(sys, 'unraisablehook', reported.append)
    checkpoint._quiet_late_writes.__wrapped__()
    late, other = (types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ('Event loop is closed', 'another'))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert reported == [other]
    logger = logging.getLogger('asyncio')
    logger.error('Task exception was never retrieved: /site-packages/orbax/checkpoint/type_handlers.py')
    logger.error('another')
    assert [record.getMessage() for record in caplog.records] == ['another']
