"""`python -m kcd_jax COMMAND ...`: every program of the package. `python -m kcd_jax COMMAND --help` lists its flags."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

# Set before importing JAX, or TensorFlow and XLA print startup logs.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

COMMANDS = {
    'train': 'train what a config file describes, compare runs, print their table',
    'sweep': "the runs of a paper's table, and the table",
    'export': 'write a trained student as a file that other programs run',
    'teacher': 'bring a teacher in from other formats, out to them, and check it',
    'data': 'look at a data set, prepare it, check it',
    'networks': 'what every network costs and returns',
    'cost': "what a run costs before it trains; the papers' cost columns recomputed",
    'report': 'tables, figures and pages of finished runs',
    'bench': 'measure this machine',
}


def usage() -> str:
    """The commands, one line each."""
    lines = [f'  {name:10s}{about}' for name, about in COMMANDS.items()]
    start = ['usage: python -m kcd_jax COMMAND [flags]   (python -m kcd_jax COMMAND --help lists the flags)', '']
    end = ['', 'example:', '  python -m kcd_jax train --config=digits_kd']
    return '\n'.join([*start, *lines, *end])


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    Args:
      argv: the command and its flags; default: those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help', 'help'):
        sys.stdout.write(f'{usage()}\n')
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f' (did you mean {near[0]}?)' if near else ''
        print(f'error: unknown command {name!r}{hint}; known: {", ".join(COMMANDS)}', file=sys.stderr)
        return 2
    from kcd_jax.commands import launch

    return launch.interruptible(lambda: importlib.import_module(f'kcd_jax.commands.{name}').main(rest))


if __name__ == '__main__':
    sys.exit(main())
