"""The cost of a step by forward and backward passes (UNIX Eq. 2, 3 and 11), and its inverse."""

from __future__ import annotations


def computation(k: int, n: int, ratio: float, *, scoring: bool = True, backward: float = 1.0) -> float:
    """Computation of a step that trains on k of n rows, relative to KD on all n rows.

    (n F_s + k (F_t + F_s + B_s)) / (n (F_t + F_s + B_s)); with B_s = F_s it is (k R + n + 2 k) / (n R + 2 n).

    Args:
      k: rows that teacher and student train on.
      n: rows of the batch.
      ratio: R = F_t / F_s, multiply-accumulates of the teacher's forward pass divided by the student's.
      scoring: whether the student scores all n rows first; without scoring the result is k / n.
      backward: B_s / F_s; 1 in the paper, near 2 if counted.

    Returns:
      The relative computation, 1 for KD.
    """
    step = ratio + 1.0 + backward
    return (k * step + (n if scoring else 0)) / (n * step)


def rows_for(target: float, n: int, ratio: float, *, scoring: bool = True, backward: float = 1.0) -> float:
    """The real number k at which `computation` equals `target`; negative if scoring alone costs more."""
    step = ratio + 1.0 + backward
    return n * target - (n / step if scoring else 0.0)
