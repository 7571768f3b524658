"""What holds for every test: the CPU, four devices, strict dtypes and ranks, no caches outside the test's folders."""

from __future__ import annotations

import collections
import gc
import os
import pathlib
import tempfile
from collections.abc import Iterator

# Before anything imports jax or TFDS; subprocesses inherit these.
os.environ['JAX_PLATFORMS'] = 'cpu'
_SCRATCH = tempfile.TemporaryDirectory(prefix='kcd_jax_tests_')
for _variable in ('TFDS_DATA_DIR', 'XDG_CACHE_HOME', 'KCD_JAX_CACHE'):
    os.environ[_variable] = str(pathlib.Path(_SCRATCH.name, _variable.lower()))
os.environ['KCD_JAX_TEACHERS'] = 'off'  # each test trains its own
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # reading a cached program logs errors about the machine's features
os.environ['MPLBACKEND'] = 'agg'

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Compilation and a shared machine make the first example slow; the examples are the same in every run.
hypothesis.settings.register_profile('kcd_jax', deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile('kcd_jax')


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are kept beside pytest's own cache: a second run of the suite compiles little."""
    cache = getattr(config, 'cache', None)  # absent with -p no:cacheprovider
    folder = pathlib.Path(_SCRATCH.name, 'jax') if cache is None else cache.mkdir('jax')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long file that starts last would run alone."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker('slow'))
    items.sort(key=lambda item: -slow[item.path])


def pytest_unconfigure() -> None:
    """Removes the scratch folder."""
    _SCRATCH.cleanup()


@pytest.fixture(scope='module', autouse=True)
def programs_of_a_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled programs live as long as the file that needs them: all of the suite's take gigabytes.

    A file with the mark `fast_compile` is about what a run does, not about its numbers. Its programs, and those of the
    processes it starts, compile in half the time.
    """
    fast = request.node.get_closest_marker('fast_compile') is not None
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = str(int(fast))
    jax.config.update('jax_disable_most_optimizations', fast)
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks 'tiny' and 'tiny_teacher' (tests/tiny), known by their names as a user's own file would be."""
    from kcd_jax import networks

    folder = str(pathlib.Path(__file__).parent / 'tiny')
    monkeypatch.setattr(networks, '__path__', [*networks.__path__, folder])


@pytest.fixture(scope='session')
def golden():
    """golden('kcd')['stage0/count']: the arrays of tests/golden/kcd.npz."""
    return lambda name: np.load(pathlib.Path(__file__).parent / 'golden' / f'{name}.npz')
