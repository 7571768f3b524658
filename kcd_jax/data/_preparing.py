"""Downloading and preparing by TFDS, and writing a preparation again as array_record."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

from kcd_jax.data import _sources
from kcd_jax.data._dataset import progress
from kcd_jax.data._prepared import data_dir, find, missing, read_shard

_log = logging.getLogger(__name__)


def registered() -> list[str]:
    """The sets that TFDS has code for, of any kind; imports TFDS, not TensorFlow."""
    import tensorflow_datasets

    return tensorflow_datasets.list_builders(with_community_datasets=False)


def prepare(name: str, dir: str | os.PathLike[str] | None = None, file_format: str = 'tfrecord') -> pathlib.Path:
    """Downloads and prepares a set with TFDS, and returns its folder.

    Raises:
      ValueError: no TensorFlow, no such set, its sources are neither there nor to be had, or TFDS failed. Empty folders
        that it leaves behind are removed.
    """
    root = data_dir(dir)
    if importlib.util.find_spec('tensorflow') is None:
        raise missing(name, root)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow would greet the user with lines of its own
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
                f'{root / "downloads"}, and "python -m kcd_jax data prepare {name} --dir {root}" goes on from there'
            ) from error
        return pathlib.Path(builder.data_dir)
    finally:
        for folder in sorted(_folders(root, name) - before, key=lambda p: len(p.parts), reverse=True):
            with contextlib.suppress(OSError):  # only empty ones go
                folder.rmdir()


def convert(name: str, dir: str | os.PathLike[str] | None, target: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a prepared set again as array_record under the data_dir `target`, shard by shard, without TensorFlow."""
    from array_record.python import array_record_module

    prepared = find(name, dir)
    if prepared is None:
        raise missing(name, data_dir(dir), 'there is nothing to convert')
    file_format = 'array_record'
    folder = pathlib.Path(target).expanduser() / prepared.name / prepared.version
    if folder.exists():
        raise ValueError(f'{folder} exists already; delete it or choose another --to')
    scratch = folder.with_name(f'{folder.name}.incomplete')
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for split, files in prepared.shards.items():
        for file in files:
            written = file.name.replace(f'.{prepared.file_format}', f'.{file_format}')
            writer = array_record_module.ArrayRecordWriter(str(scratch / written), 'group_size:1')
            found = read_shard(prepared, split, file)
            for record in progress(found, len(found), f'{prepared.name}: {written}'):
                writer.write(bytes(record))
            writer.close()
    for file in prepared.path.glob('*.*'):
        if file.suffix in ('.json', '.txt'):
            shutil.copyfile(file, scratch / file.name)
    info = json.loads((prepared.path / 'dataset_info.json').read_text()) | {'fileFormat': file_format}
    for split in info['splits']:
        split['filepathTemplate'] = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    (scratch / 'dataset_info.json').write_text(json.dumps(info, indent=2))
    scratch.rename(folder)
    return folder


def _refuse_other_tasks(name: str, builder: Any) -> None:
    """ValueError, before anything is downloaded, for a set that is not one of images with a label each."""
    features = dict(builder.info.features)
    keys = builder.info.supervised_keys or ()
    image, label = keys if len(keys) == 2 else ('image', 'label')
    kinds = [type(features.get(key)).__name__ for key in (image, label)]
    if kinds != ['Image', 'ClassLabel']:
        raise ValueError(
            f'{name} is no image classification set (it has {", ".join(sorted(features))}); needed are one image and '
            'one label a point'
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
