"""python -m kcd_jax sweep: what is missing is run, what was cut goes on, what has not finished stays empty."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kcd_jax.commands import launch, sweep
from kcd_jax.experiments import grid, runner
from kcd_jax.runtime import exitcodes, runlog, sharding
from kcd_jax.training import loop

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,checkpoint.seconds=1e9'
FILE = f"""
from kcd_jax.experiments.experiment import Reuse
from kcd_jax.experiments.grid import Grid
ROWS = {{'KD': 'policy=none', 'KC-KD': 'policy=kcd,stages=3', 'DS': Reuse('KC-KD', 'ds')}}
SWEEPS = {{
    'three': Grid('Three rows', '{DIGITS}', ROWS, references=('KD', 'KC-KD')),
    'two': Grid('The same KD', '{DIGITS}', {{'Student alone': 'method=none,policy=none', 'KD': 'policy=none'}}),
    'columns': Grid('Two pairs', '{DIGITS}', {{'KD': 'policy=none'}}, ('tiny_teacher-tiny', 'resnet14-resnet8')),
    'wrong': Grid('A mistake', '{DIGITS}', {{'KD': 'policy=none', 'KC-KD': 'policy=kcd,stages=4'}}),
}}
"""


@pytest.fixture
def here(tmp_path, tiny_networks, monkeypatch):
    """The current folder has a sweep file; JAX keeps the test's devices."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'ablations.py').write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'prepare_jax', lambda devices=0, deterministic=False: None)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained, in order."""
    started = []
    create = loop.Trainer.__init__

    def counted(self, run, *args, **kwargs):
        started.append(run)
        create(self, run, *args, **kwargs)

    monkeypatch.setattr(loop.Trainer, '__init__', counted)
    return started


def runner_of(name, **limits):
    """The sweep as the program makes it."""
    known, root = grid.read('configs/ablations.py')
    experiment = grid.build(name, known[name], root)
    return runner.Runner(experiment, runner.by_content(experiment, 'runs', 'results'), shared=True, **limits)


@pytest.mark.slow
def test_from_the_list_to_the_table(here, trained, capsys):
    assert sweep.main(['three', '--dry', '--trials=1']) == 0
    said = capsys.readouterr().out
    assert '3 of 3 runs are missing' in said and '0 of 1' in said and '--config=' in said
    assert 'DS: --config=' in said and 'from the final set of KC-KD' in said
    assert not (here / 'results').exists() and not (here / 'runs').exists()

    assert sweep.main(['three', '--trials=1']) == 0
    said = capsys.readouterr().out
    assert '3 of 3 runs' in said and 'DS, seed 0' in said and 'Three rows (digits: tiny_teacher -> tiny' in said
    assert len(trained) == 4, 'three runs and one teacher'
    stored = {path.stem: json.loads(path.read_text()) for path in (here / 'results' / 'three').glob('*.json')}
    assert sorted(stored) == ['ds_0', 'kc_kd_0', 'kd_0', 'teacher_tiny_teacher_1000']
    assert stored['ds_0']['run']['policy'] == {'name': 'reuse', 'run': '<KC-KD>', 'mode': 'ds'}
    assert 'runs/' not in json.dumps(stored)
    assert stored['kc_kd_0']['command'].endswith('policy=kcd,stages=3,seed=0')
    assert stored['ds_0']['command'].endswith("policy=none,seed=0,policy=reuse,run=<KC-KD>,mode=ds'")

    # Again: nothing is trained. A result that is gone is trained again, alone, and ends as before.
    assert sweep.main(['three', '--trials=1']) == 0 and len(trained) == 4
    (here / 'results' / 'three' / 'kd_0.json').unlink()
    assert sweep.main(['three', '--trials=1', '--workdir=elsewhere']) == 0
    assert [run.seed for run in trained[4:]] == [1000, 0], 'the teacher of the other folder, and the run'
    again = json.loads((here / 'results' / 'three' / 'kd_0.json').read_text())
    assert again['accuracy'] == stored['kd_0']['accuracy']

    # Another sweep with the same run takes it over.
    assert sweep.main(['two', '--trials=1', '--workdir=third']) == 0
    assert [run.method.name for run in trained[6:]] == ['none']
    taken = json.loads((here / 'results' / 'two' / 'kd_0.json').read_text())
    assert taken['accuracy'] == stored['kd_0']['accuracy'] and taken['cell']['sweep'] == 'two'
    # A result of another run is neither taken for this one nor overwritten.
    taken['run']['recipe']['epochs'] += 1
    (here / 'results' / 'two' / 'kd_0.json').write_text(json.dumps(taken))
    capsys.readouterr()
    assert sweep.main(['two', '--trials=1', '--workdir=third']) == exitcodes.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'KD, seed 0: recipe.epochs is 7 there and 6 here; move it' in error
    assert json.loads((here / 'results' / 'two' / 'kd_0.json').read_text()) == taken
    # Nor is the run of its own folder, if its data was another.
    (here / 'results' / 'three' / 'kd_0.json').unlink()
    (found,) = (path for path in (here / 'elsewhere').glob('*/seed_0/summary.json'))
    summary = json.loads(found.read_text())
    summary['run']['data']['identity'] = 'other'
    found.write_text(json.dumps(summary))
    assert sweep.main(['three', '--trials=1', '--workdir=elsewhere']) == exitcodes.BAD_INPUT
    error = capsys.readouterr().err
    assert (
        error.count('\n') == 1
        and 'holds a run that differs from KD, seed 0: the data' in error
        and 'use another --workdir' in error
    )


