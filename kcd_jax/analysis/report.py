"""report.html: what a run or an experiment achieved, what it cost, and how to do it again, in one file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax.analysis import class_drawings, drawings, names, page, tables
from kcd_jax.analysis.groups import (
    Group,
    base_of,
    describe_experiment,
    experiments,
    group_runs,
    is_teacher,
    run_name,
    teacher_network,
)
from kcd_jax.analysis.records import SUMMARY, collect, number, read_stages, run_folder
from kcd_jax.analysis.statistics import Sample, paired_difference

Summary = Mapping[str, Any]
NAME = 'report.html'
# Images in each half of the gallery.
SHOWN = 24
# Condensations that are listed without folding the list away.
LISTED = 20
_PASSES = {
    'teacher_forward': 'teacher, forward',
    'student_forward': 'student, forward',
    'student_backward': 'student, backward',
    'scoring_forward': 'scoring pass',
    'method': 'the method itself',
}
_TIMES = ('compile', 'train', 'score', 'condense', 'evaluate')


def write(
    folder: str | os.PathLike[str],
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Writes <folder>/report.html, one file that needs no network.

    Args:
      folder: a finished run (it holds summary.json), or an experiment: a folder with such runs in it.
      images: u8[num_points, H, W, 3], the training images by point, for the gallery.
      labels: i32[num_points], their classes.
      class_names: [num_classes]; without it classes are called by their number.

    Returns:
      The file's path.

    Raises:
      ValueError: nothing under `folder` has finished, a file is damaged, or `images` or `labels` are not those of the
        run's points.
    """
    folder = Path(folder)
    damaged: list[str] = []
    if (folder / SUMMARY).is_file():
        (run,) = collect([folder / SUMMARY])
        title, body = _run(run, _Pictures(images, labels, class_names))
    else:
        summaries = collect([folder], damaged)
        if not summaries:
            reason = f' ({damaged[0]})' if damaged else ''
            raise ValueError(f'no finished run under {folder}{reason}; a run leaves summary.json when it has finished')
        title, body = _experiments(summaries, _Pictures(images, labels, class_names), folder, damaged)
    path = folder / NAME
    # Renamed into place, so that a reader never sees half a page.
    part = path.with_name(f'.{NAME}.part')
    part.write_text(page.document(title, body), encoding='utf-8')
    part.replace(path)
    return path


class _Pictures:
    """The training images, for the gallery."""

    def __init__(self, images: np.ndarray | None, labels: np.ndarray | None, class_names: Sequence[str] | None) -> None:
        self.images, self.labels, self.class_names = images, labels, class_names

    def name(self, point: int) -> str:
        """The point's class, or its number where classes are not known."""
        if self.labels is None:
            return f'point {point}'
        label = int(self.labels[point])
        return f'class {label}' if self.class_names is None else str(self.class_names[label]).replace('_', ' ')

    def gallery(self, run: Summary) -> str:
        """The most and the least valued points of a run's last condensation; '' without images or stages."""
        folder = run_folder(run)
        stages = read_stages(folder, 1) if self.images is not None and folder else []
        if not stages:
            return ''
        stage = stages[-1]
        for what, array in (('images', self.images), ('labels', self.labels)):
            if array is not None and len(array) != len(stage.value):
                raise ValueError(
                    f'{len(array)} {what} do not belong to a run of {len(stage.value)} points; give its training set'
                )
        parts = []
        titles = ('Most valued: the student is least sure of these', 'Least valued: the student has learnt these')
        for title, points in zip(titles, drawings.ranked_points(stage, SHOWN), strict=True):
            values = [f'{stage.value[point]:.3f} nats' for point in points]
            parts.append(page.gallery(title, [self.images[p] for p in points], [self.name(p) for p in points], values))
        after = run['condensations'][-1]['epoch'] if run.get('condensations') else stage.number
        note = (
            f'Value: mean prediction entropy over all visits, as known at the last condensation, after epoch {after}.'
        )
        return page.card(*parts, page.notes([note]))


# ------------------------------------------------------------------------------------------------------------ pieces


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ''
    if seconds < 120:
        return f'{seconds:.1f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def _percent(value: float | None) -> str:
    return f'{tables.percent(value)} %' if value is not None else ''


def _device(run: Summary) -> str:
    device = run.get('device')
    if not isinstance(device, Mapping):
        return ''
    count = device.get('count', 1)
    return f'{count} x {device.get("kind")}' if count != 1 else str(device.get('kind'))


def _pair(run: Summary) -> str:
    teacher = teacher_network(run)
    return f'{teacher} → {run.get("student")}' if teacher else str(run.get('student'))


