"""Paths as users type them, and the folder of caches. It imports no JAX, which processes that read data do without."""

from __future__ import annotations

import os
import pathlib


def expand(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path with `~` and `~user` replaced by the home folder.

    Raises:
      ValueError: there is no such home folder.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f'{path} names a home folder that does not exist; use the full path') from error


def output_folder(path: str | os.PathLike[str], flag: str) -> pathlib.Path:
    """A folder that a user named for what will be written; it need not exist yet.

    Args:
      path: as typed.
      flag: that named it, for the message.

    Raises:
      ValueError: it is a file, or lies below one.
    """
    where = expand(path)
    nearest = next(place for place in (where, *where.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f'{flag}={path}: {nearest} is a file, not a folder; choose another place')
    return where


def cache_folder(given: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder of caches: the given one, else KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache."""
    if own := given or os.environ.get('KCD_JAX_CACHE'):
        return expand(own)
    return expand(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'kcd_jax'