@pytest.mark.slow
def test_cut_in_a_run_and_between_runs(here, trained, capsys, monkeypatch):
    """The time limit is reached during the second run; the same command resumes from the saved step."""
    assert sweep.main(['two', '--trials=1', '--minutes=0.00001']) == exitcodes.OUT_OF_TIME
    said = capsys.readouterr()
    assert 'out of time: 0 of 2 runs' in said.err and not trained
    rows = [line.split() for line in said.out.splitlines()]
    assert ['Student', 'alone'] in rows and ['KD'] in rows, 'cells that have not finished are empty'
    assert '| KD |  |  |' in (here / 'results' / 'two' / 'table.md').read_text()

    cut = runner_of('two', minutes=60)
    train_epoch = loop.Trainer.train_epoch

    def ring(self, current, epoch, *args):
        if self.run.method.name == 'kd' and epoch == 2:
            cut.deadline = time.monotonic()
            signal.raise_signal(signal.SIGALRM)
        return train_epoch(self, current, epoch, *args)

    monkeypatch.setattr(loop.Trainer, 'train_epoch', ring)
    with pytest.raises(runner.OutOfTime):
        cut.work(sharding.make_mesh())
    assert cut.standing().startswith('1 of 2 runs')
    monkeypatch.setattr(loop.Trainer, 'train_epoch', train_epoch)
    whole = runner_of('two')
    (task,) = whole.missing()
    assert runlog.read_summary(task.folder) is None and list((task.folder / 'checkpoints').iterdir())
    assert whole.work(sharding.make_mesh()) == 0
    records = [json.loads(line) for line in (task.folder / 'metrics.jsonl').read_text().splitlines()]
    assert [record['epoch'] for record in records if record['kind'] == 'train'] == [1, 2, 3, 4, 5, 6]
    assert not whole.missing()


@pytest.mark.slow
def test_next_to_another_process(here, trained, monkeypatch):
    """A run that another process holds is left to it; when that process is gone, it is run here."""
    shared = runner_of('two')
    student, kd = shared.tasks
    student.folder.mkdir(parents=True)
    held = runlog.lock(student.folder)
    slept, wait = [], time.sleep

    def sleep(seconds):
        if seconds != runner.POLL_SECONDS:  # another thread's: there is one `time` for all
            return wait(seconds)
        slept.append(len(trained))
        held.close()

    monkeypatch.setattr(runner.time, 'sleep', sleep)
    assert shared.work(sharding.make_mesh()) == 0
    assert slept == [2], 'the teacher and KD went first'
    assert [run.method.name for run in trained] == ['none', 'kd', 'none'] and trained[-1].seed == 0
    assert not shared.missing() and kd.result.exists()


@pytest.mark.parametrize('held_by', ['folder', 'teacher'])
def test_a_run_that_waits_is_not_announced(here, capsys, held_by):
    """Neither for its own folder nor for its teacher's, which another process trains."""
    shared = runner_of('two')
    _, task = shared.tasks
    folder = getattr(task, held_by)
    folder.mkdir(parents=True)
    with runlog.lock(folder), pytest.raises(runlog.Busy):
        shared._run(task, sharding.make_mesh())
    assert capsys.readouterr().out == '' and not shared._held(task)
    (folder / 'summary.json').write_text('{"accuracy": 1}')
    with runlog.lock(folder):  # of a finished teacher: another run reads it
        assert shared._held(task) == (held_by == 'folder')


def test_a_run_that_diverges_leaves_the_others_alone(here, monkeypatch, capsys):
    """What starts from it is not trained either; the exit code is that of a divergence."""
    trained = []

    def train(self, task, mesh):
        trained.append(task.cell.label)
        if task.cell.label == 'KC-KD':
            self.failures.append(task.name)
        else:
            self.done[task] = {'accuracy': 0.5}

    monkeypatch.setattr(runner.Runner, '_run', train)
    assert runner_of('three').work(sharding.make_mesh()) == exitcodes.DIVERGED
    assert sorted(trained) == ['KC-KD', 'KD'], 'and not DS, which starts from KC-KD'


