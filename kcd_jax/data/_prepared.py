"""Prepared TFDS data on disk: found and read by their JSON files, without TFDS and without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re

from kcd_jax.data import _records

_FORMATS = ('tfrecord', 'array_record')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk, as its JSON files describe it.

    Attributes:
      name: 'cifar100' or 'imagenet_resized/32x32'.
      version: '3.0.2'.
      path: its folder.
      file_format: 'tfrecord' or 'array_record'.
      shards: {split: {file: points}}.
      image: the key of the feature with the image.
      label: the key of the feature with the label.
      image_shape: (H, W, C), None where it varies.
      class_names: in label order.
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


class _UnsupportedError(ValueError):
    """Intact, but not usable here."""


def data_dir(dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return pathlib.Path(dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def find(name: str, dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """The newest preparation of `name` ('cifar100', 'name/config', 'name:1.0.0'), or None.

    `dir` may also be the folder of the version itself.

    Raises:
      ValueError: it is there but cannot be read: a missing or empty shard, invalid JSON, no images and labels.
    """
    root = data_dir(dir)
    base, _, version = name.partition(':')
    candidates = [root / base / version] if version else [p.parent for p in root.glob(f'{base}/*/dataset_info.json')]
    candidates = [p for p in candidates if re.fullmatch(r'\d+\.\d+\.\d+', p.name) and _is_file(p / 'dataset_info.json')]
    if not candidates and root.match(f'{base}/*') and _is_file(root / 'dataset_info.json'):
        candidates = [root]
    if not candidates:
        return None
    path = max(candidates, key=lambda p: [int(x) for x in p.name.split('.')] if p.name[:1].isdigit() else [])
    try:
        prepared = _read_metadata(base, path)
    except _UnsupportedError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{name} in {path} cannot be read: dataset_info.json or features.json is damaged or not of an image '
            f'classification set ({type(error).__name__}: {error}); {again(base, path)}'
        ) from error
    for split in prepared.shards.values():
        for file in split:
            if not _is_file(file) or file.stat().st_size == 0:
                what = 'is empty' if _is_file(file) else 'is missing'
                raise ValueError(f'{name}: {file} {what}; {again(base, path)}')
    return prepared


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def again(name: str, path: pathlib.Path) -> str:
    """The remedy for damaged files."""
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
        lengths = [int(n) for n in split['shardLengths']]
        template = split.get('filepathTemplate') or '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
        files = {}
        for number, length in enumerate(lengths):
            words = {
                '{DATASET}': info['name'],
                '{SPLIT}': split['name'],
                '{FILEFORMAT}': file_format,
                '{SHARD_X_OF_Y}': f'{number:05d}-of-{len(lengths):05d}',
                '{SHARD_INDEX}': f'{number:05d}',
                '{NUM_SHARDS}': f'{len(lengths):05d}',
            }
            file = template
            for word, value in words.items():
                file = file.replace(word, value)
            files[path / file] = length
        shards[split['name']] = files
    return Prepared(
        name,
        info['version'],
        path,
        file_format,
        shards,
        image,
        label,
        tuple(int(d) if d and int(d) > 0 else None for d in dimensions),
        tuple(class_names),
    )


def missing(name: str, root: pathlib.Path, why: str = '') -> ValueError:
    """The error to raise: what is missing where, and how to provide it.

    Args:
      name: of the set.
      root: the data folder.
      why: the set cannot be downloaded; default: TensorFlow is not installed.
    """
    there = sorted({p.parents[1].relative_to(root).as_posix() for p in root.glob('*/*/dataset_info.json')})
    found = f'only {", ".join(there)}' if there else 'nothing' if root.is_dir() else 'no such folder'
    if not why:
        why = 'TensorFlow, which downloading needs, is not installed (pip install "kcd_jax[prepare]")'
    return ValueError(
        f'{name} is not prepared in {root} (found {found}) and cannot be downloaded: {why}; set TFDS_DATA_DIR or '
        f'--config.data.dir to a folder that has {name.partition(":")[0]}/<version>/dataset_info.json, or run '
        f'"python -m kcd_jax data prepare {name}" where there is a network'
    )


def read_shard(prepared: Prepared, split: str, file: pathlib.Path) -> list[memoryview | bytes]:
    """The verified records of a shard; ValueError if it is not what was written."""
    remedy = again(prepared.name, prepared.path)
    try:
        found = _records.read(file, prepared.file_format)
    except _records.DamagedError as error:
        raise ValueError(f'{file} is damaged ({error}); {remedy}') from error
    except OSError as error:
        raise ValueError(f'{file} cannot be read ({error.strerror or error}); {remedy}') from error
    wanted = prepared.shards[split][file]
    if len(found) != wanted:
        raise ValueError(f'{file} is damaged ({len(found):,} records, dataset_info.json says {wanted:,}); {remedy}')
    return found
