"""A sweep's table and figure, from results alone."""

from __future__ import annotations

import json

import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import drawings, sweeps, tables
from tests.report.runs import make_summary

# A row's multiply-accumulates in thousands, its policy, and its accuracies by seed.
ROWS = {
    'Student alone': (700, 'none', (0.70, 0.72)),
    'KD': (7000, 'none', (0.80, 0.82)),
    'Random KD, 60 %': (4200, 'random', (0.78, 0.79)),
    'KC-KD, 60 %': (4270, 'kcd', (0.79, 0.81)),
    'Random KD, 80 %': (5600, 'random', (0.79, 0.80)),
    'KC-KD, 80 %': (5600, 'kcd', (0.80, 0.83)),
}


def card(label, place, pair=''):
    return {
        'sweep': 'mine', 'title': 'My sweep', 'label': label, 'pair': pair, 'place': place, 'group': '',
        'references': ['KD', 'Random KD'],
    }  # fmt: skip


def results(pair='', student='resnet8', alone=True):
    found = []
    for place, (label, (macs, policy, accuracies)) in enumerate(ROWS.items()):
        for seed, accuracy in enumerate(accuracies):
            name = 'student' if place == 0 else 'kd' if policy == 'none' else policy
            run = make_summary(name, seed, accuracy, student=student, cell=card(label, place, pair))
            run['cost'] = {**run['cost'], 'macs': {'teacher_forward': 1000 * macs}}
            found += [run] if place or alone else []
    return found


def cells_of(table, header):
    return {row[0]: row[table.headers.index(header)] for row in table.rows}


def test_by_hand():
    (table,) = sweeps.sweep_tables(results()[::-1])
    assert [row[0] for row in table.rows] == list(ROWS), "the sweep's own order"
    assert cells_of(table, 'accuracy %')['KD'] == '81.00 ± 1.41'
    # KC-KD, 60 % against KD: -1, -1; against Random KD, 60 %: +1, +2, standard error 0.5.
    assert cells_of(table, 'vs KD')['KC-KD, 60 %'] == '-1.00 ± 0.00'
    assert cells_of(table, 'vs Random KD')['KC-KD, 60 %'] == '+1.50 ± 0.50'
    assert cells_of(table, 'vs Random KD')['KC-KD, 80 %'] == '+2.00 ± 1.00'
    assert cells_of(table, 'vs Random KD')['KD'] == '', 'there is none of its budget'
    assert list(cells_of(table, 'cost %').values()) == ['10.00', '100.00', '60.00', '61.00', '80.00', '80.00']
    assert any('of the same budget' in note for note in table.notes)
    record = next(one for one in table.records if one['run'] == 'KC-KD, 60 %')
    assert record['vs Random KD'] == pytest.approx(1.5) and record['vs Random KD se'] == pytest.approx(0.5)


def test_what_has_not_finished_is_empty():
    cards = [card(label, place) for place, label in enumerate(ROWS)]
    some = [run for run in results() if run['cell']['label'] in ('KD', 'KC-KD, 80 %')]
    (table,) = sweeps.sweep_tables(some, cards)
    for row in table.rows:
        assert any(row[1:]) == (row[0] in ('KD', 'KC-KD, 80 %'))
    assert table.notes[-1] == 'Empty: not finished.'
    (nothing,) = sweeps.sweep_tables([], cards)
    assert [row[0] for row in nothing.rows] == list(ROWS) and not any(any(row[1:]) for row in nothing.rows)


def test_without_counted_products_cost_is_of_samples():
    runs = results()
    for run in runs:
        del run['cost']['macs']
    (table,) = sweeps.sweep_tables(runs)
    assert cells_of(table, 'cost %')['KC-KD, 60 %'] == '81.71'
    assert any(note.startswith('cost: samples processed') for note in table.notes)


def test_a_student_is_in_the_tables_of_all_its_pairs():
    runs = results('a-resnet8') + results('b-resnet8', alone=False) + results('a-resnet14', 'resnet14', alone=False)
    first, second, third = sweeps.sweep_tables(runs)
    assert cells_of(first, 'accuracy %')['Student alone'] == cells_of(second, 'accuracy %')['Student alone'] != ''
    assert 'Student alone' not in cells_of(third, 'accuracy %')


def test_the_teacher_comes_first():
    teacher = make_summary('teacher', 1000, 0.93, student='resnet20', cell=card('Teacher', -1))
    other = make_summary('teacher', 1000, 0.95, student='resnet56', cell=card('Teacher', -1))
    (table,) = sweeps.sweep_tables([other, teacher, *results()])
    assert table.rows[0][:2] == ['Teacher', '93.00']


def test_a_seed_twice_is_refused():
    with pytest.raises(ValueError, match="row 'Student alone' has seed 0 twice"):
        sweeps.sweep_tables([*results(), results()[0]])


def test_the_figure_shows_the_table():
    (drawn,) = drawings.of_sweep(sweeps.sweep_groups(results()))
    (axes,) = drawn.figure.axes
    shown = {container.get_label(): container for container in axes.containers}
    assert list(shown) == ['KD', 'Random KD', 'KC-KD'], 'the student alone has another kind of cost'
    data, _, (bars,) = shown['KC-KD']
    assert list(data.get_ydata()) == pytest.approx([80.0, 81.5])
    # Two lines, one percent of cost apart.
    assert list(data.get_xdata()) == pytest.approx([61.5, 80.5])
    assert list(shown['Random KD'][0].get_xdata()) == pytest.approx([59.5, 79.5])
    assert list(shown['KD'][0].get_xdata()) == pytest.approx([100.0])
    (low, high), *_ = [segment[:, 1] for segment in bars.get_segments()]
    assert high - low == pytest.approx(2 * 100 * 0.02 / 2**0.5), 'one sample standard deviation to each side'
    assert 'multiply-accumulates' in axes.get_xlabel() and axes.get_ylabel() == 'accuracy (%)'
    assert 'KC-KD, 60 % 80.00 % at 61.0 %' in drawn.alt


def test_command_line(tmp_path, capsys):
    folder = tmp_path / 'mine'
    folder.mkdir()
    for place, run in enumerate(results()):
        (folder / f'{place}.json').write_text(json.dumps(run))
    assert main(['table', str(folder), '--format=markdown']) == 0
    assert capsys.readouterr().out.startswith('**My sweep (digits: resnet20 -> resnet8, 6 epochs)**')
    assert main(['figures', str(folder), f'--folder={tmp_path / "figures"}']) == 0
    assert (tmp_path / 'figures' / 'accuracy_against_cost.png').stat().st_size > 10_000
    (other,) = [make_summary('kd', 0, 0.7)]
    both = sweeps.all_tables([*tables.collect([folder]), other])
    assert [table.title for table in both] == ['My sweep (digits: resnet20 -> resnet8, 6 epochs)',
                                               'digits: resnet20 -> resnet8, 6 epochs']  # fmt: skip
