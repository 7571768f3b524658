from __future__ import annotations

import csv
import io

import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import paper_results, papers
from kcd_jax.report.papers import Cell, parse_cell, parse_table
from tests.report.runs import make_summary, write_run

KD = {'gamma': 0.1, 'alpha': 0.9, 'beta': 0.0, 'temperature': 4.0}
KCD = {
    'name': 'kcd', 'preset': 'paper', 'ratio': 0.7, 'stages': 6, 'alpha': 0.03, 'epsilon_max': 0.3, 'schedule': '',
    'first': '', 'dropped': '', 'ranking': 'value', 'records': 'mean', 'augment': 'low', 'epsilon': 'ramp',
    'value': 'entropy',
}  # fmt: skip


def run(name, seed, accuracy, *, policy=None, weights=KD, epochs=240, **more):
    """A run of CIFAR-100, wrn_40_2 -> wrn_16_2."""
    if policy is None:
        policy = KCD if name == 'kcd' else {'name': 'none' if name in ('kd', 'student') else name}
    described = {'recipe': {'epochs': epochs}, 'weights': weights, 'policy': policy, 'data': {'num_points': 0}}
    keys = {'dataset': 'cifar100', 'student': 'wrn_16_2', 'teacher': 'wrn_40_2', 'epochs': epochs, 'batch': 64}
    return make_summary(name, seed, accuracy, **{**keys, 'run': described, **more})


def row(table, label, column='W40-2→W16-2'):
    (found,) = [cells for cells in table.rows if cells[0] == label]
    return found[table.headers.index(column)]


def test_printed_cells_are_parsed():
    assert parse_cell('75.25(75.31)') == Cell(75.25, 75.31) and parse_cell('-') is None
    assert parse_cell('75.69?(94.06)') == Cell(75.69, 94.06, True) and parse_cell('73.26?') == Cell(73.26, None, True)


def test_every_table_is_complete():
    assert [name for name in papers.TABLES if name.startswith('kcd')] == [f'kcd_table{n}' for n in range(1, 8)]
    assert [name for name in papers.TABLES if name.startswith('unix')] == [f'unix_table{n}' for n in range(1, 9)]
    assert [name for name in papers.TABLES if name.startswith('kr')] == [f'kr_table{n}' for n in range(1, 5)]
    # Rows x columns - gaps of each table; counted in the papers.
    cells = {
        'kcd_table1': 17 * 11 - 1, 'kcd_table2': 24, 'kcd_table3': 24, 'kcd_table4': 24, 'kcd_table5': 12,
        'kcd_table6': 12, 'kcd_table7': 12, 'unix_table1': 30, 'unix_table2': 30, 'unix_table3': 14,
        'unix_table4': 10, 'unix_table5': 70, 'unix_table6': 8, 'unix_table7': 24, 'unix_table8': 22,
        'kr_table1': 18, 'kr_table2': 16, 'kr_table3': 14, 'kr_table4': 16,
    }  # fmt: skip
    for name, table in papers.TABLES.items():
        found = [cell for line in table.rows for cell in line.cells if cell is not None]
        assert len(found) == cells[name], name
        labels = [line.label for line in table.rows]
        assert len(set(labels)) == len(labels)
        if any(cell.doubtful for cell in found):
            assert table.notes


def test_printed_numbers_agree_with_the_text_of_the_papers():
    """Differences and means printed in the text follow from the cells."""
    first = {line.label: [cell and cell.value for cell in line.cells] for line in papers.TABLES['kcd_table1'].rows}
    gains = [round(kc - kd, 2) for kc, kd in zip(first['KC-KD'], first['KD'], strict=True)]
    assert gains == [0.78, 0.30, 0.09, 0.72, 0.46, 1.24, 0.59, 0.60, 0.26, 0.74, 0.77]
    gains = [round(kc - crd, 2) for kc, crd in zip(first['KC-CRD'], first['CRD (= CRD+KD)'], strict=True)]
    assert gains == [0.29, 0.22, 0.48, 0.32, 0.09, -0.04, 0.28, -0.09, 0.62, 0.39, 0.13]
    for line in papers.TABLES['unix_table5'].rows:
        *cells, mean = (cell.value for cell in line.cells)
        assert sum(cells) / 6 == pytest.approx(mean, abs=0.0051), line.label
    # Computation (k R + N + 2 k) / (N R + 2 N) from the printed R, within the last digit but two.
    table = {line.label: line.cells for line in papers.TABLES['unix_table1'].rows}
    for r, cell in zip(table['F_t/F_s'], table['UNIXKD, k = 48'], strict=True):
        assert 100 * (48 * r.value + 64 + 96) / (64 * r.value + 128) == pytest.approx(cell.cost, abs=0.03)


