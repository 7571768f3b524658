"""TFDS image classification sets, in memory or by index; data that are prepared are read without TensorFlow.

`NAME:SIZE` scales the shorter side of every image to SIZE pixels and cuts the middle SIZE x SIZE, which sets whose
images have their own sizes need (imagenet2012 has 224 of itself).

Order of the points: by the `id` that the records carry (numbers in it compared as numbers), where every point of a
split has its own; else as they lie on disk, shard by shard. TFDS writes records in the order of a hash of their keys,
so both are the same for tfrecord and array_record preparations and for any number of shards.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
from typing import Any

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data import pictures, preparing, records
from kcd_jax.data.base import (
    BY_SIZE,
    ChannelCounts,
    Dataset,
    Images,
    Loading,
    Normalization,
    Split,
    check_memory,
    progress,
)
from kcd_jax.data.prepared import Prepared, again, data_dir, find, missing, read_shard

# As in the papers' code (CIFAR-100: RepDistiller's constants); other sets get their own mean and deviation.
NORMALIZATION = {
    'cifar10': Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    'imagenet2012': Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NAMES = ('cifar10', 'cifar100', 'fashion_mnist', 'imagenet2012', 'mnist', 'svhn_cropped')


SIZES = {'imagenet2012': 224}  # of images that have their own sizes


def parse(name: str) -> tuple[str, int | None]:
    """'imagenet2012:64' -> ('imagenet2012', 64), 'cifar100:3.0.2' -> ('cifar100:3.0.2', None).

    Raises:
      ValueError: fewer than 8 or more than 4096 pixels, or something else than a name.
    """
    match = re.fullmatch(r'(\w+(?:/[\w.-]+)?)(?::(?:(\d+)|\d+\.\d+\.\d+))?', name)
    if match is None:
        raise ValueError(
            f'data set {name!r} is not understood; use NAME, NAME/CONFIG, NAME:SIZE or NAME:1.0.0, and for a folder of '
            'images folder:SIZE with --config.data.dir'
        )
    if match[2] is None:
        return name, SIZES.get(name.partition(':')[0])
    if not 8 <= int(match[2]) <= 4096:
        raise ValueError(f'data set {name!r} is not understood; a size is 8 to 4096 pixels')
    return match[1], int(match[2])


def load(
    name: str,
    dir: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    loading: Loading = BY_SIZE,
) -> Dataset:
    """The whole set; downloaded and prepared first when it is not there and TensorFlow and a network are.

    The split 'test' is evaluated on, or 'validation' where there is no 'test' or its labels are hidden.

    Raises:
      ValueError: missing, damaged, of several image sizes and no SIZE, or too large for the memory.
    """
    base, size = parse(name)
    prepared = find(base, dir)
    if prepared is None:
        preparing.prepare(base, dir)
        prepared = find(base, dir)
        if prepared is None:
            raise missing(base, data_dir(dir), 'TFDS left nothing behind')
    streamed = loading.streams(_memory(prepared, size))
    if not streamed:
        check_memory(prepared.name, _memory(prepared, size))
    share = pictures.EVALUATED if loading.area and size is not None else 1.0
    how = {} if size is None else {'size': size, 'share': share}
    if size is not None and not streamed:
        how['filter'] = pictures.FILTER
    arrays, meta = cache_lib.fetch(
        f'{name}-index' if streamed else name,
        str(prepared.path.resolve()),
        made_from(prepared) | how,
        lambda: _read(prepared, size, share, keep=not streamed),
        cache,
    )

    def split(part: str) -> Split:
        labels = arrays[f'{part}_labels']
        ids = arrays[f'{part}_ids'].astype(str) if f'{part}_ids' in arrays else None
        if not streamed:
            return Split(arrays[f'{part}_images'], labels, ids)
        files = prepared.shards[meta['splits'][part]]
        found = records.by_number(
            [str(file) for file in files], list(files.values()), arrays[f'{part}_sizes'], prepared.file_format
        )
        encoded = Encoded(found, arrays[f'{part}_numbers'], prepared.image)
        source = pictures.source(encoded, size, share, loading.area if part == 'train' else ())
        return Split(Images(source, np.arange(len(labels)), tuple(meta['shape'])), labels, ids)

    note = '' if meta['splits']['test'] == 'test' else f"; evaluated on its split '{meta['splits']['test']}'"
    return Dataset(
        name=name,
        train=split('train'),
        test=split('test'),
        class_names=prepared.class_names,
        num_classes=len(prepared.class_names),
        image_shape=tuple(meta['shape']),
        normalization=NORMALIZATION.get(prepared.name) or Normalization(*map(tuple, meta['normalization'])),
        description=_description(prepared) + note,
    )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """encoded[i]: the picture of a point as it lies in its record.

    Attributes:
      records: records[n] -> bytes. numbers: i64[N], the record of each point. image: the feature's key.
    """

    records: Any
    numbers: np.ndarray
    image: str

    def __getitem__(self, point: int) -> bytes:
        return _feature(self.records[int(self.numbers[point])])[self.image].bytes_list.value[0]


def _feature(record: bytes | memoryview) -> Any:
    """{key: feature} of a serialised example."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature


