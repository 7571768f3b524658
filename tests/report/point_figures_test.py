"""The data that each figure of points and classes draws."""

from __future__ import annotations

import io

import numpy as np
import pytest

from kcd_jax.report import point_figures, style
from kcd_jax.report.statistics import hamming


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_value_heat_map():
    values = np.array([[1.0, 2.0, 3.0, np.nan], [0.5, 0.1, 0.9, 0.3]])
    kept = np.array([[True, False, False, True], [True, True, False, False]])
    figure = point_figures.value_heat_map(values, kept, [4, 8]).figure
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
    first, second = (point_figures.value_heat_map(values, kept, [1, 2, 3], max_points=50).figure for _ in range(2))
    image = first.axes[0].get_images()[0].get_array()
    assert image.shape == (50, 3) and (np.diff(image[:, -1]) <= 0).all()
    np.testing.assert_array_equal(image, second.axes[0].get_images()[0].get_array())


def test_value_histogram_counts_every_point():
    stages = [np.linspace(0, 2, 500), np.linspace(0, 1, 400), np.zeros(0)]
    figure = point_figures.value_histogram(stages, ['a', 'b', 'c'], bins=10).figure
    counts = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [int(count.sum()) for count in counts] == [500, 400, 0]
    assert texts(figure.axes[0]) == ['a', 'b', 'c'] and 'nats' in figure.axes[0].get_xlabel()


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
    figure = point_figures.hamming_distances(kept, ['a', 'b']).figure
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), [[0, 50], [50, 0]])
    assert [text.get_text() for text in figure.axes[0].texts] == ['50.0\n(50.0)'] * 2


def test_teacher_entropy_by_label():
    entropy, kept = np.array([0.0, 1.0, 2.0, 4.0]), np.array([False, True, False, True])
    figure = point_figures.teacher_entropy_by_label(entropy, kept, bins=4).figure
    axes = figure.axes[0]
    assert texts(axes) == ['kept: mean 2.500 nats', 'dropped: mean 1.000 nats']
    np.testing.assert_allclose(axes.patches[0].get_data().values, [0, 50, 0, 50])
    assert axes.get_yscale() == 'log' and axes.get_ylim()[0] < 50
    np.testing.assert_allclose([line.get_xdata()[0] for line in axes.get_lines()], [2.5, 1.0])


def test_gallery_shows_each_image_with_its_title():
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    drawn = point_figures.gallery([images, images[:1]], [['a', 'b', 'c'], ['z']], columns=2)
    (axes,) = drawn.figure.axes
    shown = axes.get_images()
    np.testing.assert_array_equal([image.get_array() for image in shown], images[[0, 1, 2, 0]])
    captions = {text.get_text(): text.get_position() for text in axes.texts}
    for caption, image in zip('abcz', shown, strict=True):
        left, _, bottom, _ = image.get_extent()
        assert captions[caption] == pytest.approx((left, bottom + 0.04)), 'below its image'


def test_figures_can_be_saved_and_leave_no_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = point_figures.value_histogram([np.ones(3)], ['a']).figure
    for form in ('png', 'svg', 'pdf'):
        out = io.BytesIO()
        figure.savefig(out, format=form)
        assert len(out.getvalue()) > 1000
    assert dict(matplotlib.rcParams) == before
    assert len(set(style.PALETTE)) == len(style.PALETTE) == len(style.MARKERS) == len(style.LINES)


def test_classes_are_sorted_by_the_first_run():
    first, second = np.array([0.5, 0.9, 0.7]), np.array([0.6, 0.8, 0.9])
    visits = {'Random KD': np.full(3, 20), 'UNIX-KD': np.array([30, 20, 10])}
    drawn = point_figures.class_accuracy({'Random KD': first, 'UNIX-KD': second}, visits)
    (axes,) = drawn.figure.axes
    lines = axes.get_lines()
    np.testing.assert_allclose(lines[0].get_xdata(), [50, 70, 90])
    np.testing.assert_allclose(lines[1].get_xdata(), [60, 90, 80])
    assert [text.get_text() for text in axes.get_yticklabels()] == ['0', '2', '1'], 'the best on top'
    assert all(line.get_linestyle() == 'None' for line in lines)
    assert texts(axes) == ['Random KD: mean 70.0 %', 'UNIX-KD: mean 76.7 %, r = -0.98'], 'equal counts do not correlate'
    assert 'UNIX-KD: 60.0 %, visits from 10 to 30' in drawn.alt and drawn.data[5]['visits'] == 10


def test_many_classes_have_no_names():
    values = np.linspace(0.1, 0.9, 100)
    (axes,) = point_figures.class_accuracy({'KD': values}, {'KD': np.ones(100)}).figure.axes
    assert len(axes.get_yticks()) == 0 and axes.get_ylabel() == '100 classes, by the accuracy of KD'