def _facts(run: Summary, *more: str) -> str:
    facts = [*more, f'{run.get("epochs")} epochs', f'batch {run.get("batch")}', _device(run)]
    return f'<p class="lead">{page.text(" · ".join(fact for fact in facts if fact))}</p>'


def _head(kind: str, title: str) -> str:
    return f'<header>\n<p class="eyebrow">kcd_jax · {kind}</p>\n<h1>{page.text(title)}</h1>\n</header>'


def _tiles(run: Summary) -> str:
    best = number(run, 'best_accuracy')
    at = number(run, 'best_epoch')
    apart = f'; best {_percent(best)}' + (f' (epoch {at:.0f})' if at is not None else '') if best is not None else ''
    processed, full = number(run, 'cost', 'processed_samples'), number(run, 'cost', 'processed_full')
    samples = f'{tables.quantity(processed)} of {tables.quantity(full)} samples' if processed and full else ''
    kl = number(run, 'teacher_kl')
    return page.tiles(
        [
            (
                'Accuracy',
                _percent(number(run, 'accuracy')),
                f'last epoch, {run.get("evaluated_on", "test")} set{apart}',
            ),
            ('Teacher', _percent(number(run, 'teacher', 'accuracy')), str(teacher_network(run))),
            ('Cost', _percent(number(run, 'cost', 'relative_processed')), samples),
            ('Time', _duration(number(run, 'seconds', 'total')), _device(run)),
            (
                'Agreement with the teacher',
                _percent(number(run, 'agreement')),
                f'KL {kl:.3f} nats' if kl is not None else '',
            ),
            ('Parameters', tables.quantity(number(run, 'parameters')), str(run.get('student'))),
        ]
    )


def _cost(run: Summary) -> str:
    macs = run.get('cost', {}).get('macs') or {}
    found = {_PASSES.get(key, key): number(macs, key) for key in macs}
    passes = {key: (value, f'{tables.quantity(value)} MAC') for key, value in found.items() if value is not None}
    times = {key: number(run, 'seconds', key) for key in _TIMES}
    known = {key: (value, _duration(value)) for key, value in times.items() if value is not None}
    total = number(run, 'seconds', 'total')
    other = total - sum(value for value, _ in known.values()) if total is not None else 0.0
    if other > 0.005 * (total or 1.0):
        known['everything else'] = (other, _duration(other))
    rows = [
        [
            name,
            *(
                tables.percent(v) if 'relative' in keys[0] else tables.quantity(v)
                for v in (number(run, 'cost', key) for key in keys)
            ),
        ]
        for name, keys in (
            ('of this run', ('scheduled_samples', 'processed_samples')),
            ('of training on everything', ('scheduled_full', 'processed_full')),
            ('relative (%)', ('relative_scheduled', 'relative_processed')),
        )
    ]
    about = ['Processed: without the last partial batch of an epoch, which is dropped.']
    relative = number(run, 'cost', 'relative_macs')
    if relative is not None:
        about.append(f'Multiply-accumulates: {_percent(relative)} of those of the same method on every point.')
        shares = [number(run, 'cost', 'computation', f'{way}_backward') for way in ('assumed', 'counted')]
        assumed, counted = (_percent(share) for share in shares)
        about.append(
            f'Computation of the networks (UNIX, Eq. 3 and 11): {assumed} with a backward pass that costs as '
            f'much as a forward one, {counted} as counted.'
        )
    if number(run, 'seconds', 'score'):
        about.append(
            'Time of the scoring passes: estimated, one timed alone at the end of the run, times their number.'
        )
    samples = page.card(page.grid(['samples', 'scheduled', 'processed'], rows, 'Samples'), page.notes(about))
    return page.cards(
        samples, page.shares('Multiply-accumulates by pass', passes), page.shares('Time by activity', known)
    )


def _condensations(run: Summary) -> str:
    records = run.get('condensations') or []
    if not records:
        return ''
    points = number(run, 'num_points')
    rows = []
    for record in records:
        kept = number(record, 'kept')
        share = f'{100 * kept / points:.2f}' if kept is not None and points else ''
        cells = [tables.quantity(number(record, key)) for key in ('epoch', 'kept', 'augmented', 'readmitted')]
        rows.append([f'{record.get("number", "")}/{record.get("of", "")}', *cells[:2], share, *cells[2:]])
    headers = ['stage', 'after epoch', 'kept', '% of all', 'augmented', 're-admitted']
    title = f'Condensations of {tables.quantity(points)} points'
    if len(rows) > LISTED:
        return page.details(title, page.grid(headers, rows))
    return page.card(page.grid(headers, rows, title))


