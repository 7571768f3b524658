"""Means, standard deviations, paired differences and confidence intervals over seeds.

Runs of one seed share their initialisation and data order across policies. Differences are therefore taken seed by
seed, which cancels what all runs of a seed have in common.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.special import stdtr, stdtrit


@dataclasses.dataclass(frozen=True)
class Sample:
    """A number measured `n` times.

    Attributes:
      mean: the arithmetic mean; None if n = 0.
      sd: the sample standard deviation (divisor n - 1); None if n < 2.
      n: the number of values.
    """

    mean: float | None
    sd: float | None
    n: int

    @property
    def standard_error(self) -> float | None:
        """sd / sqrt(n), the standard deviation of the mean; None if n < 2."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)

    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean by Student's t with n - 1 degrees of freedom; None if n < 2.

        >>> low, high = describe([1.0, 2.0, 3.0]).interval()
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
        """
        if self.standard_error is None:
            return None
        half = float(stdtrit(self.n - 1, 0.975)) * self.standard_error
        return self.mean - half, self.mean + half


def describe(values: Iterable[float | None]) -> Sample:
    """The sample of the given values; None (not measured) is left out.

    >>> describe([1.0, 2.0, None, 3.0])
    Sample(mean=2.0, sd=1.0, n=3)
    """
    found = [float(value) for value in values if value is not None]
    if not found:
        return Sample(None, None, 0)
    mean = math.fsum(found) / len(found)
    if len(found) == 1:
        return Sample(mean, None, 1)
    return Sample(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1)), len(found))


def paired_difference(values: Mapping[int, float | None], reference: Mapping[int, float | None]) -> Sample:
    """The sample of `values[seed] - reference[seed]` over the seeds that both have.

    >>> paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 2.0})
    Sample(mean=2.0, sd=1.4142135623730951, n=2)
    """
    shared = [seed for seed in values if values[seed] is not None and reference.get(seed) is not None]
    return describe(values[seed] - reference[seed] for seed in shared)


def bootstrap_errors(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Standard errors of means over seeds and test points, by resampling both.

    Rows and columns are drawn with replacement, independently of each other. For two crossed factors this errs on the
    conservative side (Owen 2007, "The pigeonhole bootstrap").

    Args:
      differences: f64[R, S, P], R quantities for each of S seeds and P test points.
      resamples: number of draws.
      seed: of the draws.

    Returns:
      f64[R].
    """
    quantities, seeds, points = differences.shape
    random = np.random.RandomState(seed)  # its streams never change (NEP 19)
    per_block = max(1, 4_000_000 // points)
    means = []
    for start in range(0, resamples, per_block):
        count = min(per_block, resamples - start)

        def weights(size: int, count: int = count) -> np.ndarray:
            drawn = random.randint(0, size, (count, size)) + size * np.arange(count)[:, None]
            return np.bincount(drawn.reshape(-1), minlength=count * size).reshape(count, size).astype(np.float64)

        of_seeds, of_points = weights(seeds), weights(points)
        means.append([np.sum((of_points @ one.T) * of_seeds, axis=1) / (seeds * points) for one in differences])
    return np.std(np.concatenate(means, axis=1), axis=1) if quantities else np.zeros(0)


def crossed_errors(differences: np.ndarray) -> np.ndarray:
    """Standard errors of means over seeds and test points, the roots of `crossed_variances`.

    Args:
      differences: f64[R, S, P], as for `bootstrap_errors`; S and P at least 2.

    Returns:
      f64[R]; NaN where the estimate is not positive, unless all differences are equal.
    """
    variance, equal = crossed_variances(differences), np.ptp(differences, axis=(1, 2)) == 0
    return np.sqrt(np.where(variance > 0, variance, np.where(equal, 0.0, np.nan)))


def crossed_variances(differences: np.ndarray) -> np.ndarray:
    """Unbiased estimates of the variances of means over seeds and test points.

    For two crossed random factors the variance of the mean is that of the seeds' means over S, plus that of the points'
    means over P, less that of what remains over S P, which both contain.

    Args:
      differences: f64[R, S, P], as for `bootstrap_errors`; S and P at least 2.

    Returns:
      f64[R], some of which may be negative.
    """
    _, seeds, points = differences.shape
    of_seeds, of_points = differences.mean(axis=2), differences.mean(axis=1)
    rest = differences - of_seeds[:, :, None] - of_points[:, None, :] + differences.mean(axis=(1, 2))[:, None, None]
    variance = (rest**2).sum(axis=(1, 2)) / ((seeds - 1) * (points - 1))
    return of_seeds.var(axis=1, ddof=1) / seeds + of_points.var(axis=1, ddof=1) / points - variance / (seeds * points)


def two_sided(mean: float, standard_error: float, n: int) -> float | None:
    """p of a mean that is 0 in truth, by Student's t with n - 1 degrees of freedom; None if n < 2.

    >>> round(two_sided(2.262, 1.0, 10), 3)
    0.05
    """
    if n < 2:
        return None
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2.0 * float(stdtr(n - 1, -abs(mean) / standard_error))


def holm(values: Iterable[float | None]) -> list[float | None]:
    """p values adjusted for their number (Holm 1979); None stays None and is not counted.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    given = list(values)
    order = sorted((place for place, value in enumerate(given) if value is not None), key=given.__getitem__)
    adjusted, largest = list(given), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[place]))
        adjusted[place] = largest
    return adjusted


def hamming(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hamming distances between sets of points, and those expected of random sets of the same sizes.

    Args:
      labels: bool[R, N], membership of each of N points in each of R sets.

    Returns:
      (measured, expected): f64[R, R] each, as fractions of the N points. Two random sets that hold fractions a and b
      of the points differ in a (1 - b) + b (1 - a) of them on average; the diagonals are 0.
    """
    sets = np.asarray(labels, bool)
    measured = np.mean(sets[:, None, :] != sets[None, :, :], axis=-1)
    share = sets.mean(axis=1)
    expected = share[:, None] * (1 - share[None, :]) + share[None, :] * (1 - share[:, None])
    np.fill_diagonal(expected, 0.0)
    return measured, expected
