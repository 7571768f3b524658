"""Figures of classes and points from the files that runs leave."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kcd_jax.report import class_drawings, tables
from kcd_jax.report.comparisons import rows_of
from kcd_jax.report.records import Files, run_folder
from tests.report.runs import make_summary

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
        distance=np.array([1.0, 3.0, 2.0]),
        teacher_entropy=np.array([0.1, 0.9, 0.5]),
        correlation_difference=np.full((CLASSES, CLASSES), 0.25),
    )


@pytest.fixture
def rows(tmp_path):
    leave(tmp_path / 'kd', 'kd', [[10, 10, 10], [20, 20, 20]], [0.9, 0.6, 0.8])
    leave(tmp_path / 'unix', 'unix', [[4, 8, 6], [5, 18, 13]], [0.8, 0.7, 0.9])
    return rows_of(tables.collect([tmp_path]))


def test_visits_of_each_epoch(rows):
    found = {row.policy: class_drawings.visits(row.runs[0], Files()) for row in rows}
    np.testing.assert_array_equal(found['unix'], [[4, 8, 6], [1, 10, 7]])


def test_what_is_drawn(rows):
    drawn = {drawing.name: drawing for drawing in class_drawings.of_rows(rows, Files())}
    assert list(drawn) == [
        'distance_to_centre', 'teacher_entropy', 'sampling_and_accuracy', 'class_accuracy', 'class_heat_map',
    ]  # fmt: skip
    assert 'UNIX-KD, n = 1 from 5 to 18' in drawn['sampling_and_accuracy'].alt
    assert 'KD, seed 0 1.12, UNIX-KD, seed 0 1.12' in drawn['distance_to_centre'].alt, (
        '(2 * 1 + 4 * 3 + 2 * 2) / 8 over 2'
    )
    assert 'KD, seed 0 0.200' in drawn['teacher_entropy'].alt
    assert len(drawn['class_heat_map'].figure.axes) == 2, 'one policy that chooses, and the scale'


def test_no_class_figures_without_a_selecting_policy(tmp_path):
    leave(tmp_path / 'kd', 'kd', [[10, 10, 10]], [0.9, 0.6, 0.8])
    assert class_drawings.of_rows(rows_of(tables.collect([tmp_path])), Files()) == []


def test_ratio_figure_needs_two_ratios(tmp_path):
    for number, (ratio, accuracy) in enumerate(((0.5, 0.8), (0.9, 0.85))):
        summary = make_summary('kcd', 0, accuracy, run={'policy': {'name': 'kcd', 'ratio': ratio}})
        (tmp_path / f'{number}.json').write_text(json.dumps(summary))
    (tmp_path / 'kd.json').write_text(json.dumps(make_summary('kd', 0, 0.9)))
    rows = rows_of(tables.collect([tmp_path]))
    (drawing,) = class_drawings.of_rows(rows, Files())
    assert (
        drawing.name == 'accuracy_against_ratio'
        and 'KC-KD 80.00 % at ratio 0.5; KC-KD 85.00 % at ratio 0.9' in drawing.alt
    )
    assert class_drawings.ratios(rows[:2]) is None


def test_points_of_a_run_without_stages(rows):
    (drawing,) = class_drawings.of_points(rows[0].runs[0], Files())
    assert drawing.name == 'correlation_difference' and '0.250' in drawing.alt


def test_damaged_points_are_named(rows):
    folder = run_folder(rows[0].runs[0])
    (folder / 'knowledge' / 'points.npz').write_bytes(b'PK')
    files = Files()
    assert class_drawings.of_points(rows[0].runs[0], files) == []
    assert len(files.problems) == 1 and 'points.npz is damaged' in files.problems[0]


def test_classes_are_means_over_seeds(tmp_path):
    leave(tmp_path / 'a', 'unix', [[4, 8, 6]], [0.8, 0.7, 0.9])
    leave(tmp_path / 'b', 'unix', [[6, 8, 4]], [0.6, 0.9, 0.9], seed=1)
    drawn = {one.name: one for one in class_drawings.of_rows(rows_of(tables.collect([tmp_path])), Files())}
    (axes,) = drawn['class_accuracy'].figure.axes
    (line,) = axes.get_lines()
    assert line.get_linestyle() == 'None', 'dots are not joined'
    np.testing.assert_allclose(sorted(line.get_xdata()), [70, 80, 90])
    assert [record['visits'] for record in drawn['class_accuracy'].data] == [5, 8, 5]
