"""`python -m kcd_jax.main --config=FILE[:words]`, the same as `python -m kcd_jax train --config=FILE[:words]`."""

from __future__ import annotations

import os
import sys

# Set before importing JAX, or TensorFlow and XLA print startup logs.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from kcd_jax.commands import train

if __name__ == '__main__':
    sys.exit(train.main(sys.argv[1:]))
