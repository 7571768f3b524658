"""Provenance of a result: commit, versions, device and command line."""

from __future__ import annotations

import functools
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

PACKAGES = 'kcd_jax jax jaxlib flax optax numpy pillow simplejpeg cykooz-resizer'.split()
# Flags whose values are specific to one machine.
_PLACES = ('--workdir', '--results', '--config.data.dir', '--coordinator', '--process')


def describe() -> dict[str, Any]:
    """Describes the program and the machine.

    Returns:
      {'commit', 'python', 'versions', 'precision', 'device': {'kind', 'backend', 'count', 'processes'}}. 'precision' is
      that of float32 matrix products; 'default' is TF32 on GPUs that support it and float32 on CPUs.
    """
    devices = jax.devices()
    return {
        'commit': commit(),
        'python': platform.python_version(),
        'versions': dict(_versions()),
        'precision': jax.config.jax_default_matmul_precision or 'default',
        'device': {
            'kind': devices[0].device_kind,
            'backend': jax.default_backend(),
            'count': len(devices),
            'processes': jax.process_count(),
        },
    }


def command(argv: Sequence[str]) -> str:
    """The command line without paths and addresses of this machine.

    >>> command(['/home/me/kcd_jax/main.py', '--config=configs/digits_kd.py:policy=kcd', '--workdir=/tmp/run'])
    'python -m kcd_jax.main --config=configs/digits_kd.py:policy=kcd'
    """
    program = pathlib.Path(argv[0])
    if program.parts[-2:] == ('kcd_jax', 'main.py'):
        start = ['python', '-m', 'kcd_jax.main']
    elif program.parts[-2:] == ('kcd_jax', '__main__.py'):
        start = ['python', '-m', 'kcd_jax']
    else:
        start = [program.name]
    return shlex.join([*start, *(word for word in argv[1:] if not word.startswith(_PLACES))])


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that holds the package, with '-dirty' appended when tracked files differ."""
    folder = pathlib.Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        call = ['git', '-C', str(folder), *args]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != folder:
            return None  # installed inside the checkout of another project
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
