"""Small prepared TFDS data sets, written without TensorFlow: TFDS's own features and tensorboardX's record writer."""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX import record_writer


def png(image: np.ndarray) -> io.BytesIO:
    """u8[H, W] or u8[H, W, 3] as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, 'PNG')
    stream.seek(0)
    return stream


def points(number: int, seed: int, shape: tuple[int, ...] = (8, 8, 3)) -> tuple[np.ndarray, np.ndarray]:
    """u8[number, *shape] and labels of 3 classes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (number, *shape), dtype=np.uint8), random.integers(0, 3, number).astype(np.int32)


def write(
    root: pathlib.Path,
    *,
    name: str = 'toy',
    shards: tuple[int, ...] = (5, 7),
    file_format: str = 'tfrecord',
    ids: bool = True,
    test: str = 'test',
    shape: tuple[int, ...] = (8, 8, 3),
    hide_test_labels: bool = False,
) -> pathlib.Path:
    """A set of sum(shards) training points and 4 test points; point 11 comes first on disk, point 0 last.

    Returns the folder of its version.
    """
    folder = root / name / '1.0.0'
    folder.mkdir(parents=True)
    keys = {
        'image': tfds.features.Image(shape=(*shape[:2], shape[2] if len(shape) == 3 else 1)),
        'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
    }
    features = tfds.features.FeaturesDict(keys | ({'id': tfds.features.Text()} if ids else {}))
    features.save_config(folder)
    splits = []
    for split, lengths, seed in (('train', shards, 0), (test, (4,), 1)):
        images, labels = points(sum(lengths), seed, shape)
        order = iter(reversed(range(sum(lengths))))
        for number, length in enumerate(lengths):
            file = folder / f'{name}-{split}.{file_format}-{number:05d}-of-{len(lengths):05d}'
            examples = []
            for point in (next(order) for _ in range(length)):
                label = -1 if hide_test_labels and split == 'test' else int(labels[point])
                example = {'image': png(images[point].squeeze()), 'label': label}
                if ids:
                    example['id'] = f'{split}_{point}'
                examples.append(features.serialize_example(example))
            write_records(file, examples, file_format)
        splits.append(
            {
                'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
                'name': split,
                'numBytes': '1',
                'shardLengths': [str(n) for n in lengths],
            }
        )
    keys = {'tuple': {'items': [{'featureKey': 'image'}, {'featureKey': 'label'}]}}
    info = {'name': name, 'version': '1.0.0', 'fileFormat': file_format, 'splits': splits, 'supervisedKeys': keys}
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    return folder


def write_records(file: pathlib.Path, examples: list[bytes], file_format: str = 'tfrecord') -> None:
    """A record file by a writer that is not ours."""
    if file_format == 'tfrecord':
        writer = record_writer.RecordWriter(str(file))
        for example in examples:
            writer.write(example)
        writer.close()
    else:
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
        for example in examples:
            writer.write(example)
        writer.close()
