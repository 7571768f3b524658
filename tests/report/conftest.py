"""Folders as runs leave them, with numbers that can be checked by hand."""

from __future__ import annotations

import pytest

from tests.report.runs import make_summary, write_run

ACCURACY = {
    'student': (0.70, 0.72, 0.71),
    'kd': (0.74, 0.75, 0.76),
    'random': (0.73, 0.75, 0.74),
    'kcd': (0.75, 0.77, 0.76),
}


@pytest.fixture
def experiment(tmp_path):
    """<workdir> of an experiment of four runs and three trials, with the teacher's own run."""
    for name, accuracies in ACCURACY.items():
        for trial, accuracy in enumerate(accuracies):
            write_run(
                tmp_path / 'work' / name / f'trial_{trial}',
                make_summary(name, trial, accuracy),
                stages=3 if name in ('random', 'kcd') else 0,
            )
    write_run(tmp_path / 'work' / 'teacher', make_summary('teacher', 0, 0.9312, student='resnet20'))
    return tmp_path / 'work'
