"""The table of a sweep: its rows in its own order and under its own names, compared with the rows that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kcd_jax.report.groups import (
    Group,
    Summary,
    describe_experiment,
    is_teacher,
    refuse_twice,
    run_name,
    teacher_network,
    total_macs,
)
from kcd_jax.report.records import number
from kcd_jax.report.statistics import Sample, describe, paired_difference
from kcd_jax.report.tables import Table, difference, experiment_tables, percent, quantity, seconds, with_sd

Card = Mapping[str, Any]


def card_of(summary: Summary) -> Card | None:
    """What a result says of its place in a sweep; None for other runs."""
    card = summary.get('cell')
    return card if isinstance(card, Mapping) else None


def relative_cost(group: Group, base: Group | None) -> Sample:
    """Multiply-accumulates of a row's runs over those of the base row; of samples where none were counted."""
    full = describe(total_macs(run) for run in base.runs).mean if base else None
    if full is None:
        return group.sample('cost', 'relative_processed')
    counted = (total_macs(run) for run in group.runs)
    return describe(None if macs is None else macs / full for macs in counted)


def sweep_groups(summaries: Sequence[Summary], expected: Sequence[Card] = ()) -> list[Group]:
    """The rows of one pair's table, in the sweep's order.

    Args:
      summaries: results of one sweep and pair. expected: cards of rows to be listed even before a run has finished.

    Raises:
      ValueError: a seed occurs twice in a row.
    """
    runs: dict[str, list[Summary]] = {card['label']: [] for card in expected}
    places = {card['label']: card['place'] for card in expected}
    for summary in summaries:
        card = card_of(summary)
        runs.setdefault(card['label'], []).append(summary)
        places[card['label']] = card['place']
    groups = []
    for label in sorted(runs, key=places.get):
        found = sorted(runs[label], key=lambda run: run['seed'])
        refuse_twice(f'row {label!r}', found)
        method, policy = (found[0]['method'], found[0]['policy']) if found else ('', '')
        groups.append(Group(run_name(found[0]) if found else label, label, found, method, policy))
    return groups


def reference_of(group: Group, groups: Sequence[Group], reference: str) -> Group | None:
    """The row that a row is compared with: `reference` at the row's own budget ('KC-KD, 60 %' with 'Random KD, 60 %').

    Where there is no such row, the row called `reference`; None for the reference itself, and where it is missing.
    """
    _, comma, budget = group.label.rpartition(', ')
    by_label = {other.label: other for other in groups}
    base = by_label.get(f'{reference}, {budget}') if comma else None
    base = base or by_label.get(reference)
    return None if base is group else base


def whole_of(groups: Sequence[Group], card: Card) -> Group | None:
    """The row that costs 100 %: the sweep's first reference."""
    return next((group for group in groups if group.label == card['references'][0]), None)


def counts_macs(whole: Group | None) -> bool:
    """Whether costs are multiply-accumulates; else they are samples."""
    return whole is not None and any(total_macs(run) is not None for run in whole.runs)


def by_pair(summaries: Sequence[Summary], expected: Sequence[Card] = ()) -> dict[tuple[str, str], list[Summary]]:
    """{(sweep, pair): its runs}; runs of no sweep are left out. A student alone joins every pair with its network."""
    own = [summary for summary in summaries if card_of(summary) and not is_teacher(summary)]
    parts: dict[tuple[str, str], list[Summary]] = {(card['sweep'], card['pair']): [] for card in expected}
    for summary in own:
        parts.setdefault((card_of(summary)['sweep'], card_of(summary)['pair']), []).append(summary)
    alone = [run for run in own if run['method'] == 'none']
    for (sweep, pair), runs in parts.items():
        students = {run['student'] for run in runs}
        for run in alone:
            card = card_of(run)
            if card['sweep'] == sweep and card['pair'] != pair and run['student'] in students:
                runs.append(run)
    return parts


