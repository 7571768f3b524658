"""The content of a report's page, as plain data for the template `page.html`.

A page has parts, one per comparison (or one for a run). A part has a line of facts, findings, tiles, and sections of
blocks, laid out in columns or stacked. A block is a mapping with a `kind`: 'table', 'drawing', 'shares', 'gallery' or
'code'.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax.report import drawings, findings, names, style
from kcd_jax.report.comparisons import Comparison, Summary, is_teacher, run_name, teacher_network
from kcd_jax.report.records import Files, number, run_folder
from kcd_jax.report.style import Drawing
from kcd_jax.report.tables import comparison_table, device, duration, percent, percentage, quantity, seconds

Block = dict[str, Any]
# Images in each half of the gallery.
SHOWN = 24
# More condensations than these are folded away.
LISTED = 20
_PASSES = {
    'teacher_forward': 'teacher, forward',
    'student_forward': 'student, forward',
    'student_backward': 'student, backward',
    'scoring_forward': 'scoring pass',
    'method': 'the method itself',
}
_TIMES = ('compile', 'train', 'score', 'condense', 'evaluate')
# The section of each figure; figures not named here are about training.
_VALUE = ('value_heat_map', 'value_histogram', 'hamming_distances', 'teacher_entropy_by_label')
_CLASSES = (
    'distance_to_centre', 'teacher_entropy', 'sampling_and_accuracy', 'class_accuracy', 'class_heat_map',
    'correlation_difference',
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ blocks


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], **more: Any) -> Block:
    return {'kind': 'table', 'title': title, 'headers': headers, 'rows': rows, 'chosen': (), 'notes': (), **more}


def _pairs(entries: Mapping[str, object], title: str = '', folded: bool = False) -> Block:
    rows = [[name, str(value)] for name, value in entries.items()]
    return _table(title, (), rows, words=True, folded=folded)


def _shares(title: str, amounts: Mapping[str, tuple[float, str]]) -> list[Block]:
    """A bar of {part: (amount, as written)}; [] if the amounts are all 0."""
    total = sum(amount for amount, _ in amounts.values())
    colors = [*style.PALETTE, style.NEUTRAL]
    parts = [
        {'name': name, 'amount': written, 'share': 100 * amount / total, 'color': colors[place % len(colors)]}
        for place, (name, (amount, written)) in enumerate(amounts.items())
        if amount > 0
    ]
    return [{'kind': 'shares', 'title': title, 'parts': parts}] if parts else []


def _drawn(drawn: Sequence[Drawing | None]) -> list[Block]:
    return [{'kind': 'drawing', 'drawing': one} for one in drawn if one]


def _section(title: str, columns: Sequence[Block] = (), stack: Sequence[Block] = ()) -> list[Block]:
    """A section, or nothing if it would be empty."""
    return [{'title': title, 'columns': list(columns), 'stack': list(stack)}] if columns or stack else []


def _arrows(words: str) -> str:
    return words.replace('->', '→')


class Pictures:
    """The training images, for the gallery."""

    def __init__(self, images: np.ndarray | None, labels: np.ndarray | None, class_names: Sequence[str] | None) -> None:
        self.images, self.labels, self.class_names = images, labels, class_names

    def name(self, point: int) -> str:
        """The point's class, or its number if classes are unknown."""
        if self.labels is None:
            return f'point {point}'
        label = int(self.labels[point])
        return f'class {label}' if self.class_names is None else str(self.class_names[label]).replace('_', ' ')

    def gallery(self, run: Summary, files: Files) -> list[Block]:
        """The most and the least valued points of a run's last condensation; [] without images or stages."""
        stages = files.stages(run, 1) if self.images is not None else []
        if not stages:
            return []
        stage = stages[-1]
        for what, array in (('images', self.images), ('labels', self.labels)):
            if array is not None and len(array) != len(stage.value):
                raise ValueError(
                    f'{len(array)} {what} do not belong to a run of {len(stage.value)} points; give its training set'
                )
        titles = ('Most valued: the student is least certain', 'Least valued: the student has learnt these')
        halves = [
            {
                'title': title,
                'images': [
                    {'pixels': self.images[point], 'name': self.name(point), 'value': f'{stage.value[point]:.3f} nats'}
                    for point in points
                ],
            }
            for title, points in zip(titles, drawings.ranked_points(stage, SHOWN), strict=True)
        ]
        after = (run.get('condensations') or [{}])[-1].get('epoch', stage.number)
        note = f'Value: mean prediction entropy over all visits, at the last condensation, after epoch {after}.'
        return [{'kind': 'gallery', 'halves': halves, 'note': note}]


# ------------------------------------------------------------------------------------------------------ about one run


def _pair(run: Summary) -> str:
    teacher = teacher_network(run)
    return f'{teacher} → {run.get("student")}' if teacher else str(run.get('student'))


def _facts(run: Summary, *more: str) -> str:
    epochs, batch = number(run, 'epochs'), number(run, 'batch')
    facts = [*more, *([f'{epochs:.0f} epochs'] if epochs else []), *([f'batch {batch:.0f}'] if batch else [])]
    return ' · '.join(fact for fact in (*facts, device(run)) if fact and fact != 'None')


