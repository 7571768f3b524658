"""Command line: python -m kcd_jax.analysis table|report|figures PATHS..."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kcd_jax.analysis import comparison, sweeps, tables
from kcd_jax.analysis.papers import TABLES


def _collect(paths: Sequence[str]) -> list[dict]:
    damaged: list[str] = []
    summaries = tables.collect(paths, damaged)
    for line in damaged:
        print(f'left out: {line}', file=sys.stderr)
    if not summaries:
        raise ValueError(f'no finished run under {", ".join(paths)}; a run leaves summary.json when it has finished')
    return summaries


def _table(arguments: argparse.Namespace) -> str:
    write = {'text': tables.Table.to_text, 'markdown': tables.Table.to_markdown, 'csv': tables.Table.to_csv}
    summaries = _collect(arguments.paths)
    if not arguments.paper:
        found = sweeps.all_tables(summaries, arguments.reference) + comparison.paper_tables(summaries)
    else:
        wanted = list(TABLES) if 'all' in arguments.paper else arguments.paper
        found = [comparison.paper_table(name, summaries) for name in wanted]
    return '\n\n'.join(write[arguments.format](table).rstrip('\n') for table in found) + '\n'


def _report(arguments: argparse.Namespace) -> str:
    # Only here: matplotlib is slow to import, and a table does without it.
    from kcd_jax.analysis import report

    return ''.join(f'{report.write(path)}\n' for path in arguments.paths)


def _figures(arguments: argparse.Namespace) -> str:
    from kcd_jax.analysis import drawings

    summaries = _collect(arguments.paths)
    parts = tables.experiments([summary for summary in summaries if not sweeps.card_of(summary)])
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    found = [('', drawings.of_sweep(summaries))]
    for place, part in enumerate(parts):
        prefix = f'experiment_{place + 1}_' if len(parts) > 1 else ''
        found.append((prefix, drawings.of_run(part[0]) if len(part) == 1 else drawings.of_experiment(part)))
    for prefix, drawn_of in found:
        for drawn in drawn_of:
            path = folder / f'{prefix}{drawn.name}.{arguments.format}'
            drawn.figure.savefig(path, dpi=200)
            written.append(f'{path}: {drawn.alt}\n')
    return ''.join(written)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m kcd_jax.analysis', description='Tables, reports and figures of finished runs.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='mean, deviation, paired difference and cost over seeds')
    table.add_argument('paths', nargs='+', help='folders of runs, folders of results, or JSON files')
    table.add_argument('--format', choices=('text', 'markdown', 'csv'), default='text')
    table.add_argument('--reference', default='kd', help='the run that the others are compared with (default: kd)')
    table.add_argument(
        '--paper',
        action='append',
        metavar='NAME',
        help="a paper's table (kcd_table1, ...; all) with our results in it; may be repeated. Without it: the "
        "experiments, and the papers' tables into which some of the runs belong",
    )
    table.add_argument('--output', help='write to this file instead of the terminal')
    table.set_defaults(run=_table)
    report = commands.add_parser('report', help='report.html in each folder: a run, or an experiment of several')
    report.add_argument('paths', nargs='+', help='folders')
    report.set_defaults(run=_report)
    figures = commands.add_parser('figures', help='each figure as a file')
    figures.add_argument('paths', nargs='+', help='folders of runs')
    figures.add_argument('--folder', default='figures', help='where they go (default: figures)')
    figures.add_argument('--format', choices=('png', 'svg', 'pdf'), default='png')
    figures.set_defaults(run=_figures)
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
