"""TFDS image classification sets, in memory or by index; prepared data is read without TensorFlow.

`NAME:SIZE` scales the shorter side of every image to SIZE pixels and takes the central SIZE x SIZE, which is needed by
sets whose images vary in size (imagenet2012 defaults to 224).

Order of the points: by the `id` that the records carry (numbers in it compared as numbers), where every point of a
split has its own; otherwise as they lie on disk, shard by shard. TFDS writes records in the order of a hash of their
keys, so both are the same for tfrecord and array_record preparations and for any number of shards.

A module with `SHAPES` but no `load` (cifar100.py) is a set of TFDS that is read here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kcd_jax.data import _cache, _encoded, _pictures, _preparing, _records
from kcd_jax.data._dataset import Dataset, Request, progress
from kcd_jax.data._prepared import Prepared, data_dir, find, missing

OPTIONS = 'SIZE or VERSION'


def parse(request: Request) -> tuple[str, int | None]:
    """'imagenet2012:64' -> ('imagenet2012', 64), 'cifar100:3.0.2' -> ('cifar100:3.0.2', None)."""
    name = request.name
    match = re.fullmatch(r'(\w+(?:/[\w.-]+)?)(?::(?:(\d+)|\d+\.\d+\.\d+))?', name, re.ASCII)
    if match is None:
        raise ValueError(
            f'data set {name!r} is not understood; use NAME, NAME/CONFIG, NAME:SIZE or NAME:1.0.0, and for a folder of '
            'images folder:SIZE with --config.data.dir'
        )
    if match[2] is None:
        return name, request.shapes.image_shape[0] if request.shapes and request.shapes.scaled else None
    if not 8 <= int(match[2]) <= 4096:
        raise ValueError(f'data set {name!r} is not understood; a size is 8 to 4096 pixels')
    return match[1], int(match[2])


def load(request: Request) -> Dataset:
    """The whole set; downloaded and prepared first if it is missing and TensorFlow and a network are available.

    The split 'test' is evaluated on, or 'validation' where there is no 'test' or its labels are hidden.

    Raises:
      ValueError: missing, damaged, of several image sizes and no SIZE, or too large for the memory.
    """
    base, size = parse(request)
    prepared = _prepared(base, request)
    constants = request.shapes.normalization if request.shapes else None
    made_from = _made_from(prepared, request)

    def source(part: str, arrays: _cache.Arrays, meta: dict[str, Any]) -> tuple[Encoded, str]:
        split = meta['splits'][part]
        paths, counts = zip(*prepared.shards[split].items())
        records = _records.by_number(
            [str(path) for path in paths], counts, arrays[f'{part}_offsets'], prepared.file_format
        )
        return Encoded(records, arrays[f'{part}_numbers'], prepared.image), made_from['content'][split]

    def describe(meta: dict[str, Any]) -> str:
        split = meta['splits']['test']
        note = '' if split == 'test' else f"; evaluated on its split '{split}'"
        return f'TFDS {prepared.version} ({prepared.file_format}) in {prepared.path}{note}'

    return _encoded.dataset(
        request,
        size,
        place=str(prepared.path.resolve()),
        memory=_memory(prepared, size),
        made_from=made_from,
        make=lambda share, keep: _read(prepared, size, share, keep, measured=constants is None),
        source=source,
        class_names=prepared.class_names,
        describe=describe,
        constants=constants,
    )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """encoded[i]: the picture of a point as stored in records[numbers[i]], under the key `image`."""

    records: Any
    numbers: np.ndarray
    image: str

    def __getitem__(self, point: int) -> bytes:
        return _features(self.records[int(self.numbers[point])])[self.image].bytes_list.value[0]


def _features(record: bytes | memoryview) -> Any:
    """{key: feature} of a serialised example."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature


def is_known(request: Request) -> bool:
    """Whether the set is prepared, or TFDS has code for it."""
    name = parse(request)[0]
    return find(name, request.dir) is not None or re.split('[:/]', name)[0] in _preparing.registered()


def needs_tensorflow(request: Request) -> bool:
    """Whether the set has to be downloaded and prepared first, which takes TensorFlow."""
    return find(parse(request)[0], request.dir) is None


def prepare(request: Request, file_format: str = '') -> str:
    """Downloads and prepares the set, unless it is prepared; returns a line on the files.

    Raises:
      ValueError: it cannot be prepared, or is prepared in another format than the one that is asked for, if any.
    """
    base, _ = parse(request)
    prepared = _prepared(base, request, file_format or 'tfrecord')
    if file_format not in ('', prepared.file_format):
        raise ValueError(
            f'{base} is prepared as {prepared.file_format} in {prepared.path}, which can be streamed too; for '
            f'{file_format}, give another folder by --dir, or use "tfds convert_format"'
        )
    size = sum(file.stat().st_size for file in prepared.path.rglob('*') if file.is_file())
    return f'{prepared.path}: {size / 1e6:,.1f} MB as {prepared.file_format}'


def _prepared(name: str, request: Request, file_format: str = 'tfrecord') -> Prepared:
    prepared = find(name, request.dir)
    if prepared is None and request.checking and importlib.util.find_spec('tensorflow') is not None:
        raise missing(name, data_dir(request.dir), 'a check downloads nothing')
    if prepared is None:
        _preparing.prepare(name, request.dir, file_format)
        prepared = find(name, request.dir)
    if prepared is None:
        raise missing(name, data_dir(request.dir), 'TFDS left nothing behind')
    return prepared


