"""`python -m tests.tiny.program FLAGS`: kcd_jax.main with the tests' tiny networks."""

from __future__ import annotations

import pathlib
import sys

import kcd_jax.__main__ as program  # comes first: it sets the environment before JAX is imported
from kcd_jax import networks

if __name__ == '__main__':
    networks.__path__.append(str(pathlib.Path(__file__).parent))
    sys.exit(program.main(['train', *sys.argv[1:]]))
