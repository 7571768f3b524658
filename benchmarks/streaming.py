"""Reading photographs of 500 x 375 pixels at 224, beside tf.data and the decoders; whether steps wait for points."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.own import own_run
from kcd_jax import data
from kcd_jax.contracts import full_plan, table_rows
from kcd_jax.data import _pictures as pictures
from kcd_jax.data import stream
from kcd_jax.runtime import sharding
from kcd_jax.training import feed
from tests.data import photographs

SIZE, BATCH = 224, 64

# As its guide for image classification has it: read, decode the part that is cropped, resize, batch, prefetch.
TF_DATA = """
import json, sys, time
import tensorflow as tf
files, size, batch = json.loads(sys.stdin.readline())
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
for line in sys.stdin:
    start, work, count = time.perf_counter(), time.process_time(), 0
    for one in pipelines[line.strip()]:
        count += one.shape[0]
    print(json.dumps([count, time.perf_counter() - start, time.process_time() - work]), flush=True)
"""


class Took(NamedTuple):
    """What reading took: images, seconds, and seconds that its threads computed; of workers, until the first batch."""

    images: int
    seconds: float
    computed: float


class TensorFlow:
    """`TF_DATA` in a process of its own, which waits between its epochs."""

    def __init__(self, files: list[str]):
        self.program = subprocess.Popen(
            [sys.executable, '-c', TF_DATA],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._write(json.dumps([files, SIZE, BATCH]))

    def _write(self, line: str) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(line + '\n')
        self.program.stdin.flush()

    def read(self, name: str) -> Took:
        """One epoch of a pipeline.

        Raises:
          ValueError: TensorFlow failed.
        """
        assert self.program.stdout is not None
        self._write(name)
        line = self.program.stdout.readline()
        if not line:
            raise ValueError('TensorFlow did not read the photographs; is it whole?')
        return Took(*json.loads(line))

    def close(self) -> None:
        assert self.program.stdin is not None
        self.program.stdin.close()
        self.program.wait()


def measure(number: int, repeats: int, scratch: pathlib.Path) -> dict[str, float]:
    """Images a second: medians of `repeats` epochs over `number` files, in turn, after one of each that warms up.

    'ours': decoded, cropped at random, in order, in batches on the devices; 'workers': the same by two processes, once
    they have given the first batch after 'workers_start_s'.
    'bound': the same crops by as many threads, and nothing else. 'decode': the files decoded whole, and nothing else;
    'pillow': by Pillow. 'tf_data', 'tf_decode': a plain tf.data program, and its decoder, where TensorFlow is. With
    'NAME_ms', the milliseconds of computing that an image takes, of all but 'workers'.
    """
    root = photographs.folder(scratch / 'photographs', train=number, test=2, classes=8)
    loading = data.Loading(stream=True, area=(0.08, 1.0))
    split = data.load(f'folder:{SIZE}', root, cache=scratch / 'cache', loading=loading).train
    files = [str(root / name) for name in split.ids]
    mesh, plan = sharding.make_mesh(), full_plan(number)
    order = jnp.asarray(np.random.default_rng(0).permutation(table_rows(number)).astype(np.int32) % number)
    steps = number // BATCH

    def ours(workers: int, passes: int = 1) -> Took:
        labels = np.zeros(table_rows(number), np.int32)
        source = feed.Streamed(split, labels, BATCH, mesh, seed=0, workers=workers, mixes=True)
        start, work, first = time.perf_counter(), time.process_time(), 0.0
        for _, raw in source.epoch(jnp.tile(order, passes), plan, 0, 0, passes * steps):
            jax.block_until_ready(raw.image)
            first = first or time.perf_counter() - start
        seconds = time.perf_counter() - start - (first if workers else 0.0)
        return Took(passes * steps * BATCH, seconds, first if workers else time.process_time() - work)

    def each(function: Callable[[int], Any]) -> Took:
        start, work = time.perf_counter(), time.process_time()
        with concurrent.futures.ThreadPoolExecutor(stream.threads()) as pool:
            images = sum(1 for _ in pool.map(lambda point: function(point) is None, range(number)))
        return Took(images, time.perf_counter() - start, time.process_time() - work)

    functions: dict[str, Callable[[], Took]] = {
        'ours': lambda: ours(0),
        'workers': lambda: ours(2, passes=4),
        'bound': lambda: each(lambda point: split.images.training(point, 0, 0)),
        'decode': lambda: each(lambda point: pictures.read(files[point], None)),
        'pillow': lambda: each(lambda point: photographs.by_pillow(files[point])),
    }
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec('tensorflow') is not None:
            other = stack.enter_context(contextlib.closing(TensorFlow(files)))
            functions |= {name: functools.partial(other.read, name) for name in ('tf_data', 'tf_decode')}
        found: dict[str, list[Took]] = {name: [] for name in functions}
        for _ in range(repeats + 1):
            for name, function in functions.items():
                found[name].append(function())
    figures = {}
    for name, epochs in found.items():
        figures[name] = statistics.median(took.images / took.seconds for took in epochs[1:])
        if name == 'workers':
            figures['workers_start_s'] = statistics.median(took.computed for took in epochs[1:])
        else:
            figures[f'{name}_ms'] = statistics.median(1e3 * took.computed / took.images for took in epochs[1:])
    return figures


def waiting(pair: str, num_steps: int, repeats: int, scratch: pathlib.Path) -> dict[str, float]:
    """Milliseconds a step of training on 32 x 32 pixels, medians of `repeats` epochs in turn.

    'resident': of points on the devices; 'streamed': of the same, read from memory by index. 'waited': of a streamed
    step, until the host was given a batch, but for the first of an epoch; the devices compute meanwhile.
    """
    batch, words = 64, f'{pair},method=kd,policy=none'
    times: dict[str, list[float]] = {'resident': [], 'streamed': [], 'waited': []}
    with contextlib.ExitStack() as stack:
        resident, streamed = (
            stack.enter_context(own_run(f'{words}{more}', num_steps * batch, scratch)) for more in ('', ',stream=true')
        )
        waits: list[float] = []
        supplied = streamed.loop.feed.epoch

        def timed(*arguments: Any) -> Iterator[Any]:
            supplies = supplied(*arguments)
            with contextlib.closing(supplies):
                while True:
                    start = time.perf_counter()
                    try:
                        supply = next(supplies)
                    except StopIteration:
                        return
                    waits.append(time.perf_counter() - start)
                    yield supply

        streamed.loop.feed.epoch = timed
        for number in range(repeats + 1):
            for name, run in (('resident', resident), ('streamed', streamed)):
                waits.clear()
                took = timing.seconds(lambda run=run: run.epoch(num_steps * batch))
                if number:
                    times[name].append(1e3 * took / num_steps)
                    times['waited'] += [1e3 * statistics.mean(waits[1:])] if waits else []
    return {name: statistics.median(values) for name, values in times.items()}
