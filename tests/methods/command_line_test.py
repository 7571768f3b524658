"""One method per family from the command line, with tiny networks; loop_test runs all methods in process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]
SHORT = 'num_points=120,epochs=2,teacher.epochs=6,eval_every=2'


def run(words, workdir):
    """Runs the program; returns its summaries by run name."""
    command = [sys.executable, '-m', 'tests.tiny.program', f'--config=configs/digits_kd.py:quicktest,{words},{SHORT}']
    done = subprocess.run([*command, f'--workdir={workdir}'], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    files = pathlib.Path(workdir).glob('*/trial_0/summary.json')
    return {path.parts[-3]: json.loads(path.read_text()) for path in files}


@pytest.mark.slow
def test_methods_that_take_any_pair(tmp_path):
    """Maps with trained regressors, views with an initial phase, a discriminator."""
    methods = ('vid', 'sskd', 'kdgan')
    found = run(f'tiny_teacher-tiny,compare=({",".join(methods)})', tmp_path)
    assert {name: summary['method'] for name, summary in found.items()} == {name: name for name in methods}
    assert found['sskd']['epochs'] == 3 and found['vid']['epochs'] == 2  # one epoch of the teacher's head in front
    assert len({summary['accuracy'] for summary in found.values()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'pair'), [('fsp', 'tiny_teacher-tiny_teacher'), ('one', 'tiny_teacher-tiny_one')])
def test_methods_that_need_a_special_pair(tmp_path, method, pair):
    """A phase on the maps alone, and a self-distilling student with branches, both under KCD."""
    (summary,) = run(f'{pair},method={method},policy=kcd,stages=2', tmp_path).values()
    assert (summary['method'], summary['policy']) == (method, 'kcd')
    assert [entry['kept'] for entry in summary['condensations']] == [100]
    assert (summary['teacher'] is None) == (method == 'one')
