"""report.html: what a run or an experiment achieved, what it cost, and how to do it again, in one file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax.report import class_drawings, drawings, findings, names, page, parts, tables
from kcd_jax.report.groups import Group, group_runs, is_teacher, run_name, teacher_network
from kcd_jax.report.parts import Part
from kcd_jax.report.records import SUMMARY, collect, number, read_stages, run_folder

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
    reference: str = 'kd',
) -> Path:
    """Writes <folder>/report.html, one file that needs no network.

    Args:
      folder: a finished run (it holds summary.json), or a folder with such runs or with JSON files of results in it.
      images: u8[num_points, H, W, 3], the training images by point, for the gallery.
      labels: i32[num_points], their classes.
      class_names: [num_classes]; without it classes are called by their number.
      reference: the run that those of an experiment are compared with.

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
        title, body = _run(run, Pictures(images, labels, class_names))
    else:
        summaries = collect([folder], damaged)
        if not summaries:
            reason = f' ({damaged[0]})' if damaged else ''
            raise ValueError(f'no finished run under {folder}{reason}; a run leaves summary.json when it has finished')
        title, body = _many(parts.split(summaries, reference), Pictures(images, labels, class_names), folder, damaged)
    path = folder / NAME
    # Renamed into place, so that a reader never sees half a page.
    part = path.with_name(f'.{NAME}.part')
    part.write_text(page.document(title, body), encoding='utf-8')
    part.replace(path)
    return path


class Pictures:
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
        blocks = []
        titles = ('Most valued: the student is least sure of these', 'Least valued: the student has learnt these')
        for title, points in zip(titles, drawings.ranked_points(stage, SHOWN), strict=True):
            values = [f'{stage.value[point]:.3f} nats' for point in points]
            blocks.append(page.gallery(title, [self.images[p] for p in points], [self.name(p) for p in points], values))
        after = run['condensations'][-1]['epoch'] if run.get('condensations') else stage.number
        note = (
            f'Value: mean prediction entropy over all visits, as known at the last condensation, after epoch {after}.'
        )
        return page.card(*blocks, page.notes([note]))


# ------------------------------------------------------------------------------------------------------------ pieces


def _pair(run: Summary) -> str:
    teacher = teacher_network(run)
    return f'{teacher} → {run.get("student")}' if teacher else str(run.get('student'))


def _facts(run: Summary, *more: str) -> str:
    facts = [*more, f'{run.get("epochs")} epochs', f'batch {run.get("batch")}', findings.device(run)]
    return f'<p class="lead">{page.text(" · ".join(fact for fact in facts if fact))}</p>'


def _head(kind: str, title: str) -> str:
    return f'<header>\n<p class="eyebrow">kcd_jax · {kind}</p>\n<h1>{page.text(title)}</h1>\n</header>'


