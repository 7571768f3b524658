"""The command line of the benchmarks; the package's docstring shows its uses."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import __doc__ as description
from benchmarks import results
from kcd_jax.commands import launch

# {group: the function that yields its rows}, each in a module of benchmarks.
GROUPS = {
    'startup': 'steps.startup',
    'step': 'teaching.against_everything',
    'overhead': 'steps.overhead',
    'kcd': 'teaching.kcd_against_kd',
    'sharing': 'teaching.twelve_runs',
    'scoring': 'steps.scoring',
    'condensation': 'condensation.in_jit',
    'index_space': 'condensation.in_a_run',
    'networks': 'networks.all_networks',
    'methods': 'methods.compared_with_kd',
    'seeds': 'steps.several_seeds',
    'streaming': 'streaming.streaming',
    'full_run': 'steps.full_run',
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = launch.Parser(
        prog='python -m kcd_jax bench',
        description=description,
        epilog='example:\n  python -m kcd_jax bench --quick --json=bench.json',
    )
    parser.add_argument(
        '--rows', default='', metavar='GROUPS', help=f'separated by commas; default all: {", ".join(GROUPS)}'
    )
    parser.add_argument('--quick', action='store_true', help='smaller sizes and fewer repeats, for orientation only')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers to this file')
    parser.add_argument('--show', metavar='FILE', help='print a file written by --json as Markdown; measure nothing')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""

    def body() -> int:
        options = parse(sys.argv[1:] if argv is None else argv)
        print(show(pathlib.Path(options.show)), end='') if options.show else measure(options)
        return 0

    return launch.run(body)


def show(path: pathlib.Path) -> str:
    """The rows of a file written by `--json`, as Markdown."""
    try:
        return results.markdown(json.loads(path.read_text(encoding='utf-8')))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not a file written by --json ({error})') from error


def measure(options: argparse.Namespace) -> None:
    """Prints the rows of the wanted groups as they are measured."""
    from kcd_jax import plugins
    from kcd_jax.commands import launch

    wanted = options.rows.split(',') if options.rows else list(GROUPS)
    for name in wanted:
        if name not in GROUPS:
            raise ValueError(plugins.unknown('group of rows', name, list(GROUPS)))
    launch.prepare_jax()
    import importlib

    import jax

    from kcd_jax.runtime import environment, files

    print(f'{jax.device_count()} x {jax.devices()[0].device_kind}\n{results.HEADER}')
    found = []
    with tempfile.TemporaryDirectory(prefix='kcd_jax_benchmarks_') as scratch:
        for name in wanted:
            module, function = GROUPS[name].split('.')
            group = getattr(importlib.import_module(f'benchmarks.{module}'), function)
            for row in group(options.quick, pathlib.Path(scratch)):
                print(row.line(), flush=True)
                found.append({'name': row.name, 'measured': row.measured, 'target': row.target, 'met': row.met,
                              'details': dict(row.details)})  # fmt: skip
    if options.json:
        content = {'quick': options.quick, **environment.describe(), 'rows': found}
        files.write_text(pathlib.Path(options.json), files.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(main())
