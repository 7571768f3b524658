"""Prepared TFDS data on disk, found by its JSON files: importing neither TFDS nor TensorFlow keeps starts fast."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re

from kcd_jax import paths
from kcd_jax.data import _records

_FORMATS = ('tfrecord', 'array_record')
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk.

    Attributes:
      name: 'cifar100' or 'imagenet_resized/32x32'.
      shards: {split: {file: points}}.
      image: key of the image in a record.
      label: key of the label in a record.
      image_shape: (H, W, C), None where it varies.
    """

    name: str
    version: str
    path: pathlib.Path
    file_format: str
    shards: dict[str, dict[pathlib.Path, int]]
    image: str
    label: str
    image_shape: tuple[int | None, ...]
    class_names: tuple[str, ...]

    def count(self, split: str) -> int:
        """Points of a split."""
        return sum(self.shards[split].values())

    def records(self, split: str, file: pathlib.Path) -> list[memoryview | bytes]:
        """The verified records of a shard; ValueError if it is not what was written."""
        try:
            found = _records.read(file, self.file_format)
        except ValueError as error:
            raise ValueError(f'{file} is damaged ({error}); {self.remedy()}') from error
        except OSError as error:
            raise ValueError(f'{file} cannot be read ({error.strerror or error}); {self.remedy()}') from error
        wanted = self.shards[split][file]
        if len(found) != wanted:
            raise ValueError(
                f'{file} is damaged ({len(found):,} records, dataset_info.json says {wanted:,}); {self.remedy()}'
            )
        return found

    def remedy(self) -> str:
        """What to do about damaged files."""
        return _remedy(self.name, self.path)


class _UnsupportedError(ValueError):
    """Intact, but not usable here."""


def data_dir(dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return paths.expand(dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def find(name: str, dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """The newest preparation of `name` ('cifar100', 'name/config', 'name:1.0.0'), or None.

    `dir` may also be the folder of the version itself.

    Raises:
      ValueError: it is there but cannot be read: a missing or empty shard, invalid JSON, no images and labels.
    """
    root = data_dir(dir)
    base, _, version = name.partition(':')
    found = [file.parent for file in root.glob(f'{base}/{version or "*"}/dataset_info.json')]
    found = [folder for folder in found if re.fullmatch(r'\d+\.\d+\.\d+', folder.name)]
    if found:
        path = max(found, key=lambda folder: [int(number) for number in folder.name.split('.')])
    elif root.match(f'{base}/*') and (root / 'dataset_info.json').is_file():
        path = root
    else:
        return None
    try:
        prepared = _read_metadata(base, path)
    except _UnsupportedError:
        raise
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{name} in {path} cannot be read: dataset_info.json or features.json is damaged or not of an image '
            f'classification set ({type(error).__name__}: {error}); {_remedy(base, path)}'
        ) from error
    for file in (file for split in prepared.shards.values() for file in split):
        if not file.is_file() or file.stat().st_size == 0:
            what = 'is empty' if file.is_file() else 'is missing'
            raise ValueError(f'{name}: {file} {what}; {prepared.remedy()}')
    return prepared


def _remedy(name: str, path: pathlib.Path) -> str:
    root = path.parents[name.count('/') + 1]
    return f'delete {path} and prepare it again: python -m kcd_jax data prepare {name} --dir {root}'


def _read_metadata(name: str, path: pathlib.Path) -> Prepared:
    info = json.loads((path / 'dataset_info.json').read_text())
    features = json.loads((path / 'features.json').read_text())['featuresDict']['features']
    keys = [item['featureKey'] for item in info['supervisedKeys']['tuple']['items']]
    image, label = keys if len(keys) == 2 else ('image', 'label')
    description = features[image]['image']
    if description.get('dtype', 'uint8') != 'uint8':
        raise _UnsupportedError(f'{name} has images of type {description["dtype"]}; only 8-bit images are supported')
    dimensions = description.get('shape', {}).get('dimensions', [None, None, None])
    classes = int(features[label]['classLabel']['numClasses'])
    labels = path / f'{label}.labels.txt'
    class_names = labels.read_text('utf-8').splitlines() if labels.is_file() else []
    if len(class_names) != classes:
        class_names = [str(i) for i in range(classes)]
    file_format = info.get('fileFormat') or 'tfrecord'
    if file_format not in _FORMATS:
        raise _UnsupportedError(f'{name} in {path} is prepared as {file_format}; prepare it as {" or ".join(_FORMATS)}')
    shards = {}
    for split in info['splits']:
        template, number = split.get('filepathTemplate') or _TEMPLATE, len(split['shardLengths'])
        words = {'DATASET': info['name'], 'SPLIT': split['name'], 'FILEFORMAT': file_format}
        files = shards[split['name']] = {}
        for shard, length in enumerate(split['shardLengths']):
            words |= {'SHARD_INDEX': f'{shard:05d}', 'NUM_SHARDS': f'{number:05d}'}
            file = template.format(SHARD_X_OF_Y=f'{shard:05d}-of-{number:05d}', **words)
            files[path / file] = int(length)
    return Prepared(
        name=name,
        version=info['version'],
        path=path,
        file_format=file_format,
        shards=shards,
        image=image,
        label=label,
        image_shape=tuple(int(d) if d and int(d) > 0 else None for d in dimensions),
        class_names=tuple(class_names),
    )


def missing(name: str, root: pathlib.Path, why: str = '') -> ValueError:
    """The error for a set that is not prepared in `root`, and cannot be downloaded; by default, without TensorFlow."""
    there = sorted({p.parents[1].relative_to(root).as_posix() for p in root.glob('*/*/dataset_info.json')})
    found = f'only {", ".join(there)}' if there else 'nothing' if root.is_dir() else 'no such folder'
    why = why or 'TensorFlow, which downloading needs, is not installed (pip install "kcd_jax[prepare]")'
    return ValueError(
        f'{name} is not prepared in {root} (found {found}) and cannot be downloaded: {why}; set TFDS_DATA_DIR or '
        f'--config.data.dir to a folder that has {name.partition(":")[0]}/<version>/dataset_info.json, or run '
        f'"python -m kcd_jax data prepare {name}" where there is a network'
    )
