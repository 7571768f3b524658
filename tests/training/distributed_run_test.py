"""Runs of two real processes: one writer, the same order of the data, pre-emption, other topologies, errors of one."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from kcd_jax.experiments import config as grammar
from kcd_jax.runtime import sharding
from kcd_jax.training.run import Run
from tests.digits import assert_same_run, final_state, know_tiny_networks, metrics, sigterm
from tests.runtime.distributed_test import LAUNCHER, ROOT, launch

PROGRAM = 'tests.tiny.program'
RUN = pathlib.Path('kcd', 'trial_0')

pytestmark = [pytest.mark.slow, pytest.mark.fast_compile]


@pytest.fixture(scope='module')
def teacher(tmp_path_factory) -> pathlib.Path:
    """A tiny teacher, trained on the devices of this process."""
    folder = tmp_path_factory.mktemp('teacher')
    with pytest.MonkeyPatch.context() as patch:
        know_tiny_networks(patch)
        run_of('').teacher.train(folder)
    return folder


def words(teacher: object) -> str:
    """A run of six epochs and three condensations on few points; its batch divides by 8 devices."""
    path = f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,method=kd,policy=kcd'
    return f'{path},eval_every=6,batch=24,num_points=144,checkpoint.seconds=1e9,teacher.checkpoint={teacher}'


def run_of(teacher: object) -> Run:
    return grammar.run_of(grammar.load(words(teacher)))


@pytest.fixture(scope='module')
def whole(teacher, tmp_path_factory) -> pathlib.Path:
    """The run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp('whole')
    found = launch(PROGRAM, f'--config={words(teacher)}', f'--workdir={folder}', f'--results={folder}/results')
    assert found.returncode == 0, found.stderr
    assert '[1]' not in found.stdout, 'the second process says nothing'
    return folder


def test_two_processes_keep_the_promises_to_four_devices_of_one(whole, teacher, tmp_path, monkeypatch):
    """One writer; the same points and teacher's answers at every step; the first table within 1e-4, its set to 1 %."""
    know_tiny_networks(monkeypatch)
    alone = run_of(teacher).train(tmp_path, mesh=sharding.make_mesh()).workdir
    records = metrics(whole / RUN)
    assert [(r['kind'], r['step']) for r in records] == [(r['kind'], r['step']) for r in metrics(alone)]
    assert len(list((whole / 'results').glob('*.json'))) == 1
    assert json.loads((whole / RUN / 'summary.json').read_text())['device'] == {
        'kind': 'cpu', 'backend': 'cpu', 'count': 4, 'processes': 2
    }  # fmt: skip
    stages = [np.load(folder / 'knowledge' / 'stage_1.npz') for folder in (alone, whole / RUN)]
    np.testing.assert_array_equal(stages[0]['count'], stages[1]['count'])
    np.testing.assert_allclose(stages[0]['value'], stages[1]['value'], atol=1e-4)
    kept = [set(stage['order'][: stage['num_keep']]) for stage in stages]
    assert len(kept[0] & kept[1]) >= 0.99 * len(kept[0])
    for one, other in zip(records, metrics(alone), strict=True):
        if one['kind'] == 'train' and one['epoch'] == 1:  # the teacher's answers reach the same rows
            for name in ('kd', 'teacher_entropy'):
                assert one[name] == pytest.approx(other[name], rel=1e-3)
    for folder in (alone, whole / RUN):
        summary = json.loads((folder / 'summary.json').read_text())
        rows = summary['computed']['teacher_rows']
        assert rows['computed'] + rows['served'] == summary['cost']['samples']['teacher_forward']


def test_each_process_of_two_reads_its_rows_of_streamed_data(whole, teacher, tmp_path):
    """The same points at every step, with the same values, as where all of them lie on every device."""
    found = launch(PROGRAM, f'--config={words(teacher)},data.stream=true', f'--workdir={tmp_path}')
    assert found.returncode == 0, found.stderr
    for number in (1, 2, 3):
        stages = [np.load(folder / RUN / 'knowledge' / f'stage_{number}.npz') for folder in (whole, tmp_path)]
        np.testing.assert_array_equal(stages[0]['count'], stages[1]['count'])
        np.testing.assert_allclose(stages[0]['value'], stages[1]['value'], atol=1e-4)


