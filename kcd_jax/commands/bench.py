"""`python -m kcd_jax bench`: the benchmarks of the repository; `python -m kcd_jax bench --help` lists the flags."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Sequence

import kcd_jax

ROOT = pathlib.Path(kcd_jax.__file__).parent.parent


def main(argv: Sequence[str]) -> int:
    """Runs `benchmarks` with these flags; returns the exit code, 2 where the repository is missing."""
    path = ROOT / 'benchmarks' / '__main__.py'
    if not path.exists():
        print(
            'error: the benchmarks are not part of the installed package; clone the repository and install it with '
            "pip install -e '.'",
            file=sys.stderr,
        )
        return 2
    if importlib.util.find_spec('benchmarks') is None:
        sys.path.insert(0, str(ROOT))
    from benchmarks import __main__ as benchmarks

    return benchmarks.main(argv)