def sweep_table(summaries: Sequence[Summary], expected: Sequence[Card] = (), teacher: Summary | None = None) -> Table:
    """The table of one sweep on one pair; a cell for which nothing was measured is empty.

    Args:
      summaries, expected: as `sweep_groups`. teacher: its own training.
    """
    cards = [card_of(summary) for summary in summaries] + list(expected)
    groups = sweep_groups(summaries, expected)
    references = [name for name in cards[0]['references'] if any(reference_of(g, groups, name) for g in groups)]

    def paired(group: Group, reference: str) -> Sample:
        base = reference_of(group, groups, reference)
        return describe([]) if base is None else paired_difference(group.by_seed('accuracy'), base.by_seed('accuracy'))

    whole = whole_of(groups, cards[0])

    def cost(group: Group) -> float | None:
        return relative_cost(group, whole).mean

    headers = ['run', 'accuracy %', 'n', *(f'vs {name}' for name in references)]
    headers += ['best %', 'cost %', 'samples', 'seconds', 'agree %']
    rows, records = [], []
    for group in groups:
        accuracy, best = group.sample('accuracy'), group.sample('best_accuracy')
        samples = group.sample('cost', 'processed_samples').mean
        total = group.sample('seconds', 'total').mean
        agreement = group.sample('agreement').mean
        differences = {name: paired(group, name) for name in references}
        cells = [with_sd(accuracy), str(accuracy.n or ''), *(difference(one) for one in differences.values())]
        cells += [percent(best.mean), percent(cost(group)), quantity(samples), seconds(total), percent(agreement)]
        rows.append([group.label, *cells])
        record = {
            'run': group.label,
            'method': group.method,
            'policy': group.policy,
            'accuracy_mean': _pct(accuracy.mean),
            'accuracy_sd': _pct(accuracy.sd),
            'n': accuracy.n,
        }
        for name, sample in differences.items():
            record |= {f'vs {name}': _pct(sample.mean), f'vs {name} se': _pct(sample.standard_error)}
        record |= {
            'best_mean': _pct(best.mean),
            'relative_cost': cost(group),
            'samples': samples,
            'seconds': total,
            'agreement_mean': _pct(agreement),
            'seeds': ' '.join(str(run['seed']) for run in group.runs),
        }
        records.append(record)
    if teacher is not None:
        shown = {
            'accuracy %': percent(number(teacher, 'accuracy')),
            'best %': percent(number(teacher, 'best_accuracy')),
            'samples': quantity(number(teacher, 'cost', 'processed_samples')),
            'seconds': seconds(number(teacher, 'seconds', 'total')),
        }
        rows.insert(0, ['Teacher', *(shown.get(header, '') for header in headers[1:])])
    title = cards[0]['title']
    if summaries:
        title += f' ({describe_experiment(summaries)})'
    return Table(title, headers, rows, records, _notes(groups, references, whole))


def _pct(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _notes(groups: Sequence[Group], references: Sequence[str], whole: Group | None) -> list[str]:
    cost = 'cost: samples processed, of training on everything.'
    if counts_macs(whole):
        cost = f'cost: multiply-accumulates of every pass of the training, scoring included, relative to {whole.label}.'
    notes = [
        'accuracy: last epoch, test set; mean ± sample standard deviation over n seeds; best epoch apart.',
        cost,
    ]
    if references:
        named = ' and '.join(references)
        shared = any(group.label.startswith(f'{name}, ') for group in groups for name in references)
        budgets = ' (of the same budget where there is one)' if shared else ''
        notes.append(f'vs {named}{budgets}: mean paired difference over shared seeds, in points, ± its standard error.')
    if any(not group.runs for group in groups):
        notes.append('Empty: not finished.')
    return notes


def teacher_of(summaries: Sequence[Summary], sweep: str, runs: Sequence[Summary]) -> Summary | None:
    """The training of the teacher of some runs of a sweep, where it is among the summaries."""
    networks = {teacher_network(run) for run in runs} - {None}
    teachers = (summary for summary in summaries if is_teacher(summary) and card_of(summary))
    return next((one for one in teachers if card_of(one)['sweep'] == sweep and one['student'] in networks), None)


def sweep_tables(summaries: Sequence[Summary], expected: Sequence[Card] = ()) -> list[Table]:
    """A table of each sweep and pair among the summaries; runs of no sweep are left out.

    Args:
      summaries: results, the teachers' own among them. expected: cards of rows to be listed before they have finished.
    """
    found = []
    for (sweep, pair), runs in by_pair(summaries, expected).items():
        cards = [card for card in expected if (card['sweep'], card['pair']) == (sweep, pair)]
        found.append(sweep_table(runs, cards, teacher_of(summaries, sweep, runs)))
    return found


def all_tables(summaries: Sequence[Summary], reference: str = 'kd') -> list[Table]:
    """The tables of the sweeps among the summaries, and of the experiments among the others (see `tables`)."""
    others = [summary for summary in summaries if not card_of(summary)]
    return sweep_tables(summaries) + experiment_tables(others, reference)
