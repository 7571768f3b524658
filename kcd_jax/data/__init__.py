"""Data: every set by its name, as uint8 arrays in memory.

`load` gives the points in one fixed order, the same on every machine and for every reader. The names:
  digits      the embedded default (kcd_jax.data.digits), no files needed
  cifar100    and any other image classification set of TFDS that fits in memory (kcd_jax.data.tfds)
"""

from __future__ import annotations

import difflib
import importlib.util
import os

from kcd_jax.data import base, digits, tfds
from kcd_jax.data.base import Dataset, Normalization, Split, describe

__all__ = ['Dataset', 'Normalization', 'Split', 'check', 'describe', 'load', 'names']


def names() -> list[str]:
    """The names that are known without looking at any folder; other sets of TFDS work too."""
    return sorted(['digits', *tfds.NAMES])


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
      name: one of `names()`, or any set of TFDS, as 'name', 'name/config' or 'name:1.0.0'.
      dir: where its files are; None or '': for TFDS sets TFDS_DATA_DIR, else TFDS's default.
      validation: fraction of the training points, drawn by `seed`, that become `Dataset.validation`; who evaluates
        uses them instead of `test`. Runs that are compared, and their teacher, need the same `seed` here.
      num_points: training points to keep (0: all), the same ones for every seed; taken after the validation points.
      cache: folder for decoded arrays; None: KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache.

    Raises:
      ValueError: unknown name, missing or damaged files, impossible parts; in one line with what to do.
    """
    _known(name, dir)
    data = digits.load() if name == 'digits' else tfds.load(name, dir, cache)
    return base.few(base.hold_out(data, validation, seed), num_points)


def check(
    name: str, dir: str | os.PathLike[str] | None = None, *, cache: str | os.PathLike[str] | None = None
) -> str:
    """A line on the data, without decoding or downloading any; raises the ValueError of `load` for bad files."""
    _known(name, dir)
    return digits.check() if name == 'digits' else tfds.check(name, dir, cache)


def _known(name: str, dir: str | os.PathLike[str] | None) -> None:
    """Refuses a name that cannot be meant: not ours, not prepared, and no TFDS that could know it."""
    head = name.partition(':')[0]
    if head in names() or tfds.find(name, dir) is not None or importlib.util.find_spec('tensorflow') is not None:
        return
    near = difflib.get_close_matches(head, names(), n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(
        f'unknown data set {name!r}{hint}; known: {", ".join(names())}, and every image classification set of TFDS '
        f'that is prepared in {tfds.data_dir(dir)}'
    )