def _run_tiles(run: Summary) -> list[Block]:
    best, at, kl = number(run, 'best_accuracy'), number(run, 'best_epoch'), number(run, 'teacher_kl')
    note = f'last epoch, {run.get("evaluated_on", "test")} set'
    note += f'; best {percentage(best)}' if best is not None else ''
    note += f' (epoch {at:.0f})' if best is not None and at is not None else ''
    processed, full = number(run, 'cost', 'processed_samples'), number(run, 'cost', 'processed_full')
    samples = f'{quantity(processed)} of {quantity(full)} samples' if processed and full else ''
    agreement = percentage(number(run, 'agreement'))
    return findings.tiles(
        ('Accuracy', percentage(number(run, 'accuracy')), note),
        ('Teacher', percentage(number(run, 'teacher', 'accuracy')), str(teacher_network(run))),
        ('Cost', percentage(number(run, 'cost', 'relative_processed')), samples),
        ('Time', duration(number(run, 'seconds', 'total')), device(run)),
        ('Agreement with the teacher', agreement, f'KL {kl:.3f} nats' if kl is not None else ''),
        ('Parameters', quantity(number(run, 'parameters')), str(run.get('student'))),
    )


def _cost(run: Summary) -> list[Block]:
    found = (run.get('cost') or {}).get('macs') or {}
    macs = {_PASSES.get(key, key): number(found, key) for key in found}
    passes = {key: (value, f'{quantity(value)} MAC') for key, value in macs.items() if value is not None}
    times = {key: number(run, 'seconds', key) for key in _TIMES}
    known = {key: (value, duration(value)) for key, value in times.items() if value is not None}
    total = number(run, 'seconds', 'total')
    other = total - sum(value for value, _ in known.values()) if total is not None else 0.0
    if other > 0.005 * (total or 1.0):
        known['everything else'] = (other, duration(other))
    rows = [
        [name, *((percent if 'relative' in key else quantity)(number(run, 'cost', key)) for key in keys)]
        for name, keys in (
            ('this run', ('scheduled_samples', 'processed_samples')),
            ('training on every point', ('scheduled_full', 'processed_full')),
            ('relative (%)', ('relative_scheduled', 'relative_processed')),
        )
    ]
    notes = ['Processed: without the last partial batch of an epoch, which is dropped.']
    relative = number(run, 'cost', 'relative_macs')
    if relative is not None:
        notes.append(f'Multiply-accumulates: {percentage(relative)} of those of the same method on every point.')
        ways = ('assumed_backward', 'counted_backward')
        assumed, counted = (percentage(number(run, 'cost', 'computation', way)) for way in ways)
        notes.append(
            f'Computation of the networks (UNIX, Eq. 3 and 11): {assumed} if a backward pass costs as much as '
            f'a forward one, {counted} as counted.'
        )
    if number(run, 'seconds', 'score'):
        notes.append('Time of the scoring passes: one is timed at the end of the run and multiplied by their number.')
    samples = _table('Samples', ['samples', 'scheduled', 'processed'], rows, notes=notes)
    return [samples, *_shares('Multiply-accumulates by pass', passes), *_shares('Time by activity', known)]


def _condensations(run: Summary) -> list[Block]:
    records, num_points = run.get('condensations') or [], number(run, 'num_points')
    rows = []
    for record in records:
        kept = number(record, 'kept')
        share = f'{100 * kept / num_points:.2f}' if kept is not None and num_points else ''
        cells = [quantity(number(record, key)) for key in ('epoch', 'kept', 'augmented', 'readmitted')]
        rows.append([f'{record.get("number", "")}/{record.get("of", "")}', *cells[:2], share, *cells[2:]])
    headers = ['stage', 'after epoch', 'kept', '% of all', 'augmented', 're-admitted']
    title = f'Condensations of {quantity(num_points)} points'
    return [_table(title, headers, rows, folded=len(rows) > LISTED)] if rows else []


def _provenance(run: Summary) -> list[Block]:
    command, commit = run.get('command'), run.get('commit')
    if isinstance(command, (list, tuple)):
        command = shlex.join(map(str, command))
    # '-dirty' marks a checkout with uncommitted changes, which are not recorded.
    lines = [f'git checkout {str(commit).removesuffix("-dirty")}'] if commit else []
    # A module started with `python -m` is recorded as its file.
    lines += [re.sub(r'^\S*/kcd_jax/(\w+)\.py\b', r'python -m kcd_jax.\1', str(command))] if command else []
    teacher, versions = run.get('teacher'), run.get('versions')
    facts = {'commit': commit, 'device': device(run), 'seed': run.get('seed'), 'python': run.get('python')}
    if isinstance(teacher, Mapping):
        facts |= {f'teacher: {key}': teacher.get(key) for key in ('source', 'identity', 'sha256')}
    facts |= versions if isinstance(versions, Mapping) else {}
    blocks = [{'kind': 'code', 'text': '\n'.join(lines)}] if lines else []
    blocks.append(_pairs({key: value for key, value in facts.items() if value not in (None, '')}))
    described = run.get('run')
    if isinstance(described, Mapping) and described:
        blocks.append(_pairs(names.flatten(described), 'All settings', folded=True))
    return blocks


