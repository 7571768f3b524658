"""The data that each figure by class and by point draws."""

from __future__ import annotations

import io

import numpy as np
import pytest

from kcd_jax.report import class_figures


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_distance_counts_every_visit():
    distance = np.array([1.0, 1.0, 4.0])
    figure = class_figures.distance_to_centre(
        {'KD': (distance, np.ones(3)), 'UNIX-KD': (distance, np.array([0, 1, 3]))}, bins=2
    )
    (axes,) = figure.axes
    assert texts(axes) == ['KD: mean 1.00', 'UNIX-KD: mean 1.62']
    kd, unix = (patch.get_data() for patch in axes.patches)
    np.testing.assert_allclose(kd.values * np.diff(kd.edges), [2 / 3, 1 / 3])
    np.testing.assert_allclose(unix.values * np.diff(unix.edges), [1 / 4, 3 / 4])


def test_sampling_and_accuracy_gives_the_correlation():
    visits, accuracy = np.array([10, 20, 30]), np.array([0.9, 0.6, 0.3])
    figure = class_figures.sampling_and_accuracy(
        {'UNIX-KD': (visits, accuracy), 'Random KD': (np.full(3, 20), accuracy)}
    )
    (axes,) = figure.axes
    assert texts(axes) == ['UNIX-KD, r = -1.00', 'Random KD'], 'equal counts have no correlation'
    np.testing.assert_allclose(lines_of(axes)['UNIX-KD, r = -1.00'].get_ydata(), [90, 60, 30])


def test_classes_are_sorted_by_the_first_run():
    first, second = np.array([0.5, 0.9, 0.7]), np.array([0.6, 0.8, 0.9])
    (axes,) = class_figures.class_accuracy({'Random KD': first, 'UNIX-KD': second}).axes
    lines = axes.get_lines()
    np.testing.assert_allclose(lines[0].get_xdata(), [50, 70, 90])
    np.testing.assert_allclose(lines[1].get_xdata(), [60, 90, 80])
    assert [text.get_text() for text in axes.get_yticklabels()] == ['0', '2', '1'], 'the best on top'
    assert all(line.get_linestyle() == 'None' for line in lines)


def test_many_classes_have_no_names():
    values = np.linspace(0.1, 0.9, 100)
    (axes,) = class_figures.class_accuracy({'KD': values}).axes
    assert len(axes.get_yticks()) == 0 and axes.get_ylabel() == '100 classes, by the accuracy of KD'


def test_class_heat_map_has_one_panel_per_run_and_one_scale():
    counts = {'Random KD': np.array([[5, 5], [5, 5]]), 'UNIX-KD': np.array([[4, 6], [1, 9]])}
    accuracy = {'Random KD': np.array([0.9, 0.1]), 'UNIX-KD': np.array([0.2, 0.8])}
    figure = class_figures.class_heat_map(counts, accuracy)
    random, unix, bar = figure.axes
    np.testing.assert_array_equal(unix.images[0].get_array(), [[6, 4], [9, 1]])
    assert random.images[0].get_clim() == unix.images[0].get_clim() == (0, 9)
    assert bar.get_ylabel() == 'points trained on' and unix.get_title(loc='left') == 'UNIX-KD'


def test_correlation_difference_has_a_symmetric_scale():
    difference = np.array([[0.0, -0.4], [0.2, 0.0]])
    axes, bar = class_figures.correlation_difference(difference, 'KC-KD').axes
    low, high = axes.images[0].get_clim()
    assert low == -high and high == pytest.approx(np.quantile(np.abs(difference), 0.99))
    assert axes.get_title(loc='left') == 'KC-KD: mean difference 0.150' and 'teacher' in bar.get_ylabel()


def test_class_figures_can_be_saved():
    rng = np.random.default_rng(0)
    pair = (np.arange(10), rng.random(10))
    drawn = [
        class_figures.distance_to_centre({'KD': (rng.random(10), np.ones(10))}),
        class_figures.class_heat_map({'KD': rng.integers(0, 9, (4, 10))}, {'KD': rng.random(10)}),
        class_figures.sampling_and_accuracy({'KD': pair}),
    ]
    for figure in drawn:
        figure.savefig(io.BytesIO(), format='png')
