"""Data sets: one file per set, found by its name; `_template.py` shows how to add one.

`load` gives the points in one fixed order, the same on every machine, in memory or to be read by index during training
(docs/data.md). Names without a file here are image classification sets of TFDS.

Your own data needs no file: `from_arrays`, `from_folder` and `from_objects` build a `Dataset`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from types import ModuleType
from typing import Any

from kcd_jax import paths, plugins
from kcd_jax.data import _parts, _prepared, _preparing, _tfds
from kcd_jax.data import _stream as stream
from kcd_jax.data._arrays import from_arrays, from_objects
from kcd_jax.data._dataset import BY_SIZE, Dataset, Images, Loading, Normalization, Request, Shapes, Split, measure
from kcd_jax.data._parts import by_index, describe, part

__all__ = [
    'STREAM',
    'Dataset',
    'Images',
    'Loading',
    'Normalization',
    'Request',
    'Shapes',
    'Split',
    'by_index',
    'check',
    'describe',
    'from_arrays',
    'from_folder',
    'from_objects',
    'load',
    'measure',
    'names',
    'needs_tensorflow',
    'part',
    'prepare',
    'shapes_of',
    'stream',
]

__path__ += plugins.own_folders('data')

STREAM = {'auto': None, 'true': True, 'false': False}  # the words of config.data.stream
_Path = str | os.PathLike[str]


def names() -> list[str]:
    """The names of all data sets that have a file; other sets of TFDS work too."""
    return plugins.names(sys.modules[__name__])


def load(
    name: str,
    dir: _Path | None = None,
    *,
    validation: float = 0.0,
    seed: int = 0,
    num_points: int = 0,
    cache: _Path | None = None,
    loading: Loading = BY_SIZE,
) -> Dataset:
    """Loads a data set.

    Args:
      name: one of `names()`, or any set of TFDS, as 'name', 'name/config', 'name:1.0.0' or 'name:SIZE'; 'folder:SIZE',
        'tcifar100:blur=PIXELS', 'python:MODULE:FUNCTION'.
      dir: folder of its files; None or '': TFDS_DATA_DIR, or TFDS's default. A folder of images needs it.
      validation: fraction of the training points, drawn by `seed`, that become `Dataset.validation` and are evaluated
        on instead of `test`. Runs that are compared, and their teacher, need the same `seed` here.
      seed: of the held-out points.
      num_points: training points to keep (0: all), the same ones for every seed; taken after the validation points.
      cache: folder for decoded arrays; None: KCD_JAX_CACHE, or kcd_jax under XDG_CACHE_HOME or ~/.cache.
      loading: in memory, or to be streamed.

    Raises:
      ValueError: unknown name, missing or damaged files, impossible parts; one line that says what to do.

    >>> digits = load('digits', num_points=300)
    >>> digits.train.images.shape, digits.num_classes
    ((300, 16, 16, 3), 10)
    """
    module, request = _find(name, dir, cache=cache, loading=loading)
    return part(_load(module, request), validation, seed, num_points)


def from_folder(
    root: _Path, size: int | None = None, *, cache: _Path | None = None, loading: Loading = BY_SIZE
) -> Dataset:
    """A folder of images: root/train/CLASS/* and root/test/CLASS/* (or val); root/CLASS/*; or root/* without labels.

    Without a test folder, a tenth of each class is held out.

    Args:
      root: the folder.
      size: pixels that the shorter side is scaled to, before the central square is taken; None: images stay as they
        are and must be of one size.
      cache: as in `load`.
      loading: as in `load`.

    Raises:
      ValueError: as `load`.
    """
    return load('folder' if size is None else f'folder:{size}', root, cache=cache, loading=loading)


def shapes_of(name: str, *, validation: float = 0.0, seed: int = 0, num_points: int = 0) -> Dataset:
    """A data set without its files: the right counts, classes and shapes, but no pixels. Arguments as in `load`.

    Raises:
      ValueError: nothing is known of this set without its files.

    >>> imagenet = shapes_of('imagenet2012', num_points=1000)
    >>> imagenet.train.images.shape, imagenet.num_classes
    ((1000, 224, 224, 3), 1000)
    """
    module, request = _find(name)
    shapes = request.shapes
    if shapes is None:
        raise ValueError(f'the shapes of data set {name!r} are known only from its files; load it')
    if module is _tfds and (size := _tfds.parse(request)[1]) is not None:
        shapes = dataclasses.replace(shapes, image_shape=(size, size, 3))
    return _parts.without_pixels(name, shapes, validation=validation, seed=seed, num_points=num_points)


def check(name: str, dir: _Path | None = None, *, cache: _Path | None = None) -> str:
    """One line on the data, without downloading any; raises the ValueError of `load` for missing or bad files."""
    return describe(_load(*_find(name, dir, cache=cache, checking=True)))


def needs_tensorflow(name: str, dir: _Path | None = None) -> bool:
    """Whether `load` would have to download and prepare first, which takes TensorFlow (the extra `prepare`).

    Raises:
      ValueError: an unknown name, or a preparation that is damaged.
    """
    module, request = _find(name, dir)
    return hasattr(module, 'needs_tensorflow') and module.needs_tensorflow(request)


def prepare(name: str, dir: _Path | None = None, file_format: str = '') -> str:
    """Downloads and prepares the files of a data set, if they are missing; returns a line on them, '' if it needs none.

    Args:
      name: as in `load`.
      dir: as in `load`.
      file_format: 'tfrecord' or 'array_record', for sets of TFDS.

    Raises:
      ValueError: it cannot be prepared; one line that says what to do.
    """
    module, request = _find(name, dir)
    return module.prepare(request, file_format) if hasattr(module, 'prepare') else ''


def _load(module: ModuleType, request: Request) -> Dataset:
    name, stream = request.name, request.loading.stream
    data = module.load(request)
    if not isinstance(data, Dataset):
        raise ValueError(f'data set {name!r}: load returned a {type(data).__name__}; return a kcd_jax.data.Dataset')
    place = str(paths.expand(request.dir).absolute()) if request.dir else ''
    data = dataclasses.replace(data, name=name, source={'name': name, 'dir': place, 'stream': stream})
    return by_index(data) if stream else data


def _find(name: str, dir: _Path | None = None, **how: Any) -> tuple[ModuleType, Request]:
    """The module of a data set, and what it is asked for; refuses names that are neither ours, prepared nor of TFDS."""
    head, colon, option = name.partition(':')
    known = names()
    if head in known:
        module = plugins.load(sys.modules[__name__], head, 'data set')
        request = Request(name, option, dir, shapes=getattr(module, 'SHAPES', None), **how)
        if hasattr(module, 'shapes'):
            request = dataclasses.replace(request, shapes=module.shapes(request))
        if not hasattr(module, 'load'):
            if request.shapes is None:
                raise ValueError(f'data set {head!r} has no function load in {module.__file__}; see _template.py')
            module = _tfds
        if colon and not hasattr(module, 'OPTIONS'):
            raise ValueError(f'unknown data set {name!r} (did you mean {head!r}?): nothing may follow that name')
        return module, request
    request = Request(name, option, dir, **how)
    if not _tfds.is_known(request):
        near = difflib.get_close_matches(head, [*known, *_preparing.registered()], n=1)
        hint = f' (did you mean {near[0]!r}?)' if near else ''
        raise ValueError(
            f'unknown data set {name!r}{hint}; known: {", ".join(known)}, every image classification set of '
            f'TFDS, and what is prepared in {_prepared.data_dir(dir)}'
        )
    return _tfds, request
