"""TFDS image classification sets in memory; data that are prepared are read without TensorFlow.

Order of the points: by the `id` that the records carry (numbers in it compared as numbers), where every point of a
split has its own; else as they lie on disk, shard by shard. TFDS writes records in the order of a hash of their keys,
so both are the same for tfrecord and array_record preparations and for any number of shards.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
from typing import Any

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data import preparing
from kcd_jax.data.base import Dataset, Normalization, Split, check_memory, measure
from kcd_jax.data.prepared import Prepared, again, data_dir, find, missing, read_shard

# As in the papers' code (CIFAR-100: RepDistiller's constants); other sets get their own mean and deviation.
NORMALIZATION = {
    'cifar10': Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
NAMES = ('cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'svhn_cropped')


def load(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> Dataset:
    """The whole set; downloaded and prepared first when it is not there and TensorFlow and a network are.

    The split 'test' is evaluated on, or 'validation' where there is no 'test' or its labels are hidden.

    Raises:
      ValueError: missing, damaged, of several image sizes, or too large for the memory.
    """
    prepared = find(name, dir)
    if prepared is None:
        preparing.prepare(name, dir)
        prepared = find(name, dir)
        if prepared is None:
            raise missing(name, data_dir(dir), 'TFDS left nothing behind')
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


def check(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on a prepared set. Its files are verified unless they are those of a cache entry; nothing is decoded."""
    prepared = find(name, dir)
    if prepared is None:
        why = ''
        if importlib.util.find_spec('tensorflow') is not None:
            why = '--check downloads nothing'
        raise missing(name, data_dir(dir), why)
    _check_memory(prepared)
    if not cache_lib.knows(name, str(prepared.path.resolve()), made_from(prepared), cache):
        for split in _split_names(prepared):
            for file in prepared.shards[split]:
                read_shard(prepared, split, file)
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
        for record in read_shard(prepared, split, file):
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
                    f'{again(prepared.name, prepared.path)}'
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
        raise ValueError(f'{prepared.name} has no points in {split}; {again(prepared.name, prepared.path)}')
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
