"""Command line: python -m kcd_jax report table|report|figures|kr PATHS..."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcd_jax.methods import _recoding as recoding
from kcd_jax.report import comparison, sweeps, tables
from kcd_jax.report.papers import TABLES
from kcd_jax.report.records import run_folder


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


def _pictures(summaries: Sequence[dict]) -> dict[str, Any]:
    """The training images of the runs, for a gallery; {} with a line on stderr where they cannot be had."""
    shown = [run for run in summaries if run_folder(run) and list(run_folder(run).glob('knowledge/stage_*.npz'))]
    settings = {json.dumps(run['config'].get('data'), sort_keys=True) for run in shown}
    if len(settings) != 1:
        return {}
    from ml_collections import ConfigDict

    from kcd_jax.experiments import bridge

    try:
        dataset = bridge.dataset_of(ConfigDict(shown[0]['config']))
    except (KeyError, AttributeError) as error:
        print(f'no gallery of images: the configuration of the runs lacks {error}', file=sys.stderr)
        return {}
    except (ValueError, OSError) as error:
        print(f'no gallery of images: {error}', file=sys.stderr)
        return {}
    names = {'labels': dataset.train.labels, 'class_names': dataset.class_names}
    return {'images': dataset.train.images, **names}


def _report(arguments: argparse.Namespace) -> str:
    # Only here: matplotlib is slow to import, and a table does without it.
    from kcd_jax.report import report

    written = []
    for path in arguments.paths:
        found = tables.collect([path], []) if Path(path).exists() else []
        written.append(f'{report.write(path, **_pictures(found), reference=arguments.reference)}\n')
    return ''.join(written)


def _figures(arguments: argparse.Namespace) -> str:
    from kcd_jax.report import drawings, parts, report

    summaries = _collect(arguments.paths)
    pictures = _pictures(summaries)
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    found = parts.split(summaries, arguments.reference)
    for place, part in enumerate(found):
        prefix = '' if len(found) == 1 else f'{part.sweep or f"experiment_{place + 1}"}_'
        drawn = drawings.of_run(part.runs[0]) if len(part.runs) == 1 else part.draw()
        shown = None if part.sweep else drawings.shown_run(part.runs)
        if shown and pictures:
            named = report.Pictures(**pictures)
            drawn.append(drawings.gallery(shown, named.images, named.name))
        for one in drawn:
            path = folder / f'{prefix}{one.name}.{arguments.format}'
            one.figure.savefig(path, dpi=200)
            written.append(f'{path}: {one.alt}\n')
    return ''.join(written)


def _kr_penalties(arguments: argparse.Namespace) -> tuple[Any, str]:
    import numpy as np

    from kcd_jax.report import kr

    gradient = np.linspace(-1.5, 1.5, 601).astype(np.float32)
    ours = {epsilon: np.asarray(recoding.penalty(gradient, epsilon)) for epsilon in (0.25, 0.5, 1.0)}
    penalties = {'sparse recoding, ε = 0.5': ours[0.5], 'L1': np.abs(gradient), 'L2': gradient**2}
    return kr.penalty_curves(gradient, penalties, {f'ε = {e:g}': curve for e, curve in ours.items()}), ''


def _kr_kernels(arguments: argparse.Namespace) -> tuple[Any, str]:
    from kcd_jax.report import kr
    from kcd_jax.teachers import teacher

    of_runs = {}
    for run in _collect(arguments.paths):
        folder = run_folder(run)
        if folder and run['name'] not in of_runs and run['name'] != 'teacher':
            tensors = teacher.load(folder / teacher.FILE)[0]
            found = [name for name in tensors if name.startswith('params/') and name.endswith('/kernel')]
            layers = [name for name in found if tensors[name].ndim == 4 and tensors[name].shape[2] > 3]
            of_runs[run['name']] = tensors[min(layers)]
    if not of_runs:
        raise ValueError(f'no run under {", ".join(arguments.paths)} still has its student; give folders of runs')
    return kr.kernels(of_runs), ''


def _kr_convergence(arguments: argparse.Namespace) -> tuple[Any, str]:
    from kcd_jax.report import kr

    if [Path(path).suffix for path in arguments.paths] == ['.json']:
        curves = kr.read_curves(arguments.paths[0])
    else:
        curves = kr.training_curves([run for run in _collect(arguments.paths) if run['method'] == 'kr'])
    if arguments.curves:
        Path(arguments.curves).write_text(json.dumps(curves, separators=(',', ':')) + '\n', encoding='utf-8')
    return kr.convergence(curves), '\n'.join(kr.reading(curves, arguments.reference)) + '\n'


def _kr_examples(arguments: argparse.Namespace) -> tuple[Any, str]:
    from kcd_jax import data
    from kcd_jax.report import kr

    names = ('cifar100', 'tcifar100')
    return kr.examples({name: data.load(name, arguments.data or None).train.images[:8] for name in names}), ''


def _kr(arguments: argparse.Namespace) -> str:
    draw = {'2': _kr_penalties, '4': _kr_kernels, '5': _kr_convergence, '6': _kr_examples}[arguments.figure]
    if arguments.figure in '45' and not arguments.paths:
        raise ValueError(f'figure {arguments.figure} is drawn from runs; give their folders')
    figure, text = draw(arguments)
    figure.savefig(arguments.png, dpi=150)
    return f'{text}{arguments.png}\n'


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--reference', default='kd', help='the run that the others are compared with (default: kd)')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m kcd_jax report', description='Tables, reports and figures of finished runs.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='mean, deviation, paired difference and cost over seeds')
    table.add_argument('paths', nargs='+', help='folders of runs, folders of results, or JSON files')
    table.add_argument('--format', choices=('text', 'markdown', 'csv'), default='text')
    _add_reference(table)
    table.add_argument(
        '--paper',
        action='append',
        metavar='NAME',
        help="a paper's table (kcd_table1, ...; all) with our results in it; may be repeated. Without it: the "
        "experiments, and the papers' tables into which some of the runs belong",
    )
    table.add_argument('--output', help='write to this file instead of the terminal')
    table.set_defaults(run=_table)
    report = commands.add_parser('report', help='report.html in each folder: a run, or several')
    report.add_argument('paths', nargs='+', help='folders of runs, or of results')
    _add_reference(report)
    report.set_defaults(run=_report)
    kr = commands.add_parser('kr', help="the KR paper's figures")
    kr.add_argument('paths', nargs='*', help='folders of runs (figures 4 and 5), or the file of --curves (figure 5)')
    kr.add_argument('--figure', choices=('2', '4', '5', '6'), required=True)
    kr.add_argument('--png', required=True, help='the file to write')
    kr.add_argument('--curves', help='also keep what figure 5 draws, as JSON')
    kr.add_argument('--reference', default='dense', help='the run that the others are compared with (default: dense)')
    kr.add_argument('--data', help='where the prepared data of figure 6 are')
    kr.set_defaults(run=_kr)
    figures = commands.add_parser('figures', help='each figure as a file')
    figures.add_argument('paths', nargs='+', help='folders of runs, or of results')
    _add_reference(figures)
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
