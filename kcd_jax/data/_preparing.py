"""Downloading and preparing by TFDS."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pathlib
import re
from typing import Any

from kcd_jax.data import _sources
from kcd_jax.data._prepared import data_dir, missing

_log = logging.getLogger(__name__)


def registered() -> list[str]:
    """The sets that TFDS has code for, of any kind; imports TFDS, not TensorFlow."""
    import tensorflow_datasets

    return tensorflow_datasets.list_builders(with_community_datasets=False)


def prepare(name: str, dir: str | os.PathLike[str] | None = None, file_format: str = 'tfrecord') -> pathlib.Path:
    """Downloads and prepares a set with TFDS, and returns its folder.

    Args:
      name: 'cifar100', 'name/config' or 'name:1.0.0'.
      dir: the data folder.
      file_format: 'tfrecord' or 'array_record'.

    Raises:
      ValueError: no TensorFlow, no such set, its sources are neither on disk nor reachable, or TFDS failed. Empty
        folders that it leaves behind are removed.
    """
    root = data_dir(dir)
    if importlib.util.find_spec('tensorflow') is None:
        raise missing(name, root)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before the import, or TensorFlow prints startup logs
    import tensorflow_datasets as tfds

    before = _folders(root, name)
    try:
        try:
            builder = tfds.builder(name, data_dir=root, file_format=file_format)
        except Exception as error:  # DatasetNotFoundError, and what the code of a builder raises
            raise missing(name, root, f'TFDS: {_first_line(error)}') from error
        _refuse_other_tasks(name, builder)
        _log.warning('%s', _sources.describe(name, root, builder))
        try:
            builder.download_and_prepare(file_format=file_format)
        except Exception as error:
            raise ValueError(
                f'{name} could not be prepared in {root} (TFDS: {_first_line(error)}); what was downloaded stays in '
                f'{root / "downloads"}, and "python -m kcd_jax data prepare {name} --dir {root}" continues from there'
            ) from error
        return pathlib.Path(builder.data_dir)
    finally:
        for folder in sorted(_folders(root, name) - before, key=lambda p: len(p.parts), reverse=True):
            with contextlib.suppress(OSError):  # only empty ones can be removed
                folder.rmdir()


def _refuse_other_tasks(name: str, builder: Any) -> None:
    """ValueError, before anything is downloaded, for a set that does not have one image and one label per point."""
    features = dict(builder.info.features)
    keys = builder.info.supervised_keys or ()
    image, label = keys if len(keys) == 2 else ('image', 'label')
    kinds = [type(features.get(key)).__name__ for key in (image, label)]
    if kinds != ['Image', 'ClassLabel']:
        raise ValueError(
            f'{name} is not an image classification set (it has {", ".join(sorted(features))}); one image and one '
            'label per point are needed'
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _folders(root: pathlib.Path, name: str) -> set[pathlib.Path]:
    """The folders that preparing `name` may make."""
    base = re.split('[/:]', name)[0]
    parts = [root, *root.parents]
    for top in (root / base, root / 'downloads'):
        parts += [top, *(path for path in top.rglob('*') if path.is_dir())]
    return {path for path in parts if path.is_dir()}
