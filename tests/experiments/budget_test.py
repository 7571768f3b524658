"""The keyword that a budget allows: bisection against looking at every value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax.experiments import budget


@given(st.lists(st.integers(0, 100), min_size=2, max_size=40), st.booleans(), st.floats(0, 1), st.integers(0, 5))
def test_it_finds_the_nearest(steps, falling, target, impossible):
    """Costs in uneven steps, rising or falling, the cheapest of them impossible."""
    costs = [step / 100 for step in sorted(steps, reverse=falling)]
    values = list(range(len(costs)))
    cheap = values[::-1] if falling else values
    known = {value: None if cheap.index(value) < impossible else costs[value] for value in values}
    possible = [cost for cost in known.values() if cost is not None]
    if not possible or not min(possible) <= target <= max(possible):
        with pytest.raises(ValueError, match='cannot cost'):
            budget.solve(known.get, values, target, 'policy=mine with its key')
        return
    value, cost = budget.solve(known.get, values, target, 'policy=mine with its key')
    assert known[value] == cost
    assert abs(cost - target) == min(abs(other - target) for other in possible)


def test_few_values_are_looked_at():
    looked = []
    value, cost = budget.solve(lambda n: looked.append(n) or n / 1000, range(1, 1001), 0.4, 'x')
    assert (value, cost) == (400, 0.4) and len(looked) < 15


@pytest.mark.parametrize(
    ('target', 'says'),
    [(0.1, 'cannot cost 10.00% of training on everything; at least it costs 30.00%'), (0.9, 'at most it costs 70.00%')],
)
def test_out_of_reach(target, says):
    with pytest.raises(ValueError, match=says):
        budget.solve({1: 0.3, 2: 0.5, 3: 0.7}.get, [1, 2, 3], target, 'policy=mine with its key')
