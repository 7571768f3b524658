"""Reading photographs of 500 x 375 pixels at 224: ours, a plain tf.data program, and the decoders by themselves."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import data, feed, sharding
from kcd_jax.data import made_up, pictures, stream
from kcd_jax.spec import full_plan, table_rows

SIZE, BATCH = 224, 64

# As its guide for image classification has it: read, decode the part that is cropped, resize, batch, prefetch.
TF_DATA = """
import json, sys, time
import tensorflow as tf
files, size, batch, repeats = json.load(sys.stdin)
def crop(path):
    content = tf.io.read_file(path)
    shape = tf.image.extract_jpeg_shape(content)
    box = tf.zeros((1, 0, 4))
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        shape, box, aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True)
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
    return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)
def decode(path):
    return tf.image.decode_jpeg(tf.io.read_file(path), channels=3)[0, 0]
paths = tf.data.Dataset.from_tensor_slices(files)
pipelines = {
    'tf_data': paths.map(crop, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True).prefetch(2),
    'tf_decode': paths.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(batch, drop_remainder=True).prefetch(2),
}
found = {name: [] for name in pipelines}
for _ in range(repeats + 1):
    for name, pipeline in pipelines.items():
        start, count = time.perf_counter(), 0
        for one in pipeline:
            count += one.shape[0]
        found[name].append(count / (time.perf_counter() - start))
print(json.dumps({name: rates[1:] for name, rates in found.items()}))
"""


def measure(number: int, repeats: int, scratch: pathlib.Path) -> dict[str, float]:
    """Images a second, medians of `repeats` epochs over `number` files, after one that warms up.

    'ours': decoded, cropped at random, in order, in batches on the devices; 'pillow': the same files decoded and
    nothing else, by as many threads; 'tf_data', 'tf_decode': the same two of TensorFlow, where there is one.
    """
    root = made_up.folder(scratch / 'photographs', train=number, test=2, classes=8)
    loading = data.Loading(stream=True, area=(0.08, 1.0))
    split = data.load(f'folder:{SIZE}', root, cache=scratch / 'cache', loading=loading).train
    files = [str(root / name) for name in split.ids]
    mesh, plan = sharding.make_mesh(), full_plan(number)
    source = feed.Streamed(split, np.zeros(table_rows(number), np.int32), BATCH, mesh, seed=0, workers=0, mixes=True)
    order = jnp.asarray(np.random.default_rng(0).permutation(table_rows(number)).astype(np.int32) % number)
    steps = number // BATCH

    def ours() -> int:
        for _, raw in source.epoch(order, plan, 0, 0, steps):
            jax.block_until_ready(raw.image)
        return steps * BATCH

    def pillow() -> int:
        with concurrent.futures.ThreadPoolExecutor(stream.threads()) as pool:
            return sum(1 for _ in pool.map(lambda file: pictures.read(file, None).shape, files))

    rates = {'ours': _rates(ours, repeats), 'pillow': _rates(pillow, repeats)}
    if importlib.util.find_spec('tensorflow') is not None:
        text = json.dumps([files, SIZE, BATCH, repeats])
        program = subprocess.run([sys.executable, '-c', TF_DATA], input=text, capture_output=True, text=True)
        if program.returncode:
            raise ValueError(f'TensorFlow did not read the photographs: {program.stderr.strip().splitlines()[-1]}')
        rates |= json.loads(program.stdout.splitlines()[-1])
    return {name: statistics.median(values) for name, values in rates.items()}


def _rates(function: Callable[[], int], repeats: int) -> list[float]:
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        count = function()
        rates.append(count / (time.perf_counter() - start))
    return rates[1:]
