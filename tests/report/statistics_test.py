from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax.report.statistics import (
    Sample,
    bootstrap_errors,
    crossed_errors,
    crossed_variances,
    describe,
    holm,
    paired_difference,
)


def test_describe_matches_hand_computed_values():
    # Mean 5, squared deviations 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32 over 7.
    sample = describe([2, 4, 4, 4, 5, 5, 7, 9])
    assert sample.mean == 5.0 and sample.n == 8
    assert sample.sd == pytest.approx(math.sqrt(32 / 7), rel=1e-15)
    assert sample.standard_error == pytest.approx(math.sqrt(32 / 7 / 8), rel=1e-15)


def test_one_value_has_no_deviation():
    assert describe([0.7]) == Sample(0.7, None, 1)
    assert describe([0.7]).standard_error is None


def test_missing_values_are_left_out():
    assert describe([]) == describe([None, None]) == Sample(None, None, 0)
    assert describe([None, 1.0]) == Sample(1.0, None, 1)


def test_paired_difference_uses_shared_seeds_only():
    # Differences at seeds 1 and 2: 2 and 4; mean 3, sd sqrt(2), standard error 1.
    sample = paired_difference({0: 10.0, 1: 5.0, 2: 9.0, 4: None}, {1: 3.0, 2: 5.0, 3: 1.0, 4: 1.0})
    assert (sample.mean, sample.n) == (3.0, 2)
    assert sample.standard_error == pytest.approx(1.0, rel=1e-15)


def test_pairing_removes_seed_effects():
    kd, kcd = {0: 0.60, 1: 0.70, 2: 0.80}, {0: 0.61, 1: 0.71, 2: 0.81}
    assert paired_difference(kcd, kd).standard_error == pytest.approx(0.0, abs=1e-15)
    assert describe(kd.values()).sd == pytest.approx(0.1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_describe_against_numpy(values):
    sample = describe(values)
    # math.fsum rounds once, NumPy at each step: relative to the largest value they agree to a few units.
    scale = max(map(abs, values)) + 1
    assert sample.mean == pytest.approx(np.mean(values), abs=1e-12 * scale)
    assert sample.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9 * scale)


def test_interval_matches_the_t_table():
    # Quantiles of Student's t at 97.5 %, from the printed table: 12.706, 4.303 and 2.776 for 1, 2 and 4 degrees.
    for values, quantile in (([0.0, 1.0], 12.706), ([0.0, 1.0, 2.0], 4.303), ([0.0, 1.0, 2.0, 3.0, 4.0], 2.776)):
        sample = describe(values)
        low, high = sample.interval()
        assert (high - low) / 2 == pytest.approx(quantile * sample.standard_error, rel=2e-4)
        assert (low + high) / 2 == pytest.approx(sample.mean)
    assert describe([1.0]).interval() is None and describe([]).interval() is None


def test_interval_has_its_coverage():
    rng = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (describe(rng.normal(size=3)).interval() for _ in range(4000))]
    # Standard error of the share: sqrt(0.95 * 0.05 / 4000) = 0.0034.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.014)


def test_the_bootstrap_resamples_seeds_and_points():
    """Differences that vary with the seed alone, with the point alone, with both, and not at all."""
    rng = np.random.default_rng(0)
    of_seed, of_point = rng.normal(size=(12, 1)), rng.normal(size=(1, 300))
    differences = np.stack([of_seed + 0 * of_point, 0 * of_seed + of_point, of_seed + of_point, np.ones((12, 300))])
    by_seed, by_point, both, none = bootstrap_errors(differences)
    assert by_seed == pytest.approx(of_seed.std() / math.sqrt(12), rel=0.05)
    assert by_point == pytest.approx(of_point.std() / math.sqrt(300), rel=0.05)
    assert both == pytest.approx(math.hypot(by_seed, by_point), rel=0.05) and none == 0
    np.testing.assert_array_equal(bootstrap_errors(differences[:1]), [by_seed])


def test_the_unbiased_error_is_right_on_average_where_the_bootstrap_is_too_large():
    """Three mixtures of what varies with the seed, with the point and with both; 2,000 tables of 6 x 20."""
    rng, tables = np.random.default_rng(0), 2000
    for of_seed, of_point, of_both in ((1.0, 0.0, 0.0), (0.0, 1.0, 2.0), (0.5, 2.0, 1.0)):
        parts = [(of_seed, (tables, 6, 1)), (of_point, (tables, 1, 20)), (of_both, (tables, 6, 20))]
        drawn = sum(scale * rng.normal(size=shape) for scale, shape in parts)
        true = of_seed**2 / 6 + of_point**2 / 20 + of_both**2 / 120
        assert np.mean(crossed_variances(drawn)) == pytest.approx(true, rel=0.06)
        if of_both > of_point:
            assert np.mean(bootstrap_errors(drawn[:100], 400) ** 2) > 1.5 * np.mean(crossed_variances(drawn[:100]))
    assert crossed_errors(np.ones((1, 3, 4))) == 0
    checkered = np.array([[[1.0, -1.0], [-1.0, 1.0]]])
    assert np.isnan(crossed_errors(checkered)), 'an estimate that is not positive is none'


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_stepping_down_rejects(values):
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(values)), key=values.__getitem__)
        for rank, place in enumerate(order):
            if values[place] * (len(values) - rank) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(adjusted) if p <= level} == rejected