def _made_from(prepared: Prepared, request: Request) -> dict[str, Any]:
    """{'content': a digest of the files of each split, and of those that describe them}, for the cache."""
    described = [path for path in sorted(prepared.path.iterdir()) if path.suffix in ('.json', '.txt')]
    groups = {'description': described} | {split: list(files) for split, files in prepared.shards.items()}
    names = [file.relative_to(prepared.path).as_posix() for files in groups.values() for file in files]
    digests = iter(_cache.digests(prepared.name, prepared.path, names, request.cache))
    content = {group: np.array([next(digests) for _ in files]) for group, files in groups.items()}
    return {'files': names, 'content': {group: _cache.combined(digest) for group, digest in content.items()}}


def _memory(prepared: Prepared, size: int | None) -> int:
    """Bytes of all images of `size` pixels, or of their own size; where that varies, the bytes of the files."""
    splits = _split_names(prepared)
    height, width = prepared.image_shape[:2] if size is None else (size, size)
    if height is None or width is None:
        return sum(file.stat().st_size for split in splits for file in prepared.shards[split])
    return sum(prepared.count(split) for split in splits) * height * width * 3


def _split_names(prepared: Prepared) -> list[str]:
    """'train' and the splits that can be evaluated on."""
    names = [split for split in ('train', 'test', 'validation') if split in prepared.shards]
    if names[:1] != ['train'] or len(names) < 2:
        raise ValueError(
            f'{prepared.name} has the splits {", ".join(sorted(prepared.shards))}; needed are train '
            'and test or validation'
        )
    return names


def _read(
    prepared: Prepared, size: int | None, share: float, keep: bool, measured: bool
) -> tuple[_cache.Arrays, dict[str, Any]]:
    """What `_encoded.dataset` makes its data set from, in the order of this module.

    Without `keep` it has, instead of the images, the number of each point's record, and the place of every record.
    """
    name, (_, *tests) = prepared.name, _split_names(prepared)
    # Without published constants, the pixels of streamed sets are decoded once, to measure them.
    arrays, train = _read_split(prepared, 'train', 'train', size, 1.0, keep, keep or measured)
    for split in tests:
        part, test = _read_split(prepared, split, 'test', size, share, keep, keep)
        if (part['test_labels'] >= 0).all():
            break
    else:
        raise ValueError(f'{name} has no split with labels to evaluate on (looked at {", ".join(tests)})')
    if train.shape != test.shape:
        raise ValueError(f'{name} has images of {train.shape} in train and {test.shape} in {split}; one is needed')
    return arrays | part, {
        'normalization': train.counts.normalization() if keep or measured else None,
        'range': {'train': train.counts.range(), 'test': test.counts.range()} if keep else {},
        'shape': train.shape,
        'splits': {'train': 'train', 'test': split},
    }


def _read_split(
    prepared: Prepared, split: str, part: str, size: int | None, share: float, keep: bool, look: bool
) -> tuple[_cache.Arrays, _encoded.Gathered]:
    """{'PART_labels', ...} of a split; with `look` every image is decoded, otherwise only as many as tell the size."""
    number, ids = prepared.count(split), []
    images = _encoded.Gathered(prepared.name, number, keep)
    labels, offsets = np.empty(number, np.int32), np.empty(number, np.int64)
    box = functools.partial(_pictures.middle_box, share=share)
    look = look or (size is None and None in prepared.image_shape[:2])
    found = progress(_records_of(prepared, split), number, f'{prepared.name} {split}')
    for point, (file, offset, record) in enumerate(found):
        image = None
        try:
            features = _features(record)
            if look or point == 0:
                image = _pictures.read(features[prepared.image].bytes_list.value[0], size, box)
            labels[point], offsets[point] = features[prepared.label].int64_list.value[0], offset
            if 'id' in features:
                ids.extend(features['id'].bytes_list.value[:1])
        except Exception as error:  # protobuf and Pillow raise many kinds
            raise ValueError(
                f'{file}: record {point} of {split} is not an image with a label '
                f'({_pictures.reason(error.__cause__ or error)}); {prepared.remedy()}'
            ) from error
        if image is not None:
            images.add(image, f'record {point} of {split} of {prepared.name}')
    if not number:
        raise ValueError(f'{prepared.name} has no points in {split}; {prepared.remedy()}')
    worst = int(labels.max())
    if worst >= len(prepared.class_names):
        raise ValueError(f'{prepared.name} has the label {worst} in {split}, but {len(prepared.class_names)} classes')
    arrays = {'labels': labels} | ({'images': images.images()} if keep else {'numbers': np.arange(number)})
    if len(set(ids)) == number:
        order = sorted(range(number), key=lambda i: _natural(ids[i]))
        arrays = {key: value[order] for key, value in arrays.items()}
        arrays['ids'] = np.array([ids[i] for i in order]).astype(str)
    if not keep:
        arrays['offsets'] = offsets
    return {f'{part}_{key}': value for key, value in arrays.items()}, images


def _records_of(prepared: Prepared, split: str) -> Iterator[tuple[Any, int, memoryview | bytes]]:
    """(file, offset in it if it is a tfrecord, record) of each point, as they lie on disk."""
    for file in prepared.shards[split]:
        offset = 0
        for record in prepared.records(split, file):
            yield file, offset, record
            offset += len(record) + _records.FRAME


def _natural(name: bytes) -> list[tuple[int, int, bytes]]:
    """A sort key that puts b'train_9' before b'train_10'."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in re.split(rb'(\d+)', name) if p]
