"""A table by one command: what is missing is run, what was cut goes on, what has not finished stays empty."""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import time

import pytest

from kcd_jax import main
from kcd_jax.experiments import cells, sweep, sweeper, tasks
from kcd_jax.runtime import runlog, sharding
from kcd_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,checkpoint.seconds=1e9'
FILE = f"""
from kcd_jax.cells import Knob, Sweep
CELLS = {{'KD': 'policy=none', 'KC-KD': 'policy=kcd,stages=3', 'DS': 'policy=reuse,mode=ds,run=<KC-KD>'}}
SWEEPS = {{
    'three': Sweep('Three rows', '{DIGITS}', CELLS, references=('KD', 'KC-KD')),
    'two': Sweep('The same KD', '{DIGITS}', {{'Student alone': 'method=none,policy=none', 'KD': 'policy=none'}}),
    'columns': Sweep('Two pairs', '{DIGITS}', {{'KD': 'policy=none'}}, ('tiny_teacher-tiny', 'resnet14-resnet8')),
    'wrong': Sweep('A mistake', '{DIGITS}', {{'KD': 'policy=none', 'KC-KD': 'policy=kcd,stages=4'}}),
}}
"""


@pytest.fixture
def here(tmp_path, tiny_networks, monkeypatch):
    """A folder with a file of sweeps, as the current one; JAX keeps the test's devices."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'ablations.py').write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, 'prepare_jax', lambda devices, deterministic: None)
    return tmp_path


@pytest.fixture
def loops(monkeypatch):
    """The configs of the runs that are trained, in order."""
    started = []
    create = loop.Loop.__init__

    def counted(self, config, *args):
        started.append(config)
        create(self, config, *args)

    monkeypatch.setattr(loop.Loop, '__init__', counted)
    return started


def sweeper_of(name, **limits):
    """The sweep as the program makes it."""
    known, root = tasks.read_sweeps('configs/ablations.py')
    arguments = argparse.Namespace(pairs='', trials=1, workdir='runs', results='results')
    made = tasks.make_tasks(name, known[name], root, arguments, sharding.make_mesh().size)
    return sweeper.Sweeper(name, known[name], made, **limits)


@pytest.mark.slow
def test_from_the_list_to_the_table(here, loops, capsys):
    assert sweep.run(['three', '--dry', '--trials=1']) == 0
    said = capsys.readouterr().out
    assert '3 of 3 runs are missing' in said and '0 of 1' in said and '--config=' in said
    assert not (here / 'results').exists() and not (here / 'runs').exists()

    assert sweep.run(['three', '--trials=1']) == 0
    said = capsys.readouterr().out
    assert '3 of 3 runs' in said and 'DS, seed 0' in said and 'Three rows (digits: tiny_teacher -> tiny' in said
    assert len(loops) == 4, 'three runs and one teacher'
    stored = {path.stem: json.loads(path.read_text()) for path in (here / 'results' / 'three').glob('*.json')}
    assert sorted(stored) == ['ds_0', 'kc_kd_0', 'kd_0', 'teacher_tiny_teacher_1000']
    assert stored['ds_0']['config']['policy']['run'] == '<KC-KD>'
    assert 'runs/' not in json.dumps(stored)
    assert stored['kc_kd_0']['command'].endswith('policy=kcd,stages=3,seed=0')

    # Again: nothing is trained. One that is gone is run again, alone, and ends as before.
    assert sweep.run(['three', '--trials=1']) == 0 and len(loops) == 4
    (here / 'results' / 'three' / 'kd_0.json').unlink()
    assert sweep.run(['three', '--trials=1', '--workdir=elsewhere']) == 0
    assert [config.seed for config in loops[4:]] == [1000, 0], 'the teacher of the other folder, and the run'
    again = json.loads((here / 'results' / 'three' / 'kd_0.json').read_text())
    assert again['accuracy'] == stored['kd_0']['accuracy']

    # Another sweep with the same run takes it over.
    assert sweep.run(['two', '--trials=1', '--workdir=third']) == 0
    assert [config.method.name for config in loops[6:]] == ['none']
    taken = json.loads((here / 'results' / 'two' / 'kd_0.json').read_text())
    assert taken['accuracy'] == stored['kd_0']['accuracy'] and taken['cell']['sweep'] == 'two'
    # A result of another configuration is not taken for this one.
    taken['config']['epochs'] += 1
    (here / 'results' / 'two' / 'kd_0.json').write_text(json.dumps(taken))
    (here / 'results' / 'three' / 'kd_0.json').unlink()
    capsys.readouterr()
    assert sweep.run(['two', '--trials=1', '--workdir=third', '--dry']) == 0
    assert '1 of 2 runs are missing' in capsys.readouterr().out


@pytest.mark.slow
def test_cut_in_a_run_and_between_runs(here, loops, capsys, monkeypatch):
    """The clock rings in the middle of the second run; the same command goes on from the step."""
    assert sweep.run(['two', '--trials=1', '--minutes=0.00001']) == sweep.EXIT_OUT_OF_TIME
    said = capsys.readouterr()
    assert 'out of time: 0 of 2 runs' in said.err and not loops
    rows = [line.split() for line in said.out.splitlines()]
    assert ['Student', 'alone'] in rows and ['KD'] in rows, 'cells that have not finished are empty'
    assert '| KD |  |  |' in (here / 'results' / 'two' / 'table.md').read_text()

    cut = sweeper_of('two', minutes=60)
    end_epoch = loop.Loop.end_epoch

    def ring(self, current):
        if self.config.method.name == 'kd' and int(current.epoch) == 2:
            cut.deadline = time.monotonic()
            signal.raise_signal(signal.SIGALRM)
        return end_epoch(self, current)

    monkeypatch.setattr(loop.Loop, 'end_epoch', ring)
    with pytest.raises(sweeper.OutOfTime):
        cut.work(sharding.make_mesh())
    assert cut.standing().startswith('1 of 2 runs')
    monkeypatch.setattr(loop.Loop, 'end_epoch', end_epoch)
    whole = sweeper_of('two')
    (task,) = whole.collect()
    assert runlog.read_summary(task.folder) is None and list((task.folder / 'checkpoints').iterdir())
    whole.work(sharding.make_mesh())
    records = [json.loads(line) for line in (task.folder / 'metrics.jsonl').read_text().splitlines()]
    assert [record['epoch'] for record in records if record['kind'] == 'train'] == [1, 2, 3, 4, 5, 6]
    assert not whole.collect()


@pytest.mark.slow
def test_beside_another_process(here, loops, monkeypatch):
    """A run that another process holds is left to it; when that one is gone, it is run here."""
    shared = sweeper_of('two')
    student, kd = shared.tasks
    student.folder.mkdir(parents=True)
    held = runlog.lock(student.folder)
    slept = []

    def sleep(seconds):
        slept.append(len(loops))
        held.close()

    monkeypatch.setattr(time, 'sleep', sleep)
    shared.work(sharding.make_mesh())
    assert slept == [2], 'the teacher and KD went first'
    assert [config.method.name for config in loops] == ['none', 'kd', 'none'] and loops[-1].seed == 0
    assert not shared.collect() and kd.result.exists()


def test_sigterm_between_two_runs(here, capsys, monkeypatch):
    monkeypatch.setattr(sweeper.Sweeper, 'run', lambda self, task, mesh: signal.raise_signal(signal.SIGTERM))
    assert sweep.run(['two', '--trials=1']) == main.EXIT_PREEMPTED
    assert 'the same command goes on from there' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['tow'], "unknown sweep 'tow' (did you mean 'two'?)"),
        (['two', '--trials=0'], 'at least 1'),
        (['two', '--trials=many'], 'invalid int value'),
        (['two', '--trails=2'], 'unrecognized arguments: --trails=2'),
        (['columns', '--pairs=a-b'], "unknown pair of this sweep 'a-b'"),
        (['two', '--file=configs/none.py'], 'there is no file of sweeps configs/none.py'),
        (['wrong'], 'KC-KD: 4 stages do not divide 6 epochs'),
    ],
)
def test_mistakes_are_one_line(here, capsys, words, says):
    assert sweep.run(words) == main.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and says in error
    assert not (here / 'runs').exists() and not (here / 'results').exists()


def test_pairs_and_the_list(here, capsys):
    assert sweep.run(['columns', '--dry', '--trials=1', '--pairs=tiny_teacher-tiny']) == 0
    said = capsys.readouterr().out
    assert 'KD on tiny_teacher-tiny' in said and 'resnet14-resnet8' not in said
    assert sweep.run([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['three', 'two', 'columns', 'wrong']


@pytest.mark.slow
def test_every_policy_comes_near_its_budget(tiny_networks):
    """The digits' own sweep with small networks: the ledger's cost of the solved runs."""
    known, root = tasks.read_sweeps(f'{ROOT}/configs/ablations.py')
    price = tasks.Pricing(1)
    solved = []
    for cell in cells.expand(known['digits_equal_compute']):
        small = cells.with_words(cell, 'tiny_teacher-tiny')
        solved.append(price.solve(cells.dataclasses.replace(small, knob=cell.knob), root))
    costs = {cell.label: price(cells.config_of(cell, root)).relative for cell in solved if cell.budget}
    for cell in solved:
        if cell.budget and not cell.label.startswith('InfoBatch'):
            near = 0.02 if cell.label.startswith('UNIX') else 0.005
            assert costs[cell.label] == pytest.approx(cell.budget, abs=near), cell.label
    by_label = {cell.label: cells.config_of(cell, root).policy for cell in solved}
    assert by_label['Short KD, 60 %'].cost == 0.6 and by_label['Random KD, 80 %'].ratio == by_label['KC-KD, 80 %'].ratio
    # 0.4 is saved: by the skipped points, and by half a batch of 30 in each of 52 epochs that skips any.
    assert by_label['InfoBatch KD, 60 %'].fraction == pytest.approx(
        (0.4 - 14.5 / 600 * 52 / 60) * 60 / 52 / 0.68, abs=0.002
    )


@pytest.mark.slow
def test_seeds_of_a_cell_together(here, capsys):
    """Blocks of two: the third seed has a program of its own; a seed that is gone is trained again, in its lane."""
    arguments = ['two', '--trials=3', '--together=2']
    assert sweep.run(arguments) == 0
    stored = {path.stem: json.loads(path.read_text()) for path in (here / 'results' / 'two').glob('*_?.json')}
    beside = {name: summary['side_by_side'] for name, summary in stored.items() if name.startswith('kd')}
    assert beside == {'kd_0': 2, 'kd_1': 2, 'kd_2': 1}
    assert '6 of 6 runs' in capsys.readouterr().out
    (here / 'results' / 'two' / 'kd_1.json').unlink()
    assert sweep.run([*arguments, '--workdir=elsewhere']) == 0
    again = json.loads((here / 'results' / 'two' / 'kd_1.json').read_text())
    assert again['side_by_side'] == 1
    assert (again['accuracy'], again['loss']) == (stored['kd_1']['accuracy'], stored['kd_1']['loss'])
