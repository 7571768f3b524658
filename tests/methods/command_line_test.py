"""Methods by the command line, with tiny networks; loop_test trains one of each kind in process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]
METHODS = ('vid', 'kdgan')
WORDS = f'tiny_teacher-tiny,compare=({",".join(METHODS)}),num_points=120,epochs=2,teacher.epochs=6,eval_every=2'


@pytest.mark.slow
def test_methods_with_parts_of_their_own_are_trained(tmp_path):
    """Maps with trained regressors, and a discriminator."""
    command = [sys.executable, '-m', 'tests.tiny.program', f'--config=configs/digits_kd.py:quicktest,{WORDS}']
    done = subprocess.run(
        [*command, '--devices=1', f'--workdir={tmp_path}'], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = {path.parts[-3]: json.loads(path.read_text()) for path in tmp_path.glob('*/trial_0/summary.json')}
    assert {name: summary['method'] for name, summary in found.items()} == {name: name for name in METHODS}
    assert all(summary['epochs'] == 2 and summary['num_points'] == 120 for summary in found.values())
    assert len({summary['accuracy'] for summary in found.values()}) > 1