def check(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on a prepared set. Its files are verified unless they are those of a cache entry; nothing is decoded."""
    base, size = parse(name)
    prepared = find(base, dir)
    if prepared is None:
        why = ''
        if importlib.util.find_spec('tensorflow') is not None:
            why = '--check downloads nothing'
        raise missing(base, data_dir(dir), why)
    if not cache_lib.knows(base, str(prepared.path.resolve()), made_from(prepared), cache):
        for split in _split_names(prepared):
            for file in prepared.shards[split]:
                read_shard(prepared, split, file)
    counts = ', '.join(f'{prepared.count(split):,} {split}' for split in _split_names(prepared))
    shape = prepared.image_shape[:2] if size is None else (size, size)
    size = 'x'.join(str(d) if d else '?' for d in shape)
    return f'{name}: {counts}, {len(prepared.class_names)} classes, {size}; {_description(prepared)}'


def _description(prepared: Prepared) -> str:
    return f'TFDS {prepared.version} ({prepared.file_format}) in {prepared.path}'


def made_from(prepared: Prepared) -> dict[str, Any]:
    """The fingerprint of its files."""
    files = [file for split in prepared.shards.values() for file in split]
    return cache_lib.fingerprint([*files, prepared.path / 'dataset_info.json', prepared.path / 'features.json'])


def _memory(prepared: Prepared, size: int | None) -> int:
    """Bytes of all images of `size` pixels, or of their own size; where that varies, at least what the files take."""
    splits = _split_names(prepared)
    height, width = prepared.image_shape[:2] if size is None else (size, size)
    if height is None or width is None:
        return sum(file.stat().st_size for split in splits for file in prepared.shards[split])
    return sum(prepared.count(split) for split in splits) * height * width * 3


def _split_names(prepared: Prepared) -> list[str]:
    """'train' and those that may be evaluated on."""
    names = [split for split in ('train', 'test', 'validation') if split in prepared.shards]
    if names[:1] != ['train'] or len(names) < 2:
        raise ValueError(
            f'{prepared.name} has the splits {", ".join(sorted(prepared.shards))}; needed are train '
            'and test or validation'
        )
    return names


def _read(prepared: Prepared, size: int | None, share: float, *, keep: bool) -> tuple[cache_lib.Arrays, dict[str, Any]]:
    """The arrays of both splits, in the order of this module, and as JSON: shape, constants, what test is.

    With `keep` the images; else where each is: its number among the records, and every record's bytes.
    """
    _, *tests = _split_names(prepared)
    # Constants that are known need no look at the pixels of what is streamed.
    counts = None if prepared.name in NORMALIZATION and not keep else ChannelCounts()
    arrays, shape = _read_split(prepared, 'train', 'train', size, 1.0, keep, counts)
    for split in tests:
        part, test_shape = _read_split(prepared, split, 'test', size, share, keep, None)
        if (part['test_labels'] >= 0).all():
            break
    else:
        raise ValueError(f'{prepared.name} has no split with labels to evaluate on (looked at {", ".join(tests)})')
    if shape != test_shape:
        raise ValueError(f'{prepared.name} has images of {shape} in train and {test_shape} in {split}; one is needed')
    constants = None if counts is None else counts.normalization()
    return arrays | part, {'normalization': constants, 'shape': shape, 'splits': {'train': 'train', 'test': split}}


def _read_split(
    prepared: Prepared,
    split: str,
    name: str,
    size: int | None,
    share: float,
    keep: bool,
    counts: ChannelCounts | None,
) -> tuple[cache_lib.Arrays, tuple[int, ...]]:
    """{'NAME_labels', 'NAME_ids' where points have them, 'NAME_images' or 'NAME_numbers', 'NAME_sizes'}, and the shape.

    `counts`, if given, counts the pixels.
    """
    number = prepared.count(split)
    images, shape, ids = None, None, []
    labels, sizes = np.empty(number, np.int32), np.empty(number, np.int64)
    box = functools.partial(pictures.middle_box, share=share)
    look = keep or counts is not None or (size is None and None in prepared.image_shape[:2])
    found = ((file, record) for file in prepared.shards[split] for record in read_shard(prepared, split, file))
    for point, (file, record) in enumerate(progress(found, number, f'{prepared.name} {split}')):
        try:
            feature = _feature(record)
            if look or shape is None:
                image = pictures.read(feature[prepared.image].bytes_list.value[0], size, box)
            labels[point], sizes[point] = feature[prepared.label].int64_list.value[0], len(record)
            if 'id' in feature:
                ids.extend(feature['id'].bytes_list.value[:1])
        except Exception as error:  # of protobuf and Pillow, each with its own
            raise ValueError(
                f'{file}: record {point} of {split} is not an image with a label '
                f'({pictures.reason(error.__cause__ or error)}); {again(prepared.name, prepared.path)}'
            ) from error
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(
                f'{prepared.name} has images of several sizes ({shape[0]}x{shape[1]} and '
                f'{image.shape[0]}x{image.shape[1]}); give one for all, as data.name={prepared.name}:{min(shape[:2])}'
            )
        if keep:
            images = np.empty((number, *shape), np.uint8) if images is None else images
            images[point] = image
        if counts is not None:
            counts.add(image)
    if shape is None:
        raise ValueError(f'{prepared.name} has no points in {split}; {again(prepared.name, prepared.path)}')
    worst = int(labels.max())
    if worst >= len(prepared.class_names):
        raise ValueError(f'{prepared.name} has the label {worst} in {split}, but {len(prepared.class_names)} classes')
    arrays = {'labels': labels} | ({'images': images} if keep else {'numbers': np.arange(number)})
    if len(set(ids)) == number:
        order = sorted(range(number), key=lambda i: _natural(ids[i]))
        arrays = {key: value[order] for key, value in arrays.items()} | {'ids': np.array([ids[i] for i in order])}
    if not keep:
        arrays['sizes'] = sizes
    return {f'{name}_{key}': value for key, value in arrays.items()}, tuple(shape)


def _natural(name: bytes) -> list[tuple[int, int, bytes]]:
    """A sort key that has b'train_9' before b'train_10'."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in re.split(rb'(\d+)', name) if p]
