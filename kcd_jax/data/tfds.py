"""TFDS image classification sets in memory; data that are prepared are read without TensorFlow.

Order of the points: by the `id` that the records carry (numbers in it compared as numbers), where every point of a
split has its own; else as they lie on disk, shard by shard. TFDS writes records in the order of a hash of their keys,
so both are the same for tfrecord and array_record preparations and for any number of shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import os
import pathlib
import re
import shutil
import threading
from typing import Any

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data import records
from kcd_jax.data.base import Dataset, Normalization, Split, check_memory, measure

# As in the papers' code (CIFAR-100: RepDistiller's constants); other sets get their own mean and deviation.
NORMALIZATION = {
    'cifar10': Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
NAMES = ('cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'svhn_cropped')

_FORMATS = ('tfrecord', 'array_record')

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set on disk, as its JSON files describe it.

    Attributes:
      name: 'cifar100' or 'imagenet_resized/32x32'. version: '3.0.2'. path: its folder.
      file_format: 'tfrecord' or 'array_record'.
      shards: {split: {file: points}}.
      image, label: the keys of the features. image_shape: (H, W, C), None where it varies.
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
    """Sound, but nothing that can be used here."""


def data_dir(dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The argument, else TFDS_DATA_DIR, else TFDS's own default."""
    return pathlib.Path(dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


# ------------------------------------------------------------------------------------------------------- finding it


def find(name: str, dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """The newest preparation of `name` ('cifar100', 'name/config', 'name:1.0.0'), or None.

    `dir` may also be the folder of the version itself.

    Raises:
      ValueError: it is there but cannot be read: a missing or empty shard, JSON that is none, no images and labels.
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
            f'classification set ({type(error).__name__}: {error}); {_again(base, path)}'
        ) from error
    for split in prepared.shards.values():
        for file in split:
            if not _is_file(file) or file.stat().st_size == 0:
                what = 'is empty' if _is_file(file) else 'is missing'
                raise ValueError(f'{name}: {file} {what}; {_again(base, path)}')
    return prepared


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _again(name: str, path: pathlib.Path) -> str:
    root = path.parents[name.count('/') + 1]
    return f'delete {path} and prepare it again: python -m kcd_jax.data prepare {name} --dir {root}'


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
    class_names = labels.read_text().splitlines() if labels.is_file() else []
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
                '{DATASET}': info['name'], '{SPLIT}': split['name'], '{FILEFORMAT}': file_format,
                '{SHARD_X_OF_Y}': f'{number:05d}-of-{len(lengths):05d}',
                '{SHARD_INDEX}': f'{number:05d}', '{NUM_SHARDS}': f'{len(lengths):05d}',
            }
            file = template
            for word, value in words.items():
                file = file.replace(word, value)
            files[path / file] = length
        shards[split['name']] = files
    return Prepared(
        name, info['version'], path, file_format, shards, image, label,
        tuple(int(d) if d and int(d) > 0 else None for d in dimensions), tuple(class_names),
    )


def _missing(name: str, root: pathlib.Path, why: str = '') -> ValueError:
    there = sorted({p.parents[1].relative_to(root).as_posix() for p in root.glob('*/*/dataset_info.json')})
    found = f'only {", ".join(there)}' if there else 'nothing' if root.is_dir() else 'no such folder'
    if not why:
        why = 'TensorFlow, which downloading needs, is not installed (pip install "kcd_jax[prepare]")'
    return ValueError(
        f'{name} is not prepared in {root} (found {found}) and cannot be downloaded: {why}; set TFDS_DATA_DIR or '
        f'--config.data.dir to a folder that has {name.partition(":")[0]}/<version>/dataset_info.json, or run '
        f'"python -m kcd_jax.data prepare {name}" where there is a network'
    )


# ------------------------------------------------------------------------------------------------------- reading it


def load(
    name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None
) -> Dataset:
    """The whole set; downloaded and prepared first when it is not there and TensorFlow and a network are.

    The split 'test' is evaluated on, or 'validation' where there is no 'test' or its labels are hidden.

    Raises:
      ValueError: missing, damaged, of several image sizes, or too large for the memory.
    """
    prepared = find(name, dir)
    if prepared is None:
        prepare(name, dir)
        prepared = find(name, dir)
        if prepared is None:
            raise _missing(name, data_dir(dir), 'TFDS left nothing behind')
    _check_memory(prepared)
    arrays, meta = cache_lib.fetch(
        name, str(prepared.path.resolve()), made_from(prepared), lambda: _decode(prepared), cache
    )
    splits = {
        split: Split(
            arrays[f'{split}_images'],
            arrays[f'{split}_labels'],
            arrays[f'{split}_ids'].astype(str) if f'{split}_ids' in arrays else None,
        )
        for split in ('train', 'test')
    }
    return Dataset(
        name=name,
        train=splits['train'],
        test=splits['test'],
        class_names=prepared.class_names,
        num_classes=len(prepared.class_names),
        image_shape=splits['train'].images.shape[1:],
        normalization=NORMALIZATION.get(prepared.name) or Normalization(*map(tuple, meta['normalization'])),
        description=_description(prepared) + meta['note'],
    )


def check(
    name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None
) -> str:
    """A line on a prepared set. Its files are verified unless they are those of a cache entry; nothing is decoded."""
    prepared = find(name, dir)
    if prepared is None:
        why = ''
        if importlib.util.find_spec('tensorflow') is not None:
            why = '--check downloads nothing'
        raise _missing(name, data_dir(dir), why)
    _check_memory(prepared)
    if not cache_lib.knows(name, str(prepared.path.resolve()), made_from(prepared), cache):
        for split in _split_names(prepared):
            for file in prepared.shards[split]:
                _read_shard(prepared, split, file)
    counts = ', '.join(f'{prepared.count(split):,} {split}' for split in _split_names(prepared))
    size = 'x'.join(str(d) if d else '?' for d in prepared.image_shape[:2])
    return f'{name}: {counts}, {len(prepared.class_names)} classes, {size}; {_description(prepared)}'


def _description(prepared: Prepared) -> str:
    return f'TFDS {prepared.version} ({prepared.file_format}) in {prepared.path}'


def made_from(prepared: Prepared) -> dict[str, Any]:
    """The fingerprint of its files."""
    files = [file for split in prepared.shards.values() for file in split]
    return cache_lib.fingerprint([*files, prepared.path / 'dataset_info.json', prepared.path / 'features.json'])


def _check_memory(prepared: Prepared) -> None:
    splits = _split_names(prepared)
    points = sum(prepared.count(split) for split in splits)
    if None in prepared.image_shape[:2]:
        size = sum(file.stat().st_size for split in splits for file in prepared.shards[split])
    else:
        size = points * prepared.image_shape[0] * prepared.image_shape[1] * 3
    check_memory(prepared.name, size)


def _split_names(prepared: Prepared) -> list[str]:
    """'train' and those that may be evaluated on."""
    names = [split for split in ('train', 'test', 'validation') if split in prepared.shards]
    if names[:1] != ['train'] or len(names) < 2:
        raise ValueError(
            f'{prepared.name} has the splits {", ".join(sorted(prepared.shards))}; needed are train '
            'and test or validation'
        )
    return names


def _read_shard(prepared: Prepared, split: str, file: pathlib.Path) -> list[memoryview | bytes]:
    again = _again(prepared.name, prepared.path)
    try:
        found = records.read(file, prepared.file_format)
    except records.DamagedError as error:
        raise ValueError(f'{file} is damaged ({error}); {again}') from error
    except OSError as error:
        raise ValueError(f'{file} cannot be read ({error.strerror or error}); {again}') from error
    wanted = prepared.shards[split][file]
    if len(found) != wanted:
        raise ValueError(f'{file} is damaged ({len(found):,} records, dataset_info.json says {wanted:,}); {again}')
    return found


def _decode(prepared: Prepared) -> tuple[cache_lib.Arrays, dict[str, Any]]:
    """All arrays of both splits, in the order of this module, and the constants."""
    _, *tests = _split_names(prepared)
    arrays = _decode_split(prepared, 'train', 'train')
    note = ''
    for split in tests:
        part = _decode_split(prepared, split, 'test')
        if (part['test_labels'] >= 0).all():
            note = '' if split == 'test' else f"; evaluated on its split '{split}'"
            break
    else:
        raise ValueError(f'{prepared.name} has no split with labels to evaluate on (looked at {", ".join(tests)})')
    sizes = [arrays['train_images'].shape[1:], part['test_images'].shape[1:]]
    if sizes[0] != sizes[1]:
        raise ValueError(f'{prepared.name} has images of {sizes[0]} in train and {sizes[1]} in {split}; one is needed')
    return arrays | part, {'normalization': measure(arrays['train_images']), 'note': note}


def _decode_split(prepared: Prepared, split: str, name: str) -> cache_lib.Arrays:
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    number = prepared.count(split)
    images, labels, ids, point = None, np.empty(number, np.int32), [], 0
    for file in prepared.shards[split]:
        for record in _read_shard(prepared, split, file):
            try:
                feature = tf_example_pb2.Example.FromString(bytes(record)).features.feature
                with Image.open(io.BytesIO(feature[prepared.image].bytes_list.value[0])) as picture:
                    image = np.asarray(picture if picture.mode == 'RGB' else picture.convert('RGB'))
                labels[point] = feature[prepared.label].int64_list.value[0]
                if 'id' in feature:
                    ids.extend(feature['id'].bytes_list.value[:1])
            except Exception as error:  # of protobuf and Pillow, each with its own
                raise ValueError(
                    f'{file}: record {point} of {split} is not an image with a label ({error}); '
                    f'{_again(prepared.name, prepared.path)}'
                ) from error
            if images is None:
                images = np.empty((number, *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f'{prepared.name} has images of several sizes ({images.shape[1]}x{images.shape[2]} and '
                    f'{image.shape[0]}x{image.shape[1]}), which are not one array in memory; write them as a folder of '
                    'images and use data.name=folder:SIZE'
                )
            images[point] = image
            point += 1
    if images is None:
        raise ValueError(f'{prepared.name} has no points in {split}; {_again(prepared.name, prepared.path)}')
    worst = int(labels.max())
    if worst >= len(prepared.class_names):
        raise ValueError(f'{prepared.name} has the label {worst} in {split}, but {len(prepared.class_names)} classes')
    arrays = {f'{name}_images': images, f'{name}_labels': labels}
    if len(set(ids)) == number:
        order = sorted(range(number), key=lambda i: _natural(ids[i]))
        arrays = {key: value[order] for key, value in arrays.items()}
        arrays[f'{name}_ids'] = np.array([ids[i] for i in order])
    return arrays


def _natural(name: bytes) -> list[tuple[int, int, bytes]]:
    """A sort key that has b'train_9' before b'train_10'."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in re.split(rb'(\d+)', name) if p]


# ----------------------------------------------------------------------------------------------------- preparing it


def prepare(name: str, dir: str | os.PathLike[str] | None = None, file_format: str = 'tfrecord') -> pathlib.Path:
    """Downloads and prepares a set with TFDS, and returns its folder.

    Raises:
      ValueError: no TensorFlow, no such set, no network (within seconds), or TFDS failed. Empty folders that it leaves
        behind are removed.
    """
    root = data_dir(dir)
    if importlib.util.find_spec('tensorflow') is None:
        raise _missing(name, root)
    import tensorflow_datasets as tfds

    before = _folders(root, name)
    try:
        try:
            builder = tfds.builder(name, data_dir=root, file_format=file_format)
        except Exception as error:  # DatasetNotFoundError, and what the code of a builder raises
            raise _missing(name, root, f'TFDS: {_first_line(error)}') from error
        _check_network(name, root, builder)
        _log.warning('%s is not prepared in %s: TFDS downloads and prepares it now', name, root)
        try:
            builder.download_and_prepare(file_format=file_format)
        except Exception as error:
            raise _missing(name, root, f'TFDS: {_first_line(error)}') from error
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
        raise _missing(name, data_dir(dir), 'there is nothing to convert')
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
            for record in _read_shard(prepared, split, file):
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


def _check_network(name: str, root: pathlib.Path, builder: Any) -> None:
    """Refuses within seconds where TFDS would try for minutes."""
    urls = list(getattr(builder, 'url_infos', None) or ())
    if urls and not _reachable(urls[0]):
        raise _missing(name, root, f'there is no connection to {urls[0].split("/")[2]}')


def _reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether the server of `url` answers at all, by whatever proxies are set."""
    import urllib.error
    import urllib.request

    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:
            # A server that dislikes HEAD is there; a proxy's refusal is not the server.
            if error.code not in (403, 407, 502, 503, 504):
                answered.set()
        except OSError:
            pass

    # In a thread, for looking up a name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    return answered.is_set()
