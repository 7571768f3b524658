"""`python -m tests.tiny.program FLAGS`: kcd_jax.main with the tests' tiny networks."""

from __future__ import annotations

import pathlib
import sys

from kcd_jax import main, networks  # `main` comes first: it sets the environment before JAX is imported

if __name__ == '__main__':
    networks.__path__.append(str(pathlib.Path(__file__).parent))
    sys.exit(main.train.main(sys.argv[1:]))
