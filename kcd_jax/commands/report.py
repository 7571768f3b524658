"""The `report` command: tables, figures and pages of finished runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax import data
from kcd_jax.commands import launch
from kcd_jax.policies import reuse
from kcd_jax.report import paper_results, tables
from kcd_jax.report.comparisons import split
from kcd_jax.report.papers import TABLES
from kcd_jax.report.records import Files, run_folder, to_csv
from kcd_jax.runtime import exitcodes

EXAMPLES = """examples:
  python -m kcd_jax report table results/digits_long --format=markdown
  python -m kcd_jax report page runs/digits
  python -m kcd_jax report figures runs/digits --folder=figures --format=svg
  python -m kcd_jax report papers runs --table=kcd_table1
  python -m kcd_jax report benchmark results/benchmark_* --figure=benchmark.svg
  python -m kcd_jax report condensed-set runs/digits/kcd/trial_0 kept
"""


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(f'left out: {line}', file=sys.stderr)


def _collect(paths: Sequence[str]) -> list[dict]:
    damaged: list[str] = []
    summaries = tables.collect(paths, damaged)
    _say(damaged)
    if not summaries:
        raise ValueError(f'no finished run under {", ".join(paths)}; a run leaves summary.json when it has finished')
    return summaries


def _write_tables(found: Sequence[tables.Table], arguments: argparse.Namespace) -> None:
    write = {'text': tables.Table.to_text, 'markdown': tables.Table.to_markdown, 'csv': tables.Table.to_csv}
    text = '\n\n'.join(write[arguments.format](table).rstrip('\n') for table in found) + '\n'
    if arguments.output:
        Path(arguments.output).write_text(text, encoding='utf-8')
        print(arguments.output)
    else:
        print(text, end='')


def _table(arguments: argparse.Namespace) -> None:
    summaries = _collect(arguments.paths)
    _write_tables([*tables.tables(summaries, arguments.reference), *paper_results.paper_tables(summaries)], arguments)


def _benchmark(arguments: argparse.Namespace) -> None:
    from kcd_jax.report import benchmark, benchmark_table

    records = benchmark.measure(_collect(arguments.paths), own_cache=benchmark.read_own_cache(arguments.own_cache))
    found = [benchmark_table.summary(records)] if arguments.summary else benchmark_table.table(records)
    _write_tables(found, arguments)
    if arguments.figure:
        benchmark_table.figure(records).save(arguments.figure)
        print(arguments.figure)


def _papers(arguments: argparse.Namespace) -> None:
    names = [arguments.table] if arguments.table else list(TABLES)
    summaries = tables.collect(arguments.paths, damaged := [])
    _say(damaged)
    _write_tables([paper_results.paper_table(name, summaries) for name in names], arguments)


def _pictures(summaries: Sequence[dict]) -> dict[str, Any]:
    """The training images of the runs, for a gallery; {} if the runs have several datasets, or none that loads."""
    shown = [run for run in summaries if run_folder(run) and list(run_folder(run).glob('knowledge/stage_*.npz'))]
    sources = {json.dumps((run.get('run') or {}).get('data'), sort_keys=True) for run in shown}
    if len(sources) != 1:
        return {}
    try:
        source = json.loads(sources.pop()) or {}
        parts = {key: source[key] for key in ('validation', 'seed', 'num_points') if key in source}
        dataset = data.load(source['name'], source.get('dir') or None, **parts)
    except KeyError as error:
        print(f'no gallery of images: the description of the runs lacks data.{error.args[0]}', file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f'no gallery of images: {error}', file=sys.stderr)
    else:
        return dataset.pictures()
    return {}


def _page(arguments: argparse.Namespace) -> None:
    # Imported here: matplotlib is slow to import, and tables do not need it.
    from kcd_jax.report import page

    for path in arguments.paths:
        found = tables.collect([path], []) if Path(path).exists() else []
        problems: list[str] = []
        print(page.write(path, **_pictures(found), reference=arguments.reference, problems=problems))
        _say(problems)


def _figures(arguments: argparse.Namespace) -> None:
    from kcd_jax.report import drawings

    summaries, files = _collect(arguments.paths), Files()
    pictures = drawings.Pictures(**found) if (found := _pictures(summaries)) else None
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    comparisons = split(summaries, arguments.reference)
    for place, comparison in enumerate(comparisons):
        single = len(comparison.runs) == 1
        of, shown = (drawings.of_run, comparison.runs[0]) if single else (drawings.of_comparison, comparison)
        prefix = '' if len(comparisons) == 1 else f'{comparison.sweep or f"experiment_{place + 1}"}_'
        for one in of(shown, files, pictures):
            path = folder / f'{prefix}{one.name}.{arguments.format}'
            one.save(path)
            if one.data:
                path.with_suffix('.csv').write_text(to_csv(one.data), encoding='utf-8')
            print(f'{path}: {one.alt}')
    _say(files.problems)


def _condensed_set(arguments: argparse.Namespace) -> None:
    arrays, listed = reuse.export(arguments.folder, arguments.out)
    with np.load(arrays) as stored:
        print(f'{len(stored["index"]):,} points, {int((stored["epsilon"] > 0).sum()):,} of them mixed')
    print(f'written to {arrays} and {listed}')


def _parser() -> argparse.ArgumentParser:
    parser = launch.Parser(
        prog='python -m kcd_jax report',
        description='Tables, figures and pages of finished runs.',
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, run: Any, words: str, paths: str = '+') -> argparse.ArgumentParser:
        lines = [line for line in EXAMPLES.splitlines() if f' report {name} ' in line]
        added = commands.add_parser(
            name,
            help=words,
            description=words,
            epilog='\n'.join(['example:', *lines]),
        )
        if paths:
            added.add_argument(
                'paths',
                nargs=paths,
                metavar='PATH',
                type=os.path.expanduser,
                help='folder of runs or results, or a JSON file',
            )
        added.set_defaults(run=run)
        return added

    table = command('table', _table, 'accuracy, paired differences and cost over seeds')
    papers = command('papers', _papers, "the papers' tables with our results", '*')
    papers.add_argument('--table', metavar='NAME', help='one table, as kcd_table1 (default: all)')
    benchmark = command('benchmark', _benchmark, 'the benchmark of selection policies: tables, p values, figure')
    benchmark.add_argument(
        '--figure', metavar='FILE', type=os.path.expanduser, help='accuracy against compute, as .svg, .png or .pdf'
    )
    benchmark.add_argument('--summary', action='store_true', help='one table of differences in place of all rows')
    benchmark.add_argument(
        '--own-cache', metavar='FILE', type=os.path.expanduser, help='written by python -m benchmarks.own_cache'
    )
    for one in (table, papers, benchmark):
        one.add_argument(
            '--format', choices=('text', 'markdown', 'csv'), default='text', help='output format (default: text)'
        )
        one.add_argument(
            '--output', metavar='FILE', type=os.path.expanduser, help='write to this file (default: print)'
        )
    page = command('page', _page, 'report.html and report.csv in each folder')
    drawn = command('figures', _figures, 'each figure as a file, with its numbers as CSV')
    drawn.add_argument(
        '--folder', default='figures', metavar='DIR', type=os.path.expanduser, help='output folder (default: figures)'
    )
    drawn.add_argument('--format', choices=('png', 'svg', 'pdf'), default='png', help='file format (default: png)')
    for one in (table, page, drawn):
        one.add_argument(
            '--reference', default='kd', metavar='ROW', help='row that the others are compared with (default: kd)'
        )
    condensed = command('condensed-set', _condensed_set, "export a run's final set as OUT.npz and OUT.txt", '')
    condensed.add_argument(
        'folder', metavar='RUN', type=os.path.expanduser, help='folder of a run that condensed its points'
    )
    condensed.add_argument('out', metavar='OUT', type=os.path.expanduser, help='path of the two files, without suffix')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; bad input prints one line. Returns one of `runtime.exitcodes`."""

    def body() -> int:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        return exitcodes.OK

    return launch.run(body)


if __name__ == '__main__':
    sys.exit(main())
