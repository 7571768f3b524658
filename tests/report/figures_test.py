"""The data that each figure of training and of accuracy draws."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax.report import figures
from kcd_jax.report.statistics import Sample


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_learning_curves():
    epochs = np.array([1, 2, 3])
    kd = np.array([[0.1, 0.3, 0.5], [0.3, 0.5, np.nan]])
    figure = figures.learning_curves({'KD': (epochs, kd), 'Student alone': (epochs, kd[:1])}, 0.9, [2]).figure
    (axes,) = figure.axes
    lines = lines_of(axes)
    np.testing.assert_allclose(lines['KD, n = 2'].get_ydata(), [20, 40, 50])
    np.testing.assert_allclose(lines['Student alone, n = 1'].get_ydata(), [10, 30, 50])
    np.testing.assert_allclose(lines['Teacher'].get_ydata(), 90)
    # The band: 20 and 40 percent, plus and minus sqrt(200) (10 and 30 percent; 30 and 50 percent).
    (band,) = axes.collections
    height = band.get_paths()[0].vertices[:, 1]
    assert height.max() == pytest.approx(40 + np.sqrt(200)) and height.min() == pytest.approx(20 - np.sqrt(200))
    assert band.get_paths()[0].vertices[:, 0].max() == 2, 'one seed has no deviation'
    assert axes.get_ylabel() == 'test accuracy (%)' and axes.get_xlabel().startswith('epoch')


def test_long_learning_curves_get_a_closer_look():
    epochs = np.arange(1, 101)
    figure = figures.learning_curves({'KD': (epochs, np.linspace(0, 1, 100)[None])}, condensations=(10, 90)).figure
    whole, closer = figure.axes
    assert len(lines_of(whole)['KD, n = 1'].get_xdata()) == 100
    np.testing.assert_array_equal(lines_of(closer)['KD, n = 1'].get_xdata(), np.arange(75, 101))
    assert len(whole.get_lines()) == 3 and len(closer.get_lines()) == 2


def test_training_curves():
    epochs = np.array([1, 2])
    loss = {'KD': (epochs, np.array([[4.0, 2.0], [2.0, 2.0]]))}
    figure = figures.training_curves(
        {'training loss': loss, 'learning rate': {'KD': (epochs, np.array([[0.1, 0.001]]))}}
    ).figure
    top, bottom = figure.axes
    np.testing.assert_allclose(lines_of(top)['KD, n = 2'].get_ydata(), [3, 2])
    np.testing.assert_allclose(lines_of(bottom)['KD, n = 1'].get_ydata(), [0.1, 0.001])
    assert top.get_yscale() == 'linear' and bottom.get_yscale() == 'log', 'by the range of the values'
    assert (top.get_ylabel(), bottom.get_ylabel()) == ('training loss', 'learning rate')


def test_condensation_history():
    figure = figures.condensation_history(100, 10, after=[1, 5], kept=[80, 60], augmented=[20, 40]).figure
    top, bottom = figure.axes
    plain, mixed = (patch.get_data() for patch in top.patches)
    np.testing.assert_array_equal(plain.values, [100, 60, 20])
    np.testing.assert_array_equal(mixed.values, [100, 80, 60])
    np.testing.assert_array_equal(mixed.baseline, plain.values)
    np.testing.assert_array_equal(plain.edges, [0, 1, 5, 10])
    # 100 + 4 * 80 + 5 * 60 = 720 of 1,000.
    (line,) = [line for line in bottom.get_lines() if 'condensed' in line.get_label()]
    np.testing.assert_allclose(line.get_ydata(), [0, 10, 42, 72])
    assert line.get_label() == 'condensed: 72.00 %'


def test_the_papers_cost_is_in_the_history():
    kept = [47114, 44395, 41833, 39419, 37144, 35000]
    figure = figures.condensation_history(50000, 240, [1, 41, 81, 121, 161, 201], kept, [0] * 6).figure
    assert texts(figure.axes[1]) == ['all points', 'condensed: 81.76 %']


def marks(labels, x, means, deviations):
    samples = (Sample(mean, sd, 1 if sd is None else 2) for mean, sd in zip(means, deviations, strict=True))
    return list(zip(labels, x, samples, strict=True))


def test_accuracy_against_cost():
    drawn = figures.accuracy_against_cost(marks(['KD', 'KC-KD'], [1.0, 0.8], [0.75, 0.76], [0.01, None]), 'samples')
    axes = drawn.figure.axes[0]
    kd, kc = axes.containers
    assert (kd.lines[0].get_xdata()[0], kd.lines[0].get_ydata()[0]) == (100, 75)
    assert kc.lines[0].get_xdata()[0] == pytest.approx(80) and kc.lines[0].get_ydata()[0] == pytest.approx(76)
    np.testing.assert_allclose(kd.lines[2][0].get_segments()[0][:, 1], [74, 76])
    assert kd.has_yerr and not kc.has_yerr, 'one run has no error bar'
    assert axes.get_xlabel() == 'samples, % of training on every point'
    assert 'Rows with a single seed' in drawn.alt and drawn.data[1]['relative_cost'] == 0.8
    assert figures.accuracy_against_cost(marks(['KD'], [1.0], [0.75], [0.01]), 'samples') is None


def test_equal_costs_are_drawn_next_to_each_other():
    rows = marks(['KD', 'Random KD', 'KC-KD'], [1.0, 0.8, 0.805], [0.7, 0.7, 0.7], [None] * 3)
    (axes,) = figures.accuracy_against_cost(rows, 'samples').figure.axes
    at = [container.lines[0].get_xdata()[0] for container in axes.containers]
    np.testing.assert_allclose(at, [100, 79.5, 81.0])
    assert axes.get_xlabel() == 'samples, % of training on every point\n(equal ones side by side)'


def test_accuracy_against_ratio():
    labels, ratio = ['KC-KD', 'KC-KD', 'Random KD', 'Random KD'], [0.5, 0.7, 0.5, 0.7]
    rows = marks(labels, ratio, [0.8, 0.9, 0.8, 0.9], [0.01, None, 0.02, 0.02])
    (axes,) = figures.accuracy_against_ratio(rows, level=0.95).figure.axes
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(line.get_ydata(), [80, 90])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [79, 81])
    np.testing.assert_allclose(lines_of(axes)['all points'].get_ydata(), 95)
    at = [container.lines[0].get_xdata() for container in axes.containers]
    np.testing.assert_allclose(at, [[49.5, 69.5], [50.5, 70.5]])


def test_many_accuracies_are_in_the_given_order_from_the_top():
    rows = marks(['KD', 'KC-KD', '+ DS', '+ KA'], [1.0] * 4, [0.7, 0.75, 0.74, 0.7], [0.01, None, 0.02, 0.01])
    drawn = figures.accuracy_against_cost(rows, 'samples', 'KC-KD')
    (axes,) = drawn.figure.axes
    heights = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert heights['KD'] > heights['KC-KD'] > heights['+ DS'] > heights['+ KA']
    assert [text.get_text() for text in axes.texts] == ['70.00', '75.00', '74.00', '70.00']
    shown = [(container.lines[0].get_xdata()[0], container.has_xerr) for container in axes.containers]
    assert shown == [(70, True), (75, False), (74, True), (70, True)]
    (level,) = [line for line in axes.get_lines() if line.get_linestyle() == ':']
    np.testing.assert_allclose(level.get_xdata(), 75)
    assert axes.get_xlabel() == 'accuracy (%); dotted: KC-KD' and drawn.title == 'Accuracy of each run'


def test_history_without_mixing_has_one_area():
    top = figures.condensation_history(100, 10, after=[1, 5], kept=[80, 60], augmented=[0, 0]).figure.axes[0]
    assert len(top.patches) == 1 and texts(top) == ['kept', 'all points']