def _configuration(run: Summary) -> str:
    config = run.get('config')
    if not isinstance(config, Mapping) or not config:
        return ''
    return page.details('All settings', page.pairs(names.flatten(config)))


def _reproduce(run: Summary) -> str:
    command = run.get('command')
    if isinstance(command, (list, tuple)):
        command = shlex.join(map(str, command))
    commit = run.get('commit')
    # A checkout with changes of its own is marked; what it had beyond its commit is not known.
    lines = [f'git checkout {str(commit).removesuffix("-dirty")}'] if commit else []
    # A module that was started with `python -m` stands there as its file.
    lines += [re.sub(r'^\S*/kcd_jax/(\w+)\.py\b', r'python -m kcd_jax.\1', str(command))] if command else []
    shown = f'<pre>{page.text(chr(10).join(lines))}</pre>' if lines else ''
    facts = {'commit': commit, 'device': _device(run), 'seed': run.get('seed'), 'python': run.get('python')}
    teacher = run.get('teacher')
    if isinstance(teacher, Mapping):
        for key in ('source', 'sha256'):
            facts[f'teacher: {key}'] = teacher.get(key)
    versions = run.get('versions')
    facts.update(versions if isinstance(versions, Mapping) else {})
    return page.card(shown, page.pairs({key: value for key, value in facts.items() if value not in (None, '')}))


def _values(run: Summary, pictures: _Pictures, prefix: str = '') -> str:
    folder = run_folder(run)
    drawn = drawings.values(run, read_stages(folder, drawings.MAX_STAGES) if folder else [])
    drawn += class_drawings.of_points(run, names.display_name(run['method'], run['policy']))
    return page.stack(page.cards(*(page.drawing(one, prefix) for one in drawn)), pictures.gallery(run))


# --------------------------------------------------------------------------------------------------------- the pages


def _run(run: Summary, pictures: _Pictures) -> tuple[str, str]:
    label = 'Teacher' if is_teacher(run) else names.display_name(run['method'], run['policy'])
    title = f'{label}: {_pair(run)}'
    curves = drawings.learning_curves(
        group_runs([run]) or [Group('teacher', label, [run], 'none', 'none')], number(run, 'teacher', 'accuracy')
    )
    history = drawings.condensation_history(run)
    training = [page.drawing(curves) if curves else '', _condensations(run), page.drawing(history) if history else '']
    body = [
        _head('run', title),
        _facts(run, str(run.get('dataset')), f'seed {run["seed"]}'),
        _tiles(run),
        page.section('Training', page.cards(*training)),
        page.section('Cost', _cost(run)),
        page.section('Value of the points', _values(run, pictures)),
        page.section('How to run it again', page.stack(_reproduce(run), _configuration(run))),
    ]
    return title, '\n'.join(part for part in body if part)


def _chosen(groups: Sequence[Group]) -> Group | None:
    """The row that the page is about: KC, else another policy's by value, else none."""
    selecting = [group for group in groups if group.policy not in ('none', 'random')]
    return next((group for group in selecting if group.name == 'kcd'), selecting[0] if selecting else None)


def _said(sample: Sample) -> str:
    pairs = f'over {sample.n} seeds' if sample.n > 1 else 'on one seed'
    return f'{tables.difference(sample).replace("-", chr(0x2212))} percentage points {pairs}'


def _findings(groups: Sequence[Group], chosen: Group | None) -> tuple[str, str]:
    """(sentence, tiles) about the chosen row against the reference and against a random choice of the same size."""
    by_chance = None
    if chosen is not None:
        by_chance = next((g for g in groups if g.name == 'random' and g.method == chosen.method), None)
    base = base_of(chosen, groups) if chosen else next((g for g in groups if g.name == 'kd'), None)
    sentences, entries = [], []
    about = chosen or base
    if about is not None:
        sample = about.sample('accuracy')
        spread = f'± {tables.percent(sample.sd)} (sd), n = {sample.n}' if sample.sd is not None else f'n = {sample.n}'
        entries.append((f'{about.label}, last epoch', _percent(sample.mean), spread))
    for other, words in ((base, 'training on everything'), (by_chance, 'a random choice of the same size')):
        if chosen is None or other is None or other is chosen:
            continue
        sample = paired_difference(chosen.by_seed('accuracy'), other.by_seed('accuracy'))
        if sample.mean is None:
            continue
        sentences.append(f'against {other.label} ({words}): {_said(sample)}')
        error = f'± {tables.percent(sample.standard_error)} (se)' if sample.standard_error is not None else ''
        note = f'{error}, {sample.n} pairs' if error else 'one pair, no error'
        entries.append((f'{chosen.label} − {other.label}', f'{100 * sample.mean:+.2f}'.replace('-', '−'), note))
    if about is not None:
        entries.append(('Cost', _percent(about.sample('cost', 'relative_processed').mean), 'samples processed, of all'))
        entries.append(('Time a run', _duration(about.sample('seconds', 'total').mean), _device(about.runs[0])))
    finding = (
        f'<p class="finding">{page.text(chosen.label)} {page.text("; ".join(sentences))}.</p>' if sentences else ''
    )
    if about is not None and about.sample('accuracy').n == 1:
        finding += '\n<p class="finding caution">One seed: no deviation can be given, and no claim rests on it.</p>'
    return finding, page.tiles(entries)