def test_ours_next_to_the_papers():
    runs = [run('kd', seed, accuracy) for seed, accuracy in enumerate((0.74, 0.75, 0.76))]
    runs += [run('kcd', seed, accuracy) for seed, accuracy in enumerate((0.755, 0.765))]
    runs += [run('student', 0, 0.73)]
    table = paper_results.paper_table('kcd_table1', runs)
    assert row(table, 'Teacher') == '93.12 (1)' and row(table, 'Teacher, difference') == '+17.51'
    assert row(table, 'Student') == '73.00 (1)' and row(table, 'Student, paper') == '73.26'
    assert row(table, 'KD') == '75.00 ± 1.00 (3)' and row(table, 'KD, difference') == '+0.08'
    assert row(table, 'KC-KD') == '76.00 ± 0.71 (2)' and row(table, 'KC-KD, difference') == '+0.30'
    assert row(table, 'KC-KD, cost % (paper)') == '81.71'
    # 75.5 - 74 and 76.5 - 75 of the two seeds that both have.
    assert row(table, 'KC-KD, gain (paper)') == '+1.50 [+1.50, +1.50] (+0.78)'
    assert row(table, 'KC-SSKD, gain (paper)', 'V13→V8') == '(-0.19)' and all(
        'KD, gain' != line[0][:8] for line in table.rows
    )
    assert row(table, 'KC-PKT') == '' and row(table, 'KC-PKT, paper') == '75.01'
    assert all(label[0] != 'KC-PKT, difference' for label in table.rows)
    assert row(table, 'KD', 'V13→V8') == '', 'another pair is not filled'
    assert row(table, 'Student, paper', 'W40-2→W40-1') == '73.26*'
    assert row(paper_results.paper_table('kcd_table2', runs), 'KC-KD, cost % (paper)') == '81.71 (81.60)'


@pytest.mark.parametrize(
    'other',
    [
        {'policy': {**KCD, 'ratio': 0.5}},
        {'policy': {**KCD, 'preset': 'reference'}},
        {'policy': {**KCD, 'dropped': 'window'}},
        {'policy': {**KCD, 'augment': 'none'}},
        {'weights': {**KD, 'gamma': 0.0}},
        {'weights': {}},
        {'epochs': 12},
        {'dataset': 'digits'},
        {'student': 'wrn_40_1'},
        {'evaluated_on': 'validation'},
        {'method': 'dkd'},
    ],
)
def test_other_runs_stay_out(other):
    (kept,) = [line for line in papers.TABLES['kcd_table1'].rows if line.label == 'KC-KD']
    table = paper_results.paper_table('kcd_table1', [run('kcd', 0, 0.75, **other)])
    assert row(table, kept.label) == ''
    assert row(paper_results.paper_table('kcd_table1', [run('kcd', 0, 0.75)]), kept.label) == '75.00 (1)'


def test_ablations_land_in_their_rows():
    variants = {
        'OGVE w/ random': {'ranking': 'random', 'augment': 'none'},
        'OGVE w/o OVR': {'records': 'last', 'augment': 'none'},
        'OGVE w/o CAR': {'alpha': 0.0, 'augment': 'none'},
        'OGVE, full': {'augment': 'none'},
        'OGVE + VAKS w/ KA': {'epsilon': 'constant'},
        'OGVE + VAKS, full': {},
    }
    runs = [run('kcd', 0, 0.7 + n / 100, policy={**KCD, **more}) for n, more in enumerate(variants.values())]
    table = paper_results.paper_table('kcd_table4', runs)
    assert [row(table, label) for label in variants] == [f'{70 + n}.00 (1)' for n in range(6)]
    assert paper_results.matching('kcd_table4', runs) == 6 and paper_results.matching('kcd_table6', runs) == 1


def test_computation_is_counted_in_multiply_accumulates():
    free = {**KD, 'gamma': 0.0, 'alpha': 1.0}
    unix = {'name': 'unix', 'score': 'entropy', 'mix': 'adaptive', 'k': 0, 'w': 10.0}
    kd, reduced = run('kd', 0, 0.75, weights=free), run('unix', 0, 0.76, weights=free, policy=unix)
    reduced['cost'] = {**reduced['cost'], 'macs': {'teacher_forward': 4000, 'scoring_forward': 1250}}
    table = paper_results.paper_table('unix_table2', [kd, reduced])
    # 5,250 of KD's 4,000 + 1,000 + 2,000.
    assert row(table, 'UNIXKD, k = 48, cost % (paper)') == '75.00 (94.06)', 'k = 0 is three quarters of 64'
    assert row(table, 'UNIXKD, k = 48') == '76.00 (1)' and row(table, 'UNIXKD, k = 48, paper') == '75.69*'
    assert row(table, 'UNIXKD, k = 36') == ''


