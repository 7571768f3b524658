"""report.html: results, cost and provenance of a run or of several, in one file that needs no network.

The template `page.html` decides what the page says; this module gives it the summaries, tables and drawings.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from kcd_jax.report import drawings, names, style, tables
from kcd_jax.report.comparisons import Comparison, Row, Summary, is_teacher, run_name, split, teacher_network
from kcd_jax.report.drawings import Pictures
from kcd_jax.report.records import SUMMARY, Files, collect, number, run_folder, to_csv
from kcd_jax.runtime import descriptions, files

NAME, DATA = 'report.html', 'report.csv'
_METADATA = {'Date': None, 'Creator': None, 'Format': None, 'Type': None}
# Figures of the section on training; all others are about points and classes.
_TRAINING = (
    'learning_curves', 'training_curves', 'accuracy_against_cost', 'accuracy_against_ratio', 'condensation_history',
)  # fmt: skip


def write(
    folder: str | os.PathLike[str],
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    reference: str = 'kd',
    problems: list[str] | None = None,
) -> Path:
    """Writes <folder>/report.html, and the raw numbers of its runs as <folder>/report.csv.

    Args:
      folder: a finished run (it holds summary.json), or a folder with such runs or with JSON files of results in it.
      images: u8[num_points, H, W, 3], the training images by point, for the gallery.
      labels: i32[num_points], their classes.
      class_names: [num_classes]; without it classes are called by their number.
      reference: the row that the others of an experiment are compared with.
      problems: receives one line for each damaged or missing file; the page names them too.

    Returns:
      The path of the page.

    Raises:
      ValueError: no run under `folder` has finished, or `images` or `labels` are not those of the run's points.
    """
    folder = Path(folder)
    problems, read = [] if problems is None else problems, Files()
    pictures = None if images is None else Pictures(images, labels, class_names)
    if (folder / SUMMARY).is_file():
        summaries = collect([folder / SUMMARY])
        kind, parts = 'run', [_run(summaries[0], pictures, read)]
    else:
        summaries = collect([folder], problems)
        if not summaries:
            reason = f' ({problems[0]})' if problems else ''
            raise ValueError(f'no finished run under {folder}{reason}; a run leaves summary.json when it has finished')
        comparisons = split(summaries, reference)
        kinds = {'sweep' if one.sweep else 'experiment' for one in comparisons}
        kind = kinds.pop() if len(kinds) == 1 else 'table'
        parts = [_comparison(one, pictures, folder, read) for one in comparisons]
    title = parts[0]['title'] if len(parts) == 1 else f'{len(parts)} {kind}s in {folder.resolve().name}'
    problems += read.problems
    files.write_text(folder / DATA, to_csv(run_records(summaries, folder)))
    files.write_text(folder / NAME, _render(kind=kind, title=title, parts=parts, problems=problems))
    return folder / NAME


def _run(run: Summary, pictures: Pictures | None, read: Files) -> dict[str, Any]:
    label = 'Teacher' if is_teacher(run) else names.display_name(run['method'], run['policy'])
    networks = [network for network in (teacher_network(run), run.get('student')) if network]
    return {
        'title': f'{label}: {" → ".join(networks)}',
        'run': run,
        'drawn': drawings.of_run(run, read, pictures),
        'condensed': run,
    }


def _comparison(comparison: Comparison, pictures: Pictures | None, folder: Path, read: Files) -> dict[str, Any]:
    row, shown, runs = _selected_row(comparison), drawings.shown_run(comparison), comparison.runs
    plain = [one for one in comparison.rows if one.runs and (one.method, one.policy) == ('kd', 'none')]
    taught = [one for one in comparison.rows if one.runs and one.method != 'none']
    about = row or next(iter(plain + taught), None)
    return {
        'title': comparison.title.replace('->', '→'),
        'run': shown or (about.runs[0] if about else runs[0]),
        'seeds': len({run['seed'] for run in runs if not is_teacher(run)}),
        'table': tables.comparison_table(comparison),
        'selected': row,
        'measure': comparison.measure,
        'about': about,
        'findings': _findings(comparison, row) if row else '',
        'drawn': drawings.of_comparison(comparison, read, pictures),
        'condensed': shown,
        'records': run_records(runs, folder),
    }


def _selected_row(comparison: Comparison) -> Row | None:
    """The row that a page is about: KC, or another policy's; None in a sweep, which is about all of its rows."""
    selecting = [row for row in comparison.rows if row.policy not in ('none', 'random') and not comparison.sweep]
    return next((row for row in selecting if row.name == 'kcd'), selecting[0] if selecting else None)


