"""The data that each figure draws."""

from __future__ import annotations

import io

import numpy as np
import pytest

from kcd_jax.report import figures, style
from kcd_jax.report.statistics import hamming


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_learning_curves():
    epochs = np.array([1, 2, 3])
    kd = np.array([[0.1, 0.3, 0.5], [0.3, 0.5, np.nan]])
    figure = figures.learning_curves({'KD': (epochs, kd), 'Student alone': (epochs, kd[:1])}, 0.9, [2])
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
    figure = figures.learning_curves({'KD': (epochs, np.linspace(0, 1, 100)[None])}, condensations=(10, 90))
    whole, closer = figure.axes
    assert len(lines_of(whole)['KD, n = 1'].get_xdata()) == 100
    np.testing.assert_array_equal(lines_of(closer)['KD, n = 1'].get_xdata(), np.arange(75, 101))
    assert len(whole.get_lines()) == 3 and len(closer.get_lines()) == 2


def test_training_curves():
    epochs = np.array([1, 2])
    loss = {'KD': (epochs, np.array([[4.0, 2.0], [2.0, 2.0]]))}
    figure = figures.training_curves(
        {'training loss': loss, 'learning rate': {'KD': (epochs, np.array([[0.1, 0.001]]))}}
    )
    top, bottom = figure.axes
    np.testing.assert_allclose(lines_of(top)['KD, n = 2'].get_ydata(), [3, 2])
    np.testing.assert_allclose(lines_of(bottom)['KD, n = 1'].get_ydata(), [0.1, 0.001])
    assert top.get_yscale() == 'linear' and bottom.get_yscale() == 'log', 'by the range of the values'
    assert (top.get_ylabel(), bottom.get_ylabel()) == ('training loss', 'learning rate')


def test_condensation_history():
    figure = figures.condensation_history(100, 10, after=[1, 5], kept=[80, 60], augmented=[20, 40])
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
    figure = figures.condensation_history(50000, 240, [1, 41, 81, 121, 161, 201], kept, [0] * 6)
    assert texts(figure.axes[1]) == ['all points', 'condensed: 81.76 %']


def test_value_heat_map():
    values = np.array([[1.0, 2.0, 3.0, np.nan], [0.5, 0.1, 0.9, 0.3]])
    kept = np.array([[True, False, False, True], [True, True, False, False]])
    figure = figures.value_heat_map(values, kept, [4, 8])
    axes = figure.axes[0]
    drawn = axes.get_images()[0].get_array()
    # Rows by last value: points 2, 0, 3, 1.
    np.testing.assert_allclose(drawn.filled(-1), [[3, 0.9], [1, 0.5], [-1, 0.3], [2, 0.1]])
    (marks,) = axes.collections
    np.testing.assert_array_equal(marks.get_offsets(), [[1, 3]], 'point 1 came back at the second stage')
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['4', '8']


def test_value_heat_map_samples_the_same_points_each_time():
    rng = np.random.default_rng(1)
    values, kept = rng.random((3, 1000)), rng.random((3, 1000)) < 0.5
    first, second = (figures.value_heat_map(values, kept, [1, 2, 3], max_points=50) for _ in range(2))
    image = first.axes[0].get_images()[0].get_array()
    assert image.shape == (50, 3) and (np.diff(image[:, -1]) <= 0).all()
    np.testing.assert_array_equal(image, second.axes[0].get_images()[0].get_array())


def test_value_histogram_counts_every_point():
    stages = [np.linspace(0, 2, 500), np.linspace(0, 1, 400), np.zeros(0)]
    figure = figures.value_histogram(stages, ['a', 'b', 'c'], bins=10)
    counts = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [int(count.sum()) for count in counts] == [500, 400, 0]
    assert texts(figure.axes[0]) == ['a', 'b', 'c'] and 'nats' in figure.axes[0].get_xlabel()


def test_accuracy_against_cost():
    figure = figures.accuracy_against_cost(['KD', 'KC-KD'], [1.0, 0.8], [0.75, 0.76], [0.01, None], 'samples')
    axes = figure.axes[0]
    kd, kc = axes.containers
    assert (kd.lines[0].get_xdata()[0], kd.lines[0].get_ydata()[0]) == (100, 75)
    assert kc.lines[0].get_xdata()[0] == pytest.approx(80) and kc.lines[0].get_ydata()[0] == pytest.approx(76)
    np.testing.assert_allclose(kd.lines[2][0].get_segments()[0][:, 1], [74, 76])
    assert kd.has_yerr and not kc.has_yerr, 'one run has no error bar'


def test_equal_costs_are_drawn_next_to_each_other():
    labels, cost = ['KD', 'Random KD', 'KC-KD'], [1.0, 0.8, 0.805]
    (axes,) = figures.accuracy_against_cost(labels, cost, [0.7, 0.7, 0.7], [None] * 3, 'samples', apart=1.0).axes
    at = [container.lines[0].get_xdata()[0] for container in axes.containers]
    np.testing.assert_allclose(at, [100, 79.5, 81.0])
    assert axes.get_xlabel() == 'samples'


