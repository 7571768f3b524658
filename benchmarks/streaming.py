"""Streaming: images per second of photographs of 500 x 375 at 224 pixels; whether training steps wait for images."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.results import Row
from benchmarks.timed_run import BATCH, in_own_process, timed_run
from kcd_jax import data
from kcd_jax.contracts import full_plan, table_rows
from kcd_jax.data import stream
from kcd_jax.runtime import sharding
from kcd_jax.training import feed
from tests.data import photographs

SIZE = 224
PAIR = 'resnet20-resnet8'

# As tf.data's guide for image classification does it: read, decode the cropped part, resize, batch, prefetch.
TF_DATA = """
import sys, time
import tensorflow as tf
root, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def crop(path):
    content = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(content)
    box = tf.zeros((1, 0, 4))
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        shape, box, aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True)
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
    return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)
paths = tf.data.Dataset.list_files(root + '/train/*/*.jpg')
images = paths.map(crop, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True).prefetch(2)
for warm in (False, True):
    start = time.perf_counter()
    count = sum(x.shape[0] for x in images)
print(count / (time.perf_counter() - start))
"""


def reading_rates(num_images: int, repeats: int, scratch: pathlib.Path) -> dict[str, float]:
    """Images per second: medians of epochs over JPEG files, taken in turn after an untimed one of each.

    Args:
      num_images: files.
      repeats: timed epochs of each.
      scratch: where the files are written.

    Returns:
      'ours': decoded, cropped at random, batched and put on the devices. 'crops': the same crops by as many threads and
      nothing else. 'pillow': the whole files decoded by Pillow. 'tf_data': a plain tf.data program, where TensorFlow is
      installed.
    """
    root = photographs.folder(scratch / 'photographs', train=num_images, test=2, classes=8)
    loading = data.Loading(stream=True, area=(0.08, 1.0))
    split = data.load(f'folder:{SIZE}', root, cache=scratch / 'cache', loading=loading).train
    files = [str(root / name) for name in split.ids]
    mesh, plan, rows = sharding.make_mesh(), full_plan(num_images), table_rows(num_images)
    order = jnp.asarray(np.random.default_rng(0).permutation(rows).astype(np.int32) % num_images)
    steps = num_images // BATCH

    def streamed() -> float:
        source = feed.Streamed(split, np.zeros(rows, np.int32), BATCH, mesh, seed=0, workers=0, mixes=True)
        start = time.perf_counter()
        for _, raw in source.epoch(order, plan, 0, 0, steps):
            jax.block_until_ready(raw.image)
        return steps * BATCH / (time.perf_counter() - start)

    def threads(function: Callable[[int], Any]) -> float:
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(stream.threads()) as pool:
            count = sum(1 for _ in pool.map(lambda point: function(point) is None, range(num_images)))
        return count / (time.perf_counter() - start)

    functions: dict[str, Callable[[], float]] = {
        'ours': streamed,
        'crops': lambda: threads(lambda point: split.images.training(point, 0, 0)),
        'pillow': lambda: threads(lambda point: photographs.by_pillow(files[point])),
    }
    if importlib.util.find_spec('tensorflow') is not None:
        functions['tf_data'] = lambda: float(in_own_process('-c', TF_DATA, str(root), str(SIZE), str(BATCH)))
    epochs = [{name: function() for name, function in functions.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(epoch[name] for epoch in epochs[1:]) for name in functions}


def step_ms(num_steps: int, repeats: int) -> dict[str, float]:
    """{'resident', 'streamed'}: milliseconds per training step on 32 x 32 pixels, on the devices or read by index."""
    times: dict[str, list[float]] = {'resident': [], 'streamed': []}
    runs = {name: timed_run(PAIR, num_steps * BATCH, streamed=name == 'streamed') for name in times}
    for number in range(repeats + 1):
        for name, run in runs.items():
            took = timing.seconds(lambda run=run: run.epoch(num_steps * BATCH))
            times[name] += [1e3 * took / num_steps] if number else []
    return {name: statistics.median(values) for name, values in times.items()}


def streaming(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Photographs from files against tf.data; steps of streamed points against those of resident ones."""
    rates = reading_rates(128 if quick else 512, 1 if quick else 5, scratch)
    measured = f'{rates["ours"]:.0f} images/s; its crops alone {rates["crops"]:.0f}; Pillow alone {rates["pillow"]:.0f}'
    met = None
    if 'tf_data' in rates:
        measured += f'; tf.data {rates["tf_data"]:.0f}'
        met = rates['ours'] >= 0.9 * rates['tf_data']
    yield Row(f'photographs of 500 x 375, streamed at {SIZE}', measured, "0.9 of tf.data's", met, rates)
    ms = step_ms(10 if quick else 60, 1 if quick else 5)
    yield Row(
        f'step of points streamed from memory, {PAIR}',
        f'{ms["streamed"]:.0f} ms; resident {ms["resident"]:.0f}',
        'within 5 % of resident',
        ms['streamed'] <= 1.05 * ms['resident'],
        ms,
    )