def _by_section(drawn: Sequence[Drawing]) -> tuple[list[Block], list[Block], list[Block]]:
    """Figures about training, values and classes."""
    named = {'value': _VALUE, 'classes': _CLASSES}
    value, classes = (_drawn([one for one in drawn if one.name in some]) for some in named.values())
    return _drawn([one for one in drawn if one.name not in _VALUE + _CLASSES]), value, classes


def of_run(run: Summary, pictures: Pictures, files: Files) -> tuple[str, list[Block]]:
    """(title, parts) of the page of one run."""
    label = 'Teacher' if is_teacher(run) else names.display_name(run['method'], run['policy'])
    title = f'{label}: {_pair(run)}'
    training, value, classes = _by_section(drawings.of_run(run, files))
    part = {
        'facts': _facts(run, str(run.get('dataset')), f'seed {run["seed"]}'),
        'findings': [],
        'tiles': _run_tiles(run),
        'sections': [
            *_section('Training', [*training, *_condensations(run)]),
            *_section('Cost', _cost(run)),
            *_section('Values of the points', value + classes, pictures.gallery(run, files)),
            *_section('Reproduce', stack=_provenance(run)),
        ],
    }
    return title, [part]


# ------------------------------------------------------------------------------------------------- about comparisons


def run_records(summaries: Sequence[Summary], folder: Path) -> list[dict[str, Any]]:
    """One mapping of raw numbers per run, sorted: fractions, seconds and counts."""
    records = []
    for run in sorted(summaries, key=lambda run: (is_teacher(run), run_name(run), run['seed'])):
        where = run_folder(run)
        inside = where is not None and where.is_relative_to(folder) and where != folder
        keys = ('accuracy', 'best_accuracy', 'loss', 'agreement', 'teacher_kl')
        cost = ('relative_processed', 'relative_macs', 'processed_samples')
        records.append(
            {
                'run': str(where.relative_to(folder)) if inside else run_name(run),
                'method': run['method'],
                'policy': run['policy'],
                'seed': run['seed'],
                **{key: number(run, key) for key in keys},
                **{key: number(run, 'cost', key) for key in cost},
                'seconds': number(run, 'seconds', 'total'),
                'commit': str(run.get('commit') or ''),
            }
        )
    return records


def _all_runs(summaries: Sequence[Summary], folder: Path) -> Block:
    rows = [
        [
            one['run'],
            str(one['seed']),
            *(percent(one[key]) for key in ('accuracy', 'best_accuracy', 'relative_processed')),
            seconds(one['seconds']),
            one['commit'][:10],
        ]
        for one in run_records(summaries, folder)
    ]
    headers = ['run', 'seed', 'accuracy %', 'best %', 'cost %', 'seconds', 'commit']
    return _table(f'All {len(rows)} runs', headers, rows, folded=True)


def _comparison(comparison: Comparison, pictures: Pictures, folder: Path, files: Files) -> Block:
    table, row, shown = comparison_table(comparison), findings.selected_row(comparison), drawings.shown_run(comparison)
    training, value, classes = _by_section(drawings.of_comparison(comparison, files))
    runs = comparison.runs
    plain = [run for run in runs if (run['method'], run['policy']) == ('kd', 'none')]
    about = shown or next((run for run in (*plain, *runs) if teacher_network(run)), runs[0])
    seeds = len({run['seed'] for run in runs if not is_teacher(run)})
    lines, tiles = findings.findings(comparison)
    chosen = [row.label] if row else []
    result = _table(_arrows(table.title), table.headers, table.rows, chosen=chosen, notes=table.notes)
    which = drawings.label_of(about)
    return {
        'title': _arrows(comparison.title),
        'facts': _facts(about, f'{seeds} seed{"s" if seeds != 1 else ""}'),
        'findings': lines,
        'tiles': tiles,
        'sections': [
            *_section('Result', stack=[result]),
            *_section('Training and cost', [*training, *(_condensations(shown) if shown else [])]),
            *_section(f'Cost of one run: {which}', _cost(about)),
            *_section('Values of the points', value, pictures.gallery(shown, files) if shown else []),
            *_section('Classes', classes),
            *_section('Reproduce', stack=[*_provenance(about), _all_runs(runs, folder)]),
        ],
    }


def of_comparisons(
    comparisons: Sequence[Comparison], pictures: Pictures, folder: Path, files: Files
) -> tuple[str, str, list[Block]]:
    """(kind, title, parts) of the page of several runs."""
    kinds = {'sweep' if one.sweep else 'experiment' for one in comparisons}
    kind = kinds.pop() if len(kinds) == 1 else 'table'
    parts = [_comparison(one, pictures, folder, files) for one in comparisons]
    title = f'{len(comparisons)} {kind}s in {folder.resolve().name}'
    if len(comparisons) == 1:
        (only,) = comparisons
        title, parts[0]['title'] = _arrows(only.title), ''
    return kind, title, parts
