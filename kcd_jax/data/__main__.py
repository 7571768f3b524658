"""python -m kcd_jax.data: the same as `python -m kcd_jax data`, whose name it was before."""

import sys

from kcd_jax.commands.data import main

if __name__ == '__main__':
    sys.exit(main())
