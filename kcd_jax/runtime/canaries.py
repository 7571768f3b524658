"""Tiny programs with known answers: they find a jaxlib that computes wrong values on this machine.

Some released versions miscompile, silently. `check` refuses those that are known by name, runs one small program per
kind of computation that a training needs, and compares each with NumPy. All inputs are small whole numbers, which
every precision of a matrix product represents exactly, so a difference is a wrong program and not rounding.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from kcd_jax.runtime import files

REMEDY = 'install jax and jaxlib 0.10.1 (Python 3.11) or 0.11.2 (Python 3.12 and later)'
# {version: (backends, or () for all; what is wrong)}
KNOWN_BAD = {
    '0.10.2': (('cpu',), 'computes wrong values on CPUs (jax#39103)'),
    '0.11.0': ((), 'hangs or crashes in fused programs (jax#39257, jax#40412) and faults on GPUs (jax#40633)'),
    '0.11.1': (('gpu', 'cuda', 'rocm'), 'faults on GPUs (jax#40633)'),
}


def matrix_product_by_row() -> tuple[np.ndarray, np.ndarray]:
    """jax#39103: the last of 32,769 rows was computed from another row."""
    rows = np.zeros((32769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows)) % 251
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return np.asarray(found), rows[:, 0] ** 2


def grouped_convolution() -> tuple[np.ndarray, np.ndarray]:
    """Depthwise, 3 x 3, stride 2, padded: a kernel for each channel."""
    images, kernel = _integers((2, 9, 9, 8)), _integers((3, 3, 1, 8))

    @jax.jit
    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout, feature_group_count=8
        )

    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.zeros((2, 5, 5, 8), np.float32)
    for row in range(3):
        for column in range(3):
            wanted += padded[:, row : row + 9 : 2, column : column + 9 : 2] * kernel[row, column, 0]
    return np.asarray(convolve(images, kernel)), wanted


def scatter_with_duplicates() -> tuple[np.ndarray, np.ndarray]:
    """Adds to rows of a table, some of them several times, and drops what lies behind its end."""
    index, values = np.arange(1000, dtype=np.int32) * 7 % 130, _integers((1000,))
    found = jax.jit(lambda index, values: jnp.zeros(128).at[index].add(values, mode='drop'))(index, values)
    return np.asarray(found), np.bincount(index, values, 130)[:128].astype(np.float32)


def sort_with_ties() -> tuple[np.ndarray, np.ndarray]:
    """Sorts by value and then by index, which no tie may change."""
    values = _integers((5000,))

    @jax.jit
    def order(values: jax.Array) -> jax.Array:
        return jax.lax.sort((values, jnp.arange(len(values))), num_keys=2)[1]

    return np.asarray(order(values)), np.argsort(values, kind='stable')


def large_sums() -> tuple[np.ndarray, np.ndarray]:
    """The sum and the sum of squares of 4,096 rows per channel, as BatchNorm takes them."""
    rows = _integers((4096, 16))
    found = jax.jit(lambda rows: jnp.stack([rows.sum(0), (rows * rows).sum(0)]))(rows)
    return np.asarray(found), np.stack([rows.sum(0), (rows * rows).sum(0)])


PROGRAMS = (matrix_product_by_row, grouped_convolution, scatter_with_duplicates, sort_with_ties, large_sums)


def _integers(shape: tuple[int, ...]) -> np.ndarray:
    """Small whole numbers as float32, the same in every call."""
    return np.random.RandomState(0).randint(-4, 5, shape).astype(np.float32)


def failures(programs: tuple[Callable[[], tuple[np.ndarray, np.ndarray]], ...] = PROGRAMS) -> list[str]:
    """Runs every program on the first device of this process.

    Args:
      programs: functions that return (what the device computed, the right answer).

    Returns:
      One phrase for each program whose answer is wrong: its name, what was found and what is right.
    """
    wrong = []
    with jax.default_device(jax.local_devices()[0]):
        for program in programs:
            found, wanted = program()
            differing = np.flatnonzero(found.ravel() != wanted.ravel()) if found.shape == wanted.shape else [0]
            if len(differing):
                first = differing[0]
                wrong.append(
                    f'{program.__name__.replace("_", " ")} gives {found.ravel()[first]:.9g} instead of '
                    f'{wanted.ravel()[first]:.9g}'
                )
    return wrong


def check() -> None:
    """Refuses a jaxlib that is known, or found, to compute wrong values on this machine.

    The programs run once per machine, version, backend and XLA_FLAGS; that they passed is remembered in the cache
    folder. With several processes each checks its own machine.

    Raises:
      ValueError: one line: what is wrong, in which jaxlib, and what to install.
    """
    version, backend = jaxlib.__version__, jax.default_backend()
    backends, reason = KNOWN_BAD.get(version, ((), ''))
    if reason and (not backends or backend in backends):
        raise ValueError(f'jaxlib {version} {reason}; {REMEDY}')
    passed = _record(version, backend)
    if passed.exists():
        return
    if wrong := failures():
        raise ValueError(f'jaxlib {version} computes wrong values on this {backend}: {"; ".join(wrong)}; {REMEDY}')
    try:
        files.write_text(passed, '\n'.join(program.__name__ for program in PROGRAMS) + '\n')
    except OSError:
        return  # a cache that cannot be written: the next start checks again


def _record(version: str, backend: str) -> pathlib.Path:
    """The file whose existence says that the programs passed here."""
    kind = jax.local_devices()[0].device_kind
    machine = (platform.node(), platform.machine(), backend, kind, os.environ.get('XLA_FLAGS', ''))
    source = pathlib.Path(__file__).read_bytes()
    digest = hashlib.sha256('\0'.join(machine).encode() + source).hexdigest()[:16]
    return files.cache_folder() / 'canaries' / f'jaxlib-{version}-{backend}-{digest}'
