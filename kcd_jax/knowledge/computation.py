"""The cost of a step by forward and backward passes (UNIX Eq. 2, 3 and 11), and its inverse."""

from __future__ import annotations


def computation(k: int, n: int, ratio: float, *, scoring: bool = True, backward: float = 1.0) -> float:
    """Computation of a step that trains on k of n rows, over that of KD on all n rows.

    (n F_s + k (F_t + F_s + B_s)) / (n (F_t + F_s + B_s)); with B_s = F_s it is (k R + n + 2 k) / (n R + 2 n).

    Args:
      k: rows that teacher and student train on. n: rows of the batch.
      ratio: R = F_t / F_s, multiply-accumulates of the teacher's forward over the student's.
      scoring: whether the student scores all n rows first; without it the result is k / n.
      backward: B_s / F_s; the paper takes 1, a counted backward pass is near 2.

    Returns:
      The share, 1 for KD itself.
    """
    step = ratio + 1.0 + backward
    return (k * step + (n if scoring else 0)) / (n * step)


def rows_for(target: float, n: int, ratio: float, *, scoring: bool = True, backward: float = 1.0) -> float:
    """The k, a real number, at which `computation` is `target`; below 0 where scoring alone costs more."""
    step = ratio + 1.0 + backward
    return n * target - (n / step if scoring else 0.0)
