"""`python -m kcd_jax.main --config=FILE[:words]`, the same as `python -m kcd_jax train --config=FILE[:words]`."""

from __future__ import annotations

import sys

from kcd_jax.__main__ import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
