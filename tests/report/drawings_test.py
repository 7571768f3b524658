"""Figures of runs and of comparisons from the files that runs leave."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kcd_jax.report import drawings, tables
from kcd_jax.report.comparisons import rows_of
from kcd_jax.report.records import Files, run_folder
from tests.report.runs import make_stage, make_summary

CLASSES = 3


def leave(folder, name, by_class, accuracy, *, seed=0, **more):
    """A run's folder with the records and arrays that these figures read."""
    folder.mkdir(parents=True)
    summary = make_summary(name, seed, 0.9, class_accuracy=accuracy, **more)
    (folder / 'summary.json').write_text(json.dumps(summary))
    records = []
    for epoch, visits in enumerate(by_class, 1):
        records.append({'kind': 'train', 'epoch': epoch, 'teacher_entropy': 0.1 * epoch})
        records.append({'kind': 'visits', 'epoch': epoch, 'by_class': visits})
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    (folder / 'knowledge').mkdir()
    np.savez(
        folder / 'knowledge' / 'points.npz',
        count=np.array([2, 4, 2]),
        teacher_entropy=np.array([0.1, 0.9, 0.5]),
    )


@pytest.fixture
def rows(tmp_path):
    leave(tmp_path / 'kd', 'kd', [[10, 10, 10], [20, 20, 20]], [0.9, 0.6, 0.8])
    leave(tmp_path / 'unix', 'unix', [[4, 8, 6], [5, 18, 13]], [0.8, 0.7, 0.9])
    return rows_of(tables.collect([tmp_path]))


def test_visits_of_a_run(rows):
    found = {row.policy: drawings.visits(row.runs[0], Files()) for row in rows}
    np.testing.assert_array_equal(found['unix'], [5, 18, 13])


def test_what_is_drawn(rows):
    (drawn,) = drawings.by_class(rows, Files())
    assert drawn.name == 'class_accuracy'
    assert 'UNIX-KD, n = 1: 70.0 %, visits from 5 to 18' in drawn.alt


def test_no_class_figures_without_a_selecting_policy(tmp_path):
    leave(tmp_path / 'kd', 'kd', [[10, 10, 10]], [0.9, 0.6, 0.8])
    assert drawings.by_class(rows_of(tables.collect([tmp_path])), Files()) == []


def test_ratio_figure_needs_two_ratios(tmp_path):
    for number, (ratio, accuracy) in enumerate(((0.5, 0.8), (0.9, 0.85))):
        summary = make_summary('kcd', 0, accuracy, run={'policy': {'name': 'kcd', 'ratio': ratio}})
        (tmp_path / f'{number}.json').write_text(json.dumps(summary))
    (tmp_path / 'kd.json').write_text(json.dumps(make_summary('kd', 0, 0.9)))
    rows = rows_of(tables.collect([tmp_path]))
    (drawing,) = drawings.ratios(rows)
    assert drawing.name == 'accuracy_against_ratio'
    assert 'KC-KD 80.00 % at 50.0 %; KC-KD 85.00 % at 90.0 %' in drawing.alt
    assert drawings.ratios(rows[:2]) == []


def test_teacher_entropy_needs_stages(rows, tmp_path):
    run = rows[0].runs[0]
    assert drawings.teacher_entropy(run, Files()) == []
    arrays = make_stage(1, num_points=3, keep=0.4)
    np.savez(run_folder(run) / 'knowledge' / 'stage_1.npz', **arrays | {'order': np.array([1, 0, 2])})
    (drawing,) = drawings.teacher_entropy(run, Files())
    assert 'kept: mean 0.900 nats, dropped: mean 0.300 nats' in drawing.alt


def test_damaged_points_are_named(rows):
    folder = run_folder(rows[0].runs[0])
    (folder / 'knowledge' / 'points.npz').write_bytes(b'PK')
    files = Files()
    assert drawings.teacher_entropy(rows[0].runs[0], files) == []
    assert len(files.problems) == 1 and 'points.npz is damaged' in files.problems[0]


def test_classes_are_means_over_seeds(tmp_path):
    leave(tmp_path / 'a', 'unix', [[4, 8, 6]], [0.8, 0.7, 0.9])
    leave(tmp_path / 'b', 'unix', [[6, 8, 4]], [0.6, 0.9, 0.9], seed=1)
    (drawn,) = drawings.by_class(rows_of(tables.collect([tmp_path])), Files())
    (axes,) = drawn.figure.axes
    (line,) = axes.get_lines()
    assert line.get_linestyle() == 'None', 'dots are not joined'
    np.testing.assert_allclose(sorted(line.get_xdata()), [70, 80, 90])
    assert [record['visits'] for record in drawn.data] == [5, 8, 5]


def test_both_losses_of_kr_are_drawn(tmp_path):
    """KR Fig. 5: the mean and the deviation over the seeds of the posterior's and the prior's loss."""
    for seed, losses in ((0, (4.0, 1.0)), (1, (5.0, 2.0))):
        folder = tmp_path / f'trial_{seed}'
        folder.mkdir()
        (folder / 'summary.json').write_text(json.dumps(make_summary('recode', seed, 0.9, method='kr', policy='none')))
        records = [
            {'kind': 'train', 'epoch': epoch, 'loss': loss, 'prior': loss / 10} for epoch, loss in enumerate(losses, 1)
        ]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    (drawn,) = drawings.learning_curves(rows_of(tables.collect([tmp_path])), Files())
    for axes, label, factor in zip(drawn.figure.axes, ('training loss', 'prior loss'), (1.0, 0.1), strict=True):
        assert axes.get_ylabel() == label and len(axes.collections) == 1
        (line,) = axes.get_lines()
        np.testing.assert_allclose(line.get_ydata(), [4.5 * factor, 1.5 * factor])
    assert 'prior loss recode 0.15' in drawn.alt
