"""Small programs with known results, which detect a jaxlib that computes wrong values on this machine.

Some releases miscompile silently. `check` refuses known bad releases, then runs one small program per kind of
computation in training and compares it with NumPy. All inputs are small integers, which every matrix product precision
represents exactly, so a difference is a miscompilation and not rounding.
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

from kcd_jax import paths
from kcd_jax.runtime import files

REMEDY = 'install jax and jaxlib 0.10.1 (Python 3.11) or 0.11.2 (Python 3.12 and later)'
# {version: (backends, or () for all; what is wrong)}
KNOWN_BAD = {
    '0.10.2': (('cpu',), 'computes wrong values on CPUs (jax#39103)'),
    '0.11.0': ((), 'hangs or crashes in fused programs (jax#39257, jax#40412) and faults on GPUs (jax#40633)'),
    '0.11.1': (('gpu', 'cuda', 'rocm'), 'faults on GPUs (jax#40633)'),
}


def matrix_product_by_row() -> tuple[np.ndarray, np.ndarray]:
    """jax#39103: the last of 32,769 rows is computed from another row."""
    rows = np.zeros((32769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows)) % 251
    found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return np.asarray(found), rows[:, 0] ** 2


def grouped_convolution() -> tuple[np.ndarray, np.ndarray]:
    """A padded depthwise 3 x 3 convolution of stride 2."""
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
    """Adds to rows of a table, some repeatedly, and drops indices beyond its end."""
    index, values = np.arange(1000, dtype=np.int32) * 7 % 130, _integers((1000,))
    found = jax.jit(lambda index, values: jnp.zeros(128).at[index].add(values, mode='drop'))(index, values)
    return np.asarray(found), np.bincount(index, values, 130)[:128].astype(np.float32)


def sort_with_ties() -> tuple[np.ndarray, np.ndarray]:
    """Sorts by value, then by index."""
    values = _integers((5000,))

    @jax.jit
    def order(values: jax.Array) -> jax.Array:
        return jax.lax.sort((values, jnp.arange(len(values))), num_keys=2)[1]

    return np.asarray(order(values)), np.argsort(values, kind='stable')


def large_sums() -> tuple[np.ndarray, np.ndarray]:
    """The sum and the sum of squares of 4,096 rows per channel, as in BatchNorm."""
    rows = _integers((4096, 16))
    found = jax.jit(lambda rows: jnp.stack([rows.sum(0), (rows * rows).sum(0)]))(rows)
    return np.asarray(found), np.stack([rows.sum(0), (rows * rows).sum(0)])


PROGRAMS = (matrix_product_by_row, grouped_convolution, scatter_with_duplicates, sort_with_ties, large_sums)


def _integers(shape: tuple[int, ...]) -> np.ndarray:
    """Small integers as float32, the same in every call."""
    return np.random.RandomState(0).randint(-4, 5, shape).astype(np.float32)


def failures(programs: tuple[Callable[[], tuple[np.ndarray, np.ndarray]], ...] = PROGRAMS) -> list[str]:
    """Runs every program on the first device of this process.

    Args:
      programs: functions that return (the device's result, the expected result).

    Returns:
      One phrase per program with a wrong result: its name, the result and the expected value.
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
    """Refuses a jaxlib that is known or found to compute wrong values on this machine.

    The programs run once per machine, version, backend and XLA_FLAGS; a pass is recorded in the cache folder. With
    several processes, each checks its own machine.

    Raises:
      ValueError: what is wrong, in which jaxlib, and what to install.
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
        return  # without a writable cache, the next start checks again


def _record(version: str, backend: str) -> pathlib.Path:
    """The file that records a pass on this machine."""
    kind = jax.local_devices()[0].device_kind
    machine = (platform.node(), platform.machine(), backend, kind, os.environ.get('XLA_FLAGS', ''))
    source = pathlib.Path(__file__).read_bytes()
    digest = hashlib.sha256('\0'.join(machine).encode() + source).hexdigest()[:16]
    return paths.cache_folder() / 'canaries' / f'jaxlib-{version}-{backend}-{digest}'
