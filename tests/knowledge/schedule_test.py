"""Sizes and costs of every schedule, exact to one sample."""

from __future__ import annotations

import pytest

from kcd_jax import knowledge

FULL = 50_000 * 240


def cost(schedule, first, ratio=0.7, num_points=50_000, epochs=240):
    sizes = knowledge.epoch_sizes(num_points, ratio, 6, epochs, schedule, first)
    counts = knowledge.keep_counts(num_points, ratio, 6, schedule)
    relative = knowledge.relative_cost(counts, epochs // 6, num_points, first)
    assert len(sizes) == epochs and relative == pytest.approx(sum(sizes) / (num_points * epochs), abs=1e-15)
    return sizes, relative


def test_exponential_sizes(golden):
    assert knowledge.keep_counts(50_000, 0.7, 6) == golden('ref')['kcd/exp_sizes_round'].tolist()
    sizes = [1_207_226, 1_137_553, 1_071_901, 1_010_038, 951_745, 896_817]
    assert knowledge.keep_counts(1_281_167, 0.7, 6) == sizes


def test_linear_sizes(golden):
    assert [50_000, *knowledge.keep_counts(50_000, 0.7, 6, 'linear')] == golden('ref')['kcd/linear_sizes_code'].tolist()
    for ratio, last in ((0.9, 45_002), (0.5, 25_004), (0.3, 15_002), (0.7, 35_000)):
        assert knowledge.keep_counts(50_000, ratio, 6, 'linear')[-1] == last
    assert knowledge.keep_counts(1_281_167, 0.7, 6, 'linear')[0] == 1_281_167 - 64_058


@pytest.mark.parametrize(
    ('schedule', 'first', 'samples', 'relative'),
    [
        ('linear', 'stage', 10_500_000, 0.875),
        ('exponential', 'none', 9_796_200, 0.81635),
        ('exponential', 'epoch', 9_811_200, 0.8176),
        ('exponential', 'stage', 10_396_200, 0.86635),
        ('linear', 'none', 9_900_000, 0.825),
    ],
)
def test_samples_of_every_schedule(schedule, first, samples, relative, golden):
    sizes, found = cost(schedule, first)
    assert sum(sizes) == samples
    assert found == pytest.approx(relative, abs=5e-8)
    if first == 'none' and schedule == 'exponential':
        # The closed form is of real numbers, the sizes are rounded.
        assert found == pytest.approx(float(golden('ref')['kcd/C_closed_form']), abs=1e-5)


@pytest.mark.parametrize(
    ('ratio', 'claimed', 'linear'), [(0.9, 0.9408, 0.9584), (0.5, 0.6805, 0.7917), (0.3, 0.5250, 0.7084)]
)
def test_costs_of_other_ratios(ratio, claimed, linear):
    assert cost('exponential', 'none', ratio)[1] == pytest.approx(claimed, abs=5e-5)
    assert cost('linear', 'stage', ratio)[1] == pytest.approx(linear, abs=6e-5)


def test_costs_of_imagenet():
    sizes, relative = cost('exponential', 'none', num_points=1_281_167, epochs=90)
    assert sum(sizes) == 94_129_200 and relative == pytest.approx(0.81635, abs=5e-6)
    assert sum(cost('exponential', 'stage', num_points=1_281_167, epochs=90)[0]) == 99_894_450
    sizes, relative = cost('linear', 'stage', num_points=1_281_167, epochs=90)
    assert sum(sizes) == 100_891_980 and relative == pytest.approx(0.875, abs=1e-5)


def test_epochs_of_algorithm_1():
    sizes = knowledge.epoch_sizes(50_000, 0.7, 6, 240, 'exponential', 'epoch')
    counts = knowledge.keep_counts(50_000, 0.7, 6)
    assert sizes[0] == 50_000 and sizes[-1] == 35_000
    assert [sizes[i] for i in (1, 40, 41, 80, 81, 200, 201, 239)] == [counts[i] for i in (0, 0, 1, 1, 2, 4, 5, 5)]
    assert knowledge.replans(240, 6, 'epoch') == [1, 41, 81, 121, 161, 201]
    assert knowledge.replans(240, 6, 'stage') == [40, 80, 120, 160, 200]
    assert knowledge.replans(240, 6, 'none') == [0, 40, 80, 120, 160, 200]


def test_cost_of_a_run_on_cifar_100():
    """240 epochs at batch 64, scheduled and processed: the last partial batch is dropped."""
    paper, _ = cost('exponential', 'epoch')
    reference, _ = cost('linear', 'stage')
    full_samples, full_steps = knowledge.processed([50_000] * 240, 64)
    assert (full_samples, full_steps) == (11_996_160, 187_440)
    assert sum(paper) == 9_811_200 and f'{sum(paper) / FULL:.2%}' == '81.76%'
    samples, steps = knowledge.processed(paper, 64)
    assert (samples, steps) == (9_801_920, 153_155) and f'{samples / full_samples:.2%}' == '81.71%'
    assert sum(reference) == 10_500_000 and f'{sum(reference) / FULL:.2%}' == '87.50%'
    samples, steps = knowledge.processed(reference, 64)
    assert (samples, steps) == (10_496_000, 164_000) and f'{samples / full_samples:.2%}' == '87.49%'


def test_a_short_run_costs_more():
    sizes = knowledge.epoch_sizes(50_000, 0.7, 6, 12, 'exponential', 'epoch')
    assert sum(sizes) / (50_000 * 12) == pytest.approx(0.81635 + 0.3 / 12, abs=1e-4)
    # A stage of one epoch: after the first epoch is after the first stage, and never after the last.
    assert knowledge.replans(3, 3, 'epoch') == knowledge.replans(3, 3, 'stage') == [1, 2]
    assert knowledge.relative_cost([9, 8, 7], 1, 10) == pytest.approx((10 + 9 + 8) / 30)


def test_ratio_one_keeps_all():
    assert knowledge.keep_counts(100, 1.0, 3) == knowledge.keep_counts(100, 1.0, 3, 'linear') == [100] * 3


@pytest.mark.parametrize('ratio', [0, -1, 1.5, float('nan')])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match='ratio is'):
        knowledge.keep_counts(100, ratio, 6)


def test_bad_schedules_are_refused_in_one_line():
    with pytest.raises(ValueError, match='7 stages do not divide 240 epochs; use 6 or 8 stages, or 238 or 245 epochs'):
        knowledge.stage_length(240, 7)
    with pytest.raises(ValueError, match='0 stages do not divide 5 epochs; use 1 stages'):
        knowledge.stage_length(5, 0)
    with pytest.raises(ValueError, match="schedule is 'cosine'; known: exponential, linear"):
        knowledge.keep_counts(100, 0.5, 6, 'cosine')
    with pytest.raises(ValueError, match="first is 'never'"):
        knowledge.replans(6, 2, 'never')
    with pytest.raises(ValueError, match='keeps none of 3 points'):
        knowledge.keep_counts(3, 0.01, 2)
    with pytest.raises(ValueError, match='use at least 1'):
        knowledge.keep_counts(3, 0.5, 0)