class Worker:
    """A process that ends at once with `returncode`, or with 0 as soon as an error was reported."""

    def __init__(self, capsys, returncode):
        self.capsys, self.returncode, self.polls, self.said = capsys, returncode, 0, ''

    def poll(self):
        self.polls += 1
        self.said += self.capsys.readouterr().err
        if self.returncode is None and (self.said or self.polls > 50):
            self.returncode = 0
        return self.returncode

    def wait(self, timeout=None):
        return self.returncode

    def terminate(self):
        self.returncode = -signal.SIGTERM


@pytest.mark.parametrize(
    ('codes', 'ends', 'says'),
    [
        ([-9, None], 137, 'error: a job ended with exit code 137; 1 of 2 still run\n'),
        ([76, 1, None], 1, 'error: a job ended with exit code 1; 1 of 3 still run\n'),
        ([0, 76, -signal.SIGTERM], 76, ''),
        ([3, 0], 3, ''),
    ],
)
def test_a_job_that_fails_is_reported_at_once(capsys, monkeypatch, codes, ends, says):
    workers = [Worker(capsys, code) for code in codes]
    waiting, commands = iter(workers), []
    monkeypatch.setattr(sweep, 'POLL_SECONDS', 0.001)
    monkeypatch.setattr(sweep.subprocess, 'Popen', lambda command, env: commands.append(command) or next(waiting))
    start = time.monotonic() - 100
    assert sweep.supervise(len(codes), ['two', '--minutes=5'], 1, start) == ends
    assert (workers[-1].said or capsys.readouterr().err) == says
    spent = [float(word.removeprefix('--spent=')) for word in commands[0] if word.startswith('--spent=')]
    assert 100 <= spent[0] < 200, 'what the set-up took of the time limit'


def test_the_time_limit_counts_what_was_spent_before(here, capsys):
    assert sweep.main(['two', '--trials=1', '--minutes=5', '--spent=300']) == exitcodes.OUT_OF_TIME
    assert 'out of time: 0 of 2 runs, 05:0' in capsys.readouterr().err


def test_sigterm_between_two_runs(here, capsys, monkeypatch):
    monkeypatch.setattr(runner.Runner, '_run', lambda self, task, mesh: signal.raise_signal(signal.SIGTERM))
    assert sweep.main(['two', '--trials=1']) == exitcodes.PREEMPTED
    assert 'the same command resumes from' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['tow'], "unknown sweep 'tow' (did you mean 'two'?)"),
        (['two', '--trials=0'], 'at least 1'),
        (['two', '--minutes=nan'], '--minutes 0 or more'),
        (['two', '--trials=many'], 'invalid int value'),
        (['two', '--trails=2'], 'unrecognized arguments: --trails=2'),
        (['columns', '--pairs=a-b'], "unknown pair of this sweep 'a-b'"),
        (['two', '--file=configs/none.py'], 'there is no config file configs/none.py'),
        (['wrong'], 'KC-KD: 4 stages do not divide 6 epochs'),
    ],
)
def test_mistakes_are_one_line(here, capsys, words, says):
    assert sweep.main(words) == exitcodes.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and says in error
    assert not (here / 'runs').exists() and not (here / 'results').exists()


def test_pairs_and_the_list(here, capsys):
    assert sweep.main(['columns', '--dry', '--trials=1', '--pairs=tiny_teacher-tiny']) == 0
    said = capsys.readouterr().out
    assert 'KD on tiny_teacher-tiny' in said and 'resnet14-resnet8' not in said
    assert sweep.main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['three', 'two', 'columns', 'wrong']


def test_dry_needs_no_data(tmp_path):
    """In a process of its own, with folders for data that do not exist; C by UNIX's convention is printed."""
    nowhere = {'TFDS_DATA_DIR': str(tmp_path / 'no'), 'HOME': str(tmp_path), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    command = [sys.executable, '-m', 'kcd_jax', 'sweep', 'kcd_table2', '--dry', '--pairs=resnet56-resnet20']
    command += [f'--results={tmp_path}/results']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stderr
    row, words = (line for line in done.stdout.splitlines() if line.startswith('UNIX-KD, its own runs on'))
    assert row.split()[-1] == '82.18' and 'policy.k=40' in words
    assert not (tmp_path / 'results').exists()


def test_a_table_of_which_no_row_can_run(here, capsys):
    """A dry run says so, which is no error; training it is."""
    words = ['kr_table3', f'--file={ROOT}/configs/ablations.py']
    assert sweep.main([*words, '--dry']) == exitcodes.OK
    said = capsys.readouterr()
    assert said.out.startswith('no row of kr_table3 can be run: ') and said.out.count('\n') == 1 and not said.err
    assert sweep.main(words) == exitcodes.BAD_INPUT
    assert capsys.readouterr().err == f'error: {said.out}'


def test_dry_knows_published_results(tmp_path):
    """What a dry run knows of data and teachers is their shapes: the results of real ones are still recognised."""
    command = [sys.executable, '-m', 'kcd_jax', 'sweep', 'digits_kcd_table4', '--dry', '--trials=5']
    done = subprocess.run([*command, '--workdir', str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('5 of 5') == 8 and 'all 40 runs are done' in done.stdout
