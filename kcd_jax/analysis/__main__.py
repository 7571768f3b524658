"""Command line: python -m kcd_jax.analysis table PATHS..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kcd_jax.analysis import tables


def _collect(paths: Sequence[str]) -> list[dict]:
    damaged: list[str] = []
    summaries = tables.collect(paths, damaged)
    for line in damaged:
        print(f'left out: {line}', file=sys.stderr)
    if not summaries:
        raise ValueError(f'no finished run under {", ".join(paths)}; a run leaves summary.json when it has finished')
    return summaries


def _table(arguments: argparse.Namespace) -> str:
    found = tables.experiment_tables(_collect(arguments.paths), arguments.reference)
    write = {'text': tables.Table.to_text, 'markdown': tables.Table.to_markdown, 'csv': tables.Table.to_csv}[
        arguments.format
    ]
    return '\n\n'.join(write(table).rstrip('\n') for table in found) + '\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m kcd_jax.analysis', description='Tables, reports and figures of finished runs.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='mean, deviation, paired difference and cost over seeds')
    table.add_argument('paths', nargs='+', help='folders of runs, folders of results, or JSON files')
    table.add_argument('--format', choices=('text', 'markdown', 'csv'), default='text')
    table.add_argument('--reference', default='kd', help='the run that the others are compared with (default: kd)')
    table.add_argument('--output', help='write to this file instead of the terminal')
    table.set_defaults(run=_table)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line and exit status 1."""
    parsed = _parser().parse_args(arguments)
    try:
        text = parsed.run(parsed)
        if getattr(parsed, 'output', None):
            Path(parsed.output).write_text(text, encoding='utf-8')
            print(parsed.output)
        else:
            print(text, end='')
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