def test_accuracy_against_ratio():
    labels, ratio = ['KC-KD', 'KC-KD', 'Random KD', 'Random KD'], [0.5, 0.7, 0.5, 0.7]
    means, deviations = [0.8, 0.9, 0.8, 0.9], [0.01, None, 0.02, 0.02]
    (axes,) = figures.accuracy_against_cost(labels, ratio, means, deviations, 'kept', apart=0.8, level=0.95).axes
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(line.get_ydata(), [80, 90])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [79, 81])
    np.testing.assert_allclose(lines_of(axes)['all points'].get_ydata(), 95)
    at = [container.lines[0].get_xdata() for container in axes.containers]
    np.testing.assert_allclose(at, [[49.6, 69.6], [50.4, 70.4]])


def test_accuracies_are_in_the_given_order_from_the_top():
    (axes,) = figures.accuracies(['KD', 'KC-KD', '+ DS'], [0.7, 0.75, 0.74], [0.01, None, 0.02], 'KC-KD').axes
    heights = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert heights['KD'] > heights['KC-KD'] > heights['+ DS']
    assert [text.get_text() for text in axes.texts] == ['70.00', '75.00', '74.00']
    marks = [(container.lines[0].get_xdata()[0], container.has_xerr) for container in axes.containers]
    assert marks == [(70, True), (75, False), (74, True)]
    (level,) = [line for line in axes.get_lines() if line.get_linestyle() == ':']
    np.testing.assert_allclose(level.get_xdata(), 75)
    assert axes.get_xlabel() == 'accuracy (%); dotted: KC-KD'


def test_history_without_mixing_has_one_area():
    top = figures.condensation_history(100, 10, after=[1, 5], kept=[80, 60], augmented=[0, 0]).axes[0]
    assert len(top.patches) == 1 and texts(top) == ['kept', 'all points']


def test_hamming_against_a_loop():
    kept = np.random.default_rng(0).random((3, 200)) < np.array([[0.3], [0.5], [0.9]])
    measured, expected = hamming(kept)
    for i in range(3):
        for j in range(3):
            a, b = kept[i].mean(), kept[j].mean()
            assert measured[i, j] == sum(x != y for x, y in zip(kept[i], kept[j], strict=True)) / 200
            assert expected[i, j] == pytest.approx(0 if i == j else a * (1 - b) + b * (1 - a), abs=1e-15)


def test_hamming_expectation_matches_random_sets():
    rng = np.random.default_rng(0)
    sets = np.zeros((200, 100), bool)
    for place, row in enumerate(sets):
        row[rng.choice(100, 70 if place % 2 else 40, replace=False)] = True
    measured, expected = hamming(sets)
    odd, even = np.arange(1, 200, 2), np.arange(0, 200, 2)
    # 10,000 pairs of distances with a deviation of about 0.05 each, not all independent.
    assert measured[np.ix_(odd, even)].mean() == pytest.approx(expected[1, 0], abs=0.005)
    assert expected[1, 0] == pytest.approx(0.7 * 0.6 + 0.3 * 0.4)


def test_hamming_distances_writes_both_numbers():
    kept = np.array([[True, True, False, False], [True, False, True, False]])
    figure = figures.hamming_distances(kept, ['a', 'b'])
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), [[0, 50], [50, 0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ['50.0\n(50.0)'] * 2


def test_teacher_entropy_by_label():
    entropy, kept = np.array([0.0, 1.0, 2.0, 4.0]), np.array([False, True, False, True])
    figure = figures.teacher_entropy_by_label(entropy, kept, bins=4)
    axes = figure.axes[0]
    assert texts(axes) == ['kept: mean 2.500 nats', 'dropped: mean 1.000 nats']
    np.testing.assert_allclose(axes.patches[0].get_data().values, [0, 50, 0, 50])
    assert axes.get_yscale() == 'log' and axes.get_ylim()[0] < 50
    np.testing.assert_allclose([line.get_xdata()[0] for line in axes.get_lines()], [2.5, 1.0])


def test_gallery_shows_each_image_with_its_title():
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    figure = figures.gallery(images, images[:1], ['a', 'b', 'c'], ['z'], columns=2)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == ['a', 'b', 'c', 'z']
    np.testing.assert_array_equal(shown[1].get_images()[0].get_array(), images[1])


def test_figures_can_be_saved_and_leave_no_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = figures.value_histogram([np.ones(3)], ['a'])
    for form in ('png', 'svg', 'pdf'):
        out = io.BytesIO()
        figure.savefig(out, format=form)
        assert len(out.getvalue()) > 1000
    assert dict(matplotlib.rcParams) == before
    assert len(set(style.PALETTE)) == len(style.PALETTE) == len(style.MARKERS) == len(style.LINES)
