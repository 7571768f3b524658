"""Data: every set by its name, as uint8 arrays in memory.

`load` gives the points in one fixed order, the same on every machine and for every reader. The names:
  digits      the embedded default (kcd_jax.data.digits), no files needed
"""

from __future__ import annotations

import os

from kcd_jax.data import base, digits
from kcd_jax.data.base import Dataset, Normalization, Split, describe

__all__ = ['Dataset', 'Normalization', 'Split', 'check', 'describe', 'load', 'names']


def names() -> list[str]:
    """The names that `load` knows."""
    return ['digits']


def load(
    name: str,
    dir: str | os.PathLike[str] | None = None,
    *,
    validation: float = 0.0,
    seed: int = 0,
    num_points: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
      name: one of `names()`.
      dir: where its files are; None or '': the source's default.
      validation: fraction of the training points, drawn by `seed`, that become `Dataset.validation`; who evaluates
        uses them instead of `test`. Runs that are compared, and their teacher, need the same `seed` here.
      num_points: training points to keep (0: all), the same ones for every seed; taken after the validation points.
      cache: folder for decoded arrays; None: KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache.

    Raises:
      ValueError: unknown name, missing or damaged files, impossible parts; in one line with what to do.
    """
    return base.few(base.hold_out(_source(name, dir, cache), validation, seed), num_points)


def check(name: str, dir: str | os.PathLike[str] | None = None) -> str:
    """A line on the data, without decoding any; raises the ValueError of `load` when files are missing."""
    del dir
    if name != 'digits':
        raise ValueError(f'unknown data set {name!r}; known: {", ".join(names())}')
    return f'digits: {digits.NUM_TRAIN:,} train, 597 test, 10 classes, 16x16; {digits.check()}'


def _source(name: str, dir: str | os.PathLike[str] | None, cache: str | os.PathLike[str] | None) -> Dataset:
    del dir, cache
    if name != 'digits':
        raise ValueError(f'unknown data set {name!r}; known: {", ".join(names())}')
    return digits.load()
