"""Equal compute: the value of a policy's keyword at which a run costs what it is allowed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def solve(
    cost: Callable[[float], float | None], values: Sequence[float], budget: float, what: str
) -> tuple[float, float]:
    """The value whose cost is nearest to the budget, by bisection.

    Args:
      cost: of a value, relative to training on everything; monotone over `values`, in steps where it counts whole
        points, rows or epochs. None where a run is impossible (too few points for a batch): cheaper than the budget.
      values: ascending. budget: the relative cost asked for. what: the keyword, for the error.

    Returns:
      (value, its cost); of two equally near ones the cheaper.

    Raises:
      ValueError: the budget lies outside of what the values can cost.
    """
    seen: dict[float, float | None] = {}

    def at(value: float) -> float:
        if value not in seen:
            seen[value] = cost(value)
        found = seen[value]
        return -1.0 if found is None else found

    ordered = list(values) if at(values[0]) <= at(values[-1]) else list(reversed(values))
    low, high = 0, len(ordered) - 1
    while low < high:  # the first value that costs the budget or more
        middle = (low + high) // 2
        low, high = (low, middle) if at(ordered[middle]) >= budget else (middle + 1, high)
    possible = [value for value in ordered[max(low - 1, 0) : low + 1] if seen.get(value, cost(value)) is not None]
    costs = [at(value) for value in possible]
    if not costs or not min(costs) <= budget <= max(costs):
        reach = f'{min(costs):.2%}' if costs and min(costs) > budget else f'{max(costs, default=0.0):.2%}'
        side = 'least' if costs and min(costs) > budget else 'most'
        raise ValueError(f'{what} cannot cost {budget:.2%} of training on everything; at {side} it costs {reach}')
    return min(zip(possible, costs, strict=True), key=lambda pair: (abs(pair[1] - budget), pair[1]))