def _runs(summaries: Sequence[Summary], folder: Path) -> str:
    rows = []
    for run in sorted(summaries, key=lambda run: (is_teacher(run), run_name(run), run['seed'])):
        where = run_folder(run)
        name = str(where.relative_to(folder)) if where and where.is_relative_to(folder) else run_name(run)
        cells = [tables.percent(number(run, key)) for key in ('accuracy', 'best_accuracy')]
        cost = tables.percent(number(run, 'cost', 'relative_processed'))
        rows.append(
            [
                name,
                str(run['seed']),
                *cells,
                cost,
                tables.seconds(number(run, 'seconds', 'total')),
                str(run.get('commit') or '')[:10],
            ]
        )
    headers = ['run', 'seed', 'accuracy %', 'best %', 'cost %', 'seconds', 'commit']
    return page.details(f'All {len(rows)} runs', page.grid(headers, rows))


def _experiments(
    summaries: Sequence[Summary], pictures: _Pictures, folder: Path, damaged: Sequence[str]
) -> tuple[str, str]:
    parts = experiments(summaries)
    first = next((run for run in parts[0] if not is_teacher(run)), parts[0][0])
    title = f'{first.get("dataset")}: {_pair(next((run for run in parts[0] if teacher_network(run)), first))}'
    if len(parts) > 1:
        title = f'{len(parts)} experiments in {folder.resolve().name}'
    body = [_head('experiment', title)]
    body += [f'<p class="finding caution">Left out: {page.text(line)}</p>' for line in damaged]
    for place, part in enumerate(parts):
        prefix = f'e{place + 1}-' if len(parts) > 1 else ''
        if prefix:
            body.append(f'<h2>{page.text(describe_experiment(part))}</h2>')
        body.append(_experiment(part, pictures, folder, prefix))
    return title, '\n'.join(part for part in body if part)


# Which part of the page a figure belongs to; those that are not named belong to the training.
_PART = {
    name: part
    for part, names_of_part in (
        ('value', ('value_heat_map', 'value_histogram', 'hamming_distances', 'teacher_entropy_by_label')),
        ('classes', ('distance_to_centre', 'teacher_entropy', 'sampling_and_accuracy', 'sorted_class_accuracy')),
        ('classes', ('class_heat_map', 'correlation_difference')),
    )
    for name in names_of_part
}


def _experiment(summaries: Sequence[Summary], pictures: _Pictures, folder: Path, prefix: str) -> str:
    groups = group_runs(summaries)
    chosen = _chosen(groups)
    table = tables.experiment_table(summaries)
    finding, headline = _findings(groups, chosen)
    shown = drawings.shown_run(summaries)
    drawn = drawings.of_experiment(summaries)
    training, value, classes = (
        [page.drawing(one, prefix) for one in drawn if _PART.get(one.name, 'training') == part]
        for part in ('training', 'value', 'classes')
    )
    about = shown or next((run for run in summaries if teacher_network(run)), summaries[0])
    rows = [place for place, row in enumerate(table.rows) if chosen is not None and row[0] == chosen.label]
    seeds = len({run['seed'] for run in summaries if not is_teacher(run)})
    which = f'{names.display_name(about["method"], about["policy"])}, seed {about["seed"]}'
    body = [
        _facts(about, f'{seeds} seed{"s" if seeds != 1 else ""}'),
        finding,
        headline,
        page.section('Result', page.result_table(table, rows)),
        page.section('Training and cost', page.cards(*training, _condensations(shown) if shown else '')),
        page.section(f'Cost of one run: {which}', _cost(about)),
        page.section(
            f'Value of the points: {which}' if shown else '', page.stack(page.cards(*value), pictures.gallery(shown))
        )
        if shown
        else '',
        page.section('Classes', page.cards(*classes)) if classes else '',
        page.section(
            'How to run it again', page.stack(_reproduce(about), _configuration(about), _runs(summaries, folder))
        ),
    ]
    return '\n'.join(part for part in body if part)