def _findings(comparison: Comparison, row: Row) -> str:
    """The main result in one sentence."""
    by_chance = next((one for one in comparison.rows if one.name == 'random' and one.method == row.method), None)
    whole = comparison.base(row)
    if whole is by_chance:  # the table compares with chance; the sentence compares with both
        whole = comparison.base(row, 'kd')
    said, of = [], '' if comparison.measure == 'accuracy' else f' of {comparison.measure}'
    for other, words in (
        (whole, 'training on every point'),
        (by_chance, 'a random selection of the same size'),
    ):
        sample = row.difference(other, comparison.measure)
        if sample.mean is not None:
            gap, _, interval = re.sub(r'-(?=\d)', '\N{MINUS SIGN}', tables.difference(sample)).partition(' ')
            over = f'over {sample.n} seeds, 95 % interval {interval}' if interval else 'on one seed'
            said.append(f'against {other.label} ({words}): {gap} percentage points{of} {over}')
    return f'{row.label} {"; ".join(said)}.' if said else ''


def run_records(summaries: Sequence[Summary], folder: Path) -> list[dict[str, Any]]:
    """One mapping of raw numbers per run, sorted: fractions, seconds and counts."""
    records = []
    for run in sorted(summaries, key=lambda run: (is_teacher(run), run_name(run), run['seed'])):
        where = run_folder(run)
        inside = where is not None and where.is_relative_to(folder) and where != folder
        keys = ('accuracy', 'best_accuracy', 'loss', 'agreement', 'teacher_kl', 'cosine', 'knn_accuracy')
        cost = ('relative_processed', 'relative_macs', 'processed_samples')
        records.append(
            {
                'run': str(where.relative_to(folder)) if inside else run_name(run),
                **{key: run[key] for key in ('method', 'policy', 'seed')},
                **{key: number(run, key) for key in keys},
                **{key: number(run, 'cost', key) for key in cost},
                'seconds': number(run, 'seconds', 'total'),
                'commit': str(run.get('commit') or ''),
            }
        )
    return records


def _reproduce(run: Summary) -> str:
    """The commands that repeat a run."""
    command, commit = run.get('command') or '', run.get('commit')
    command = shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command)
    # '-dirty' marks a checkout with uncommitted changes, which are not recorded.
    checkout = f'git checkout {str(commit).removesuffix("-dirty")}' if commit else ''
    # A module started with `python -m` is recorded as its file.
    command = re.sub(r'^\S*/kcd_jax/(\w+)\.py\b', r'python -m kcd_jax.\1', command)
    return f'{checkout}\n{command}'.strip()


def _render(parts: Sequence[dict[str, Any]], **words: Any) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    filters = (tables.percent, tables.percentage, tables.quantity, tables.duration, tables.seconds, tables.device)
    environment.filters.update({one.__name__: one for one in (*filters, tables.with_sd, drawings.label_of)})
    environment.filters.update(reproduce=_reproduce, flatten=descriptions.flatten, teacher_network=teacher_network)
    environment.globals.update(number=number)
    for place, part in enumerate(parts):
        prefix = f'e{place + 1}-' if len(parts) > 1 else ''
        found = [(drawn, f'{prefix}{drawn.name}') for drawn in part['drawn']]
        figures = [(drawn, name, svg(drawn.figure, name, drawn.alt)) for drawn, name in found]
        part['training'] = [figure for figure in figures if figure[0].name in _TRAINING]
        part['points'] = [figure for figure in figures if figure[0].name not in _TRAINING]
    css = (here / 'page.css').read_text(encoding='utf-8')
    return environment.get_template('page.html').render(parts=parts, style=css, **words) + '\n'


def svg(figure: matplotlib.figure.Figure, prefix: str, alt: str) -> str:
    """A figure as an <svg> element inside a page.

    Its ink and grid take the page's colours, its text the page's font, and its ids begin with `prefix`, so that several
    fit on one page.
    """
    out = io.StringIO()
    # The salt makes the ids, and so the whole page, the same for the same data.
    with matplotlib.rc_context({**style.STYLE, 'svg.hashsalt': prefix}):
        figure.savefig(out, format='svg', transparent=True, metadata=_METADATA, dpi=200)
    source = out.getvalue()
    source = source[source.index('<svg') :]
    source = re.sub(r'<metadata>.*?</metadata>', '', source, flags=re.DOTALL)
    source = re.sub(r'\bid="', f'id="{prefix}-', source)
    source = re.sub(r'url\(#', f'url(#{prefix}-', source)
    source = re.sub(r'href="#', f'href="#{prefix}-', source)
    source = re.sub(r"(font: [^'\"]*)'[^;\"]*", r'\1var(--sans)', source)
    source = source.replace(style.INK, 'var(--ink)').replace(style.GRID, 'var(--grid)')
    # The element's own size would override the page's width.
    source = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', source, count=1)
    source = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', source, count=1)
    # The words are escaped by hand: the element enters the template as it is.
    words = str(jinja2.utils.markupsafe.escape(alt))
    return source.replace('<svg', f'<svg role="img" aria-label="{words}"', 1).strip()
