"""Data: every set by its name, in memory or read by index while it is trained on (docs/data.md).

`load` gives the points in one fixed order, the same on every machine and for every reader. The names:
  digits          the embedded default (kcd_jax.data.digits), no files needed
  cifar100        and any other image classification set of TFDS (kcd_jax.data.tfds); NAME:SIZE scales its images
  imagenet2012    of TFDS, at 224 pixels unless a SIZE is given
  tcifar100       CIFAR-100 behind a Gaussian blur or noise (kcd_jax.data.tcifar)
  tiny_imagenet   as its authors pack it (kcd_jax.data.tiny_imagenet)
  folder:64       a folder of images, scaled to 64 x 64 (kcd_jax.data.folder)
  python:MODULE:FUNCTION   what a function of the user's returns (kcd_jax.data.custom)
"""

from __future__ import annotations

import difflib
import os

from kcd_jax.data import base, custom, digits, folder, prepared, preparing, tcifar, tfds, tiny_imagenet
from kcd_jax.data.base import BY_SIZE, Dataset, Images, Loading, Normalization, Split, describe
from kcd_jax.data.custom import from_objects

__all__ = [
    'STREAM',
    'Dataset',
    'Images',
    'Loading',
    'Normalization',
    'Split',
    'check',
    'describe',
    'from_objects',
    'load',
    'names',
    'needs_tensorflow',
    'part',
]

STREAM = {'auto': None, 'true': True, 'false': False}  # the words of config.data.stream
_PARAMETERS = (folder.NAME, tcifar.NAME, custom.NAME)  # names that something may follow, after a colon


def names() -> list[str]:
    """The names that are known without looking at any folder; other sets of TFDS work too."""
    return sorted(['digits', folder.NAME, tcifar.NAME, tiny_imagenet.NAME, *tfds.NAMES])


def load(
    name: str,
    dir: str | os.PathLike[str] | None = None,
    *,
    validation: float = 0.0,
    seed: int = 0,
    num_points: int = 0,
    cache: str | os.PathLike[str] | None = None,
    loading: Loading = BY_SIZE,
) -> Dataset:
    """Loads a data set.

    Args:
      name: one of `names()`, or any set of TFDS, as 'name', 'name/config', 'name:1.0.0' or 'name:SIZE'; 'folder:SIZE',
        'tcifar100:blur=PIXELS', 'python:MODULE:FUNCTION'.
      dir: where its files are; None or '': TFDS_DATA_DIR, else TFDS's default. A folder of images needs it.
      validation: fraction of the training points, drawn by `seed`, that become `Dataset.validation`; who evaluates
        uses them instead of `test`. Runs that are compared, and their teacher, need the same `seed` here.
      num_points: training points to keep (0: all), the same ones for every seed; taken after the validation points.
      cache: folder for decoded arrays; None: KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache.
      loading: in memory, or to be streamed.

    Raises:
      ValueError: unknown name, missing or damaged files, impossible parts; in one line with what to do.

    >>> digits = load('digits', num_points=300)
    >>> digits.train.images.shape, digits.num_classes
    ((300, 16, 16, 3), 10)
    """
    _known(name, dir)
    match name.partition(':')[0]:
        case 'digits':
            data = digits.load()
        case folder.NAME:
            data = folder.load(name, dir, cache, loading)
        case tcifar.NAME:
            data = tcifar.load(name, dir, cache)
        case tiny_imagenet.NAME:
            data = tiny_imagenet.load(dir, cache, loading)
        case custom.NAME:
            data = custom.load(name, loading)
        case _:
            data = tfds.load(name, dir, cache, loading)
    return part(base.by_index(data) if loading.stream else data, validation, seed, num_points)


def part(data: Dataset, validation: float, seed: int, num_points: int) -> Dataset:
    """The points of a data set that are trained on. Arguments and errors as `load`."""
    return base.few(base.hold_out(data, validation, seed), num_points)


def check(name: str, dir: str | os.PathLike[str] | None = None, *, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on the data, without downloading any; raises the ValueError of `load` for missing or bad files."""
    _known(name, dir)
    match name.partition(':')[0]:
        case 'digits':
            return digits.check()
        case folder.NAME:
            return folder.check(name, dir, cache)
        case tcifar.NAME:
            return tcifar.check(name, dir, cache)
        case tiny_imagenet.NAME:
            return tiny_imagenet.check(dir, cache)
        case custom.NAME:
            return describe(custom.load(name))
        case _:
            return tfds.check(name, dir, cache)


def needs_tensorflow(name: str, dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether `load` would have to download and prepare first, which takes TensorFlow (the extra `prepare`).

    Raises:
      ValueError: an unknown name, or a preparation that is damaged.
    """
    _known(name, dir)
    head = name.partition(':')[0]
    if head in ('digits', folder.NAME, tiny_imagenet.NAME, custom.NAME):
        return False
    return prepared.find('cifar100' if head == tcifar.NAME else tfds.parse(name)[0], dir) is None


def _known(name: str, dir: str | os.PathLike[str] | None) -> None:
    """Refuses a name that is not ours, not prepared, and not of TFDS."""
    head = name.partition(':')[0]
    if name in names() or head in _PARAMETERS or head in tfds.NAMES:
        return
    if head != 'digits' and prepared.find(tfds.parse(name)[0], dir) is not None:
        return
    registered = preparing.registered()
    if head.partition('/')[0] in registered:
        return
    near = difflib.get_close_matches(head, [*names(), *registered], n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(
        f'unknown data set {name!r}{hint}; known: {", ".join(names())}, every image classification set of '
        f'TFDS, and what is prepared in {prepared.data_dir(dir)}'
    )
