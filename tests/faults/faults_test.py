"""One quick representative of the faults that damage a run's folder, and the table of docs/RELIABILITY.md.

`run.py` next to it injects all faults into real processes. Damaged checkpoints, logs and full disks on their own are in
tests/runtime, damaged caches in tests/data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from kcd_jax.runtime import distributed
from kcd_jax.teachers import teacher
from kcd_jax.training import loop
from kcd_jax.training.run import Run
from kcd_jax.training.trainer import Trainer
from tests.faults.harness import differences

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_the_page_shows_the_stored_results():
    """When this fails: `python tests/faults/run.py --table` writes it."""
    command = [sys.executable, 'tests/faults/run.py', '--check']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr


def test_nothing_was_lost():
    """The stored results themselves, not the page."""
    results = {path.stem: json.loads(path.read_text()) for path in (ROOT / 'results' / 'faults').glob('*.json')}
    assert {'kill_in_checkpoint', 'kill_in_condensation'} <= results.keys()
    for name, result in results.items():
        assert result['injections'] and not any(injection['lost'] for injection in result['injections']), name


def make_run(**recipe: object) -> Run:
    """A KC run of the digits that saves after every step."""
    words = 'quicktest,tiny_teacher-tiny,method=none,policy=kcd,eval_every=2'
    run = Run.from_config(f'{ROOT}/configs/digits_kd.py:{words}')
    often = dataclasses.replace(run.recipe.checkpoint, seconds=0.0)
    return run.replace(recipe=dataclasses.replace(run.recipe, checkpoint=often, **recipe))


@pytest.fixture(scope='module')
def cut(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """(folder of a finished run, folder of one that was stopped in its fourth epoch)."""
    from kcd_jax import networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, '__path__', [*networks.__path__, str(ROOT / 'tests' / 'tiny')])
        folder = tmp_path_factory.mktemp('faults')
        original = Trainer.train_epoch

        def stopped(self, current, epoch, *others):
            if epoch == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, current, epoch, *others)

        patch.setattr(Trainer, 'train_epoch', stopped)
        with pytest.raises(distributed.Stopped):
            loop.train(make_run(), folder / 'cut')
        patch.setattr(Trainer, 'train_epoch', original)
        shutil.copytree(folder / 'cut', folder / 'whole')
        loop.train(make_run(), folder / 'whole')
    return folder / 'whole', folder / 'cut'


@pytest.fixture
def halfway(cut, tiny_networks, tmp_path) -> pathlib.Path:
    return shutil.copytree(cut[1], tmp_path / 'run')


def halve(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_log_a_config_and_a_checkpoint_cut_at_once(cut, halfway, capfd):
    halve(halfway / 'metrics.jsonl')
    halve(halfway / 'config.json')
    steps = sorted(int(path.name) for path in (halfway / 'checkpoints').iterdir())
    halve(halfway / 'checkpoints' / str(steps[-1]) / 'meta' / 'metadata')
    loop.train(make_run(), halfway)
    assert differences(halfway, cut[0]) == []
    out = capfd.readouterr().out
    assert out.count('is damaged') == 1 and f'going on from step {steps[-2]}, ' in out


def test_the_checkpoint_knows_its_configuration(halfway):
    (halfway / 'config.json').unlink()
    slower = make_run(optim=dataclasses.replace(make_run().recipe.optim, lr=0.01))
    with pytest.raises(ValueError, match=r'another configuration: recipe.optim.lr is 0.05 there and 0.01 here'):
        loop.train(slower, halfway)


@pytest.mark.parametrize('state', ['finished', 'interrupted'])
@pytest.mark.parametrize('part', ['train', 'test'])
def test_labels_that_changed_are_refused(cut, tiny_networks, tmp_path, state, part):
    """Same names, same numbers of points: a finished run must not be shown again, nor an interrupted one continued."""
    folder = shutil.copytree(cut[0] if state == 'finished' else cut[1], tmp_path / 'run')
    run = make_run()
    split = getattr(run.data, part)
    other = dataclasses.replace(split, labels=np.roll(split.labels, 1))
    run = run.replace(data=dataclasses.replace(run.data, **{part: other}))
    with pytest.raises(ValueError, match=f'holds another run: the data .* {part} labels differ; use another --workdir'):
        loop.train(run, folder)


@pytest.mark.slow
def test_a_stage_file_that_no_checkpoint_can_restore_stays_lost(halfway, cut, capfd):
    halve(halfway / 'knowledge' / 'stage_1.npz')
    loop.train(make_run(), halfway)
    out = capfd.readouterr().out
    assert 'no checkpoint is from before knowledge/stage_1.npz, which stays lost' in out
    assert 'stage_1.npz cannot be read and was removed' in out
    shutil.copy(cut[0] / 'knowledge' / 'stage_1.npz', halfway / 'knowledge')
    assert differences(halfway, cut[0]) == []


@pytest.mark.parametrize('name', ['summary.json', teacher.FILE, 'metrics.jsonl', 'knowledge/points.npz'])
def test_a_damaged_result_is_written_again(cut, tiny_networks, tmp_path, name):
    folder = shutil.copytree(cut[0], tmp_path / 'run')
    content = bytearray((folder / name).read_bytes())
    content[-100] ^= 0xFF
    (folder / name).write_bytes(content)
    loop.train(make_run(), folder)
    assert differences(folder, cut[0]) == []


@pytest.mark.slow
def test_a_run_continues_after_a_full_disk(cut, halfway):
    """With a limit on the size of files, the log is the first to notice."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match='could not be written|cannot be written'):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            loop.train(make_run(), halfway)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    loop.train(make_run(), halfway)
    assert differences(halfway, cut[0]) == []