def _tiles(run: Summary) -> str:
    best = number(run, 'best_accuracy')
    at = number(run, 'best_epoch')
    apart = (
        f'; best {findings.percent(best)}' + (f' (epoch {at:.0f})' if at is not None else '')
        if best is not None
        else ''
    )
    processed, full = number(run, 'cost', 'processed_samples'), number(run, 'cost', 'processed_full')
    samples = f'{tables.quantity(processed)} of {tables.quantity(full)} samples' if processed and full else ''
    kl = number(run, 'teacher_kl')
    return page.tiles(
        [
            (
                'Accuracy',
                findings.percent(number(run, 'accuracy')),
                f'last epoch, {run.get("evaluated_on", "test")} set{apart}',
            ),
            ('Teacher', findings.percent(number(run, 'teacher', 'accuracy')), str(teacher_network(run))),
            ('Cost', findings.percent(number(run, 'cost', 'relative_processed')), samples),
            ('Time', findings.duration(number(run, 'seconds', 'total')), findings.device(run)),
            (
                'Agreement with the teacher',
                findings.percent(number(run, 'agreement')),
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
    known = {key: (value, findings.duration(value)) for key, value in times.items() if value is not None}
    total = number(run, 'seconds', 'total')
    other = total - sum(value for value, _ in known.values()) if total is not None else 0.0
    if other > 0.005 * (total or 1.0):
        known['everything else'] = (other, findings.duration(other))
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
        about.append(f'Multiply-accumulates: {findings.percent(relative)} of those of the same method on every point.')
        shares = [number(run, 'cost', 'computation', f'{way}_backward') for way in ('assumed', 'counted')]
        assumed, counted = (findings.percent(share) for share in shares)
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
    facts = {'commit': commit, 'device': findings.device(run), 'seed': run.get('seed'), 'python': run.get('python')}
    teacher = run.get('teacher')
    if isinstance(teacher, Mapping):
        for key in ('source', 'sha256'):
            facts[f'teacher: {key}'] = teacher.get(key)
    versions = run.get('versions')
    facts.update(versions if isinstance(versions, Mapping) else {})
    return page.card(shown, page.pairs({key: value for key, value in facts.items() if value not in (None, '')}))


def _values(run: Summary, pictures: Pictures, prefix: str = '') -> str:
    folder = run_folder(run)
    drawn = drawings.values(run, read_stages(folder, drawings.MAX_STAGES) if folder else [])
    drawn += class_drawings.of_points(run, names.display_name(run['method'], run['policy']))
    return page.stack(page.cards(*(page.drawing(one, prefix) for one in drawn)), pictures.gallery(run))


# --------------------------------------------------------------------------------------------------------- the pages


def _run(run: Summary, pictures: Pictures) -> tuple[str, str]:
    label = 'Teacher' if is_teacher(run) else names.display_name(run['method'], run['policy'])
    title = f'{label}: {_pair(run)}'
    curves = drawings.learning_curves(
        group_runs([run]) or [Group('teacher', label, [run], 'none', 'none')], number(run, 'teacher', 'accuracy')
    )
    history = drawings.condensation_history(run)
    losses = drawings.kr_convergence(group_runs([run]))
    drawn = [page.drawing(one) if one else '' for one in (curves, losses, history)]
    training = [*drawn[:2], _condensations(run), drawn[2]]
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


def _many(found: Sequence[Part], pictures: Pictures, folder: Path, damaged: Sequence[str]) -> tuple[str, str]:
    kinds = {'sweep' if part.sweep else 'experiment' for part in found}
    kind = kinds.pop() if len(kinds) == 1 else 'table'
    title = f'{len(found)} {kind}s in {folder.resolve().name}'
    if len(found) == 1:
        runs = [run for run in found[0].runs if not is_teacher(run)] or found[0].runs
        named = next((run for run in runs if teacher_network(run)), runs[0])
        title = page.arrows(found[0].title) if found[0].sweep else f'{named.get("dataset")}: {_pair(named)}'
    body = [_head(kind, title)]
    body += [f'<p class="finding caution">Left out: {page.text(line)}</p>' for line in damaged]
    for place, part in enumerate(found):
        prefix = f'e{place + 1}-' if len(found) > 1 else ''
        if prefix:
            body.append(f'<h2 class="part">{page.text(page.arrows(part.title))}</h2>')
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


def _experiment(part: Part, pictures: Pictures, folder: Path, prefix: str) -> str:
    summaries = part.runs
    finding, headline = findings.found(part)
    shown = None if part.sweep else drawings.shown_run(summaries)
    drawn = part.draw()
    training, value, classes = (
        [page.drawing(one, prefix) for one in drawn if _PART.get(one.name, 'training') == where]
        for where in ('training', 'value', 'classes')
    )
    plain = [run for run in summaries if (run['method'], run['policy']) == ('kd', 'none')]
    about = shown or next((run for run in (*plain, *summaries) if teacher_network(run)), summaries[0])
    seeds = len({run['seed'] for run in summaries if not is_teacher(run)})
    which = f'{names.display_name(about["method"], about["policy"])}, seed {about["seed"]}'
    body = [
        _facts(about, f'{seeds} seed{"s" if seeds != 1 else ""}'),
        finding,
        headline,
        page.section('Result', page.result_table(part.table, findings.marked(part))),
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