def test_sigterm_to_one_process_makes_all_save_the_same_step(whole, teacher, tmp_path):
    """Sent to the second process alone; both exit 75, the launcher starts them again, and not a bit is lost."""
    args = ['--', f'--config={words(teacher)}', f'--workdir={tmp_path}']
    command = [*LAUNCHER, '--restarts=1', f'--module={PROGRAM}', *args]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / RUN / 'metrics.jsonl'
        while not log.exists() or log.read_bytes().count(b'\n') < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        second = next(pid for pid in children(process.pid) if b'--process=1' in command_line(pid))
        os.kill(second, signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert 'SIGTERM: saved step' in errors and 'starting all 2 again; restarts left: 0' in errors
    assert_same_run(whole / RUN, tmp_path / RUN)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in pathlib.Path(f'/proc/{parent}/task/{parent}/children').read_text().split()]


def command_line(pid: int) -> bytes:
    return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()


def test_a_checkpoint_of_four_devices_resumes_on_two_processes(teacher, tmp_path, monkeypatch):
    """Cut in epoch 4 on four devices of one process: the table that was saved is the one that is gone on from."""
    know_tiny_networks(monkeypatch)
    folder = tmp_path / RUN
    with sigterm(3, 2):
        run_of(teacher).train(folder)
    saved = final_state(folder)
    found = launch(PROGRAM, f'--config={words(teacher)}', f'--workdir={tmp_path}')
    assert found.returncode == 0, found.stderr
    assert f'going on from step {int(saved["step"])}, epoch 4 of 6' in found.stdout
    assert [r['epoch'] for r in metrics(folder) if r['kind'] == 'train'] == [1, 2, 3, 4, 5, 6]
    with np.load(folder / 'knowledge' / 'stage_2.npz') as stage:  # after epoch 3, written before the cut
        np.testing.assert_array_equal(stage['order'], saved['plan/order'])
    final = final_state(folder)
    visits = final['table/count'] - saved['table/count']
    assert visits.min() >= 0 and visits.sum() == (int(final['step']) - int(saved['step'])) * 24


def test_auto_without_a_cluster_is_refused_in_one_line(teacher):
    command = [sys.executable, '-m', PROGRAM, f'--config={words(teacher)}', '--coordinator=auto', '--check']
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2 and found.stderr.count('\n') == 1
    assert '--coordinator=auto finds no cluster' in found.stderr


def by_hand(*args: list[str]) -> list[subprocess.CompletedProcess]:
    """Two processes with different arguments, and how they ended."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        connect = [f'--coordinator=127.0.0.1:{probe.getsockname()[1]}', '--processes=2', '--devices=2']
    started = [
        subprocess.Popen(
            [sys.executable, '-m', PROGRAM, *connect, f'--process={number}', *own],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, own in enumerate(args)
    ]  # fmt: skip
    ended = []
    for process in started:
        out, errors = process.communicate(timeout=120)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, errors))
    return ended


def test_a_mistake_of_one_process_ends_all_with_one_line(teacher, tmp_path):
    (tmp_path / 'file').touch()
    base = f'--config={words(teacher)}'
    cases = [
        (
            [],
            ['--config.optim.lr=0.2'],
            'process 1: another configuration than on process 0: recipe.optim.lr is 0.05 there',
        ),
        ([f'--workdir={tmp_path}/file/below'], [], 'is a file, not a folder; choose another place'),
    ]
    for first, second, says in cases:
        workdir = [f'--workdir={tmp_path}/run']
        ended = by_hand([base, *workdir, *first], [base, *workdir, *second])
        assert [process.returncode for process in ended] == [2, 2]
        lines = [line for process in ended for line in process.stderr.splitlines() if '[Gloo]' not in line]
        assert len(lines) == 1 and says in lines[0], lines