def test_the_mean_column_waits_for_all_others():
    unix = {'name': 'unix', 'score': 'entropy', 'mix': 'none', 'k': 48, 'w': 10.0}
    free = {**KD, 'gamma': 0.0, 'alpha': 1.0}
    runs = [
        run('unix', seed, 0.70 + place / 100, weights=free, policy=unix, student=column.student, teacher=column.teacher)
        for place, column in enumerate(papers.TABLES['unix_table5'].columns[:6])
        for seed in range(place + 1)
    ]
    table = paper_results.paper_table('unix_table5', runs)
    assert row(table, 'Uncertainty: entropy', 'Mean') == '72.50 (6)', '(70 + ... + 75) / 6, of six columns'
    assert row(table, 'Uncertainty: entropy, difference', 'Mean') == '-2.14'
    assert row(paper_results.paper_table('unix_table5', runs[1:]), 'Uncertainty: entropy', 'Mean') == ''
    assert paper_results.paper_table('unix_table5', runs[:1], only_ours=True).headers[1:] == ['W40-2→W16-2']


def test_errors_and_parameters():
    keys = {'dataset': 'imagenet2012', 'student': 'resnet18', 'teacher': 'resnet34', 'epochs': 90}
    table = paper_results.paper_table('kcd_table3', [run('kd', 0, 0.7, **keys, top5_accuracy=0.9)])
    assert row(table, 'KD', 'top-1') == '30.00 (1)' and row(table, 'KD, difference', 'top-1') == '+0.66'
    assert row(table, 'KD', 'top-5') == '10.00 (1)'
    keys = {'dataset': 'cifar10', 'teacher': 'resnet26', 'student': 'resnet8_kr', 'parameters': 89574, 'method': 'kr'}
    table = paper_results.paper_table(
        'kr_table1', [run('kr', 0, 0.9, policy={'name': 'none'}, **keys) | {'policy': 'none'}]
    )
    assert row(table, 'KR', 'accuracy %') == '90.00 (1)' and row(table, 'KR', 'parameters (M)') == '0.09 (1)'


def test_duplicate_seeds_are_refused():
    with pytest.raises(ValueError, match=r'KCD Table 1, KD, W40-2→W16-2 has seed 0 twice'):
        paper_results.paper_table('kcd_table1', [run('kd', 0, 0.74), run('kd', 0, 0.75)])


def test_unknown_tables_are_named():
    with pytest.raises(ValueError, match="unknown table 'kcd_table9'; known: kcd_table1, "):
        paper_results.paper_table('kcd_table9', [])


def test_a_row_of_a_wrong_length_is_refused():
    with pytest.raises(ValueError, match="row 'KD' has 2 cells for 1 columns"):
        parse_table('t', {'title': 't', 'columns': [['A', 'vgg13', 'vgg8']], 'rows': [['KD', 'kd', '1.0 2.0']]})


def test_settings_can_have_one_value_per_column():
    table = {'title': 't', 'dataset': 'digits', 'epochs': 1, 'cost': 'samples', 'columns': [['A'], ['B']]}
    (row,) = parse_table('t', table | {'rows': [['KD', 'kd+unix policy.k=36|48', '1.0 2.0']]}).rows
    assert [row.settings_at(place)['policy.k'] for place in range(2)] == ['36', '48']
    with pytest.raises(ValueError, match=r"t: row 'KD' has 3 policy.k for 2 columns"):
        parse_table('t', table | {'rows': [['KD', 'kd+unix policy.k=36|48|50', '1.0 2.0']]})


def test_command_line(tmp_path, capsys):
    write_run(tmp_path / 'kd', run('kd', 0, 0.75))
    write_run(tmp_path / 'kcd', run('kcd', 0, 0.76))
    assert main(['table', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert 'KCD Table 1' in text and 'KCD Table 6' in text and 'KR Table' not in text
    assert max(map(len, text.splitlines())) <= 100
    assert main(['papers', str(tmp_path), '--table=kcd_table1', '--format=csv']) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 17 * 11
    (kd,) = [line for line in lines if line['row'] == 'KC-KD' and line['mean']]
    assert (kd['column'], kd['mean'], kd['paper'], kd['difference'], kd['n']) == (
        'W40-2→W16-2',
        '76',
        '75.7',
        '0.3',
        '1',
    )
    assert main(['papers', str(tmp_path), '--table=kcd_table1']) == 0
    wide = capsys.readouterr().out
    assert max(map(len, wide.splitlines())) <= 100 and wide.count('KC-SSKD, paper') == 2, 'eleven pairs need two blocks'
    assert main(['papers', str(tmp_path), '--format=markdown']) == 0
    assert capsys.readouterr().out.count('**') == 2 * len(papers.TABLES)
    assert main(['papers', str(tmp_path), '--table=kcd_table9']) == 2
