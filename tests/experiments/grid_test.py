"""The shipped sweeps: every cell resolves without data, with the papers' pairs, rows and settings."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import grid
from kcd_jax.experiments.experiment import Reuse, of_config
from kcd_jax.experiments.grid import Budgeted, Grid
from kcd_jax.report import paper_results, papers
from kcd_jax.training import ledger
from tests.report.runs import make_summary

ROOT = pathlib.Path(__file__).resolve().parents[2]
SWEEPS, _ = grid.read(f'{ROOT}/configs/ablations.py')
PAPERS = [name for name, sweep in SWEEPS.items() if sweep.paper]
# The equal-compute grids trace every network of their pairs; digits_equal_compute has its own test.
PLAIN = [name for name, sweep in SWEEPS.items() if not sweep.budgets and name != 'kr_table3']
SAME = 'wrn_40_2-wrn_16_2 wrn_40_2-wrn_40_1 resnet56-resnet20 resnet32x4-resnet8x4 vgg13-vgg8 vgg16-vgg8'.split()
CROSS = (
    'vgg13-mobilenetv2 resnet50_cifar-mobilenetv2 resnet50_cifar-vgg8 resnet32x4-shufflev1 resnet32x4-shufflev2 '
    'wrn_40_2-shufflev1'
).split()
_COLUMNS = {
    'kcd_table1': [pair for pair in (*SAME, *CROSS) if pair != 'vgg16-vgg8'],
    'kcd_table2': [*SAME[:3], 'vgg13-vgg8', 'vgg13-mobilenetv2', 'resnet50_cifar-vgg8'],
    'kcd_table3': ['resnet34-resnet18'],
    'kcd_table4': ['wrn_40_2-wrn_16_2', 'vgg13-vgg8', 'vgg13-mobilenetv2', 'resnet32x4-shufflev2'],
    'kcd_table5': ['wrn_40_2-wrn_16_2', 'vgg13-mobilenetv2', 'resnet32x4-shufflev2'],
    'unix_table1': CROSS,
    'unix_table2': SAME,
    'unix_table3': ['wrn_40_2-wrn_16_2', 'resnet32x4-shufflev2'],
    'unix_table4': ['resnet18-shufflev2_x0_5'],
    'unix_table6': ['resnet32x4-shufflev1', 'resnet32x4-shufflev2'],
    'fig3a': ['wrn_40_2-wrn_16_2', 'resnet32x4-shufflev2'],
}
# Rows of a batch that UNIX trains on, by pair: printed, or implied by the printed computation.
_K = {
    ('kcd_table2', 'UNIX-KD, its own runs'): [40, 42, 40, 40, 50, 48],
    ('unix_table1', 'UNIXKD, k = 40'): [40] * 6,
    ('unix_table1', 'UNIXKD, k = 48'): [48] * 6,
    ('unix_table2', 'UNIXKD, k = 36'): [36] * 6,
    ('unix_table2', 'Random+KD, k = 48'): [48] * 6,
    ('unix_table3', 'UNIXKD+AT'): [36, 48],
    ('unix_table3', 'Random+KD+SP'): [48, 50],
    ('unix_table4', 'UNIXKD, k = 192'): [192],
    ('unix_table4', 'UNIXKD+label'): [192],
    ('unix_table4', 'Random+KD, k = 200'): [200],
    ('unix_table6', 'UNIXKD, k = 192'): [192, 192],
}


def build(name, **options):
    return grid.build(name, SWEEPS[name], ROOT, load=grammar.shapes, **options)


def test_every_table_is_a_sweep():
    tables = {f'kcd_table{n}' for n in range(1, 8)} | {f'unix_table{n}' for n in range(1, 9)}
    tables |= {f'kr_table{n}' for n in range(1, 5)}
    assert tables == set(PAPERS)
    figures = {'kcd_fig3b', 'kcd_fig3c', 'kcd_fig5', 'unix_fig1', 'unix_fig4', 'unix_fig5', 'unix_fig6'}
    assert tables | figures | {'fig3a', 'fig4', 'equal_compute'} <= set(SWEEPS)
    digits = {'equal_compute', 'fig3a', 'fig4', 'kcd_table4', 'unix_table5'}
    assert {f'digits_{name}' for name in digits} <= set(SWEEPS)
    assert not any('k=48' in words for words in SWEEPS['digits_unix_table5'].rows.values()), 'of a batch of 20'
    sizes = {name: len(grid.expand(SWEEPS[name])) for name in PAPERS}
    # Rows that are run x pairs; the eight students of the first table's eleven pairs once each.
    assert sizes['kcd_table1'] == 15 * 11 + 8 and sizes['kcd_table4'] == 24 and sizes['unix_table5'] == 60
    assert sizes['kr_table3'] == 0 and sizes['kr_table1'] == 8
    with pytest.raises(ValueError, match='no row of kr_table3 can be run: all rows: .* Inception-BN'):
        build('kr_table3')


def test_kr_takes_other_optimisers():
    cells = {cell.label: cell for cell in build('kr_optimisers').cells}
    optims = {label: cell.run.recipe.optim for label, cell in cells.items()}
    assert {label: (optim.name, optim.lr) for label, optim in optims.items()} == {
        'SGD': ('sgd', 0.1), 'Adam': ('adam', 0.001), 'RMSprop': ('rmsprop', 0.001)
    }  # fmt: skip
    teachers = [cell.describe()['teacher'] for cell in cells.values()]
    assert teachers[0]['run']['recipe']['optim']['name'] == 'sgd' and teachers[1:] == teachers[:1] * 2
    (same,) = [cell for cell in build('kr_table1').cells if cell.label == 'KR']
    assert cells['SGD'].describe() == same.describe(), 'trained once for both'


def test_a_row_may_be_a_named_run_of_its_file():
    """Its words, as published, train the same run alone."""
    cell = build('kr_optimisers').cells[1]
    refused = {
        'compare=(kr-adam,kr-rmsprop)': 'names 2 runs; name one',
        'compare=kr-adam,policy=kcd': 'names the run kr-adam and a method or policy; give one of them',
    }
    for words, reason in refused.items():
        with pytest.raises(ValueError, match=reason):
            grid.run_of(f'configs/kr.py:{words}', ROOT)
    own = grid.run_of('configs/digits_long.py:method=kd,policy=kcd', ROOT, grammar.shapes)
    assert own.policy.name == 'kcd', 'what the file compares does not count'
    (alone,) = of_config(grammar.load(f'{ROOT}/{cell.words},seed=3'), grammar.shapes).cells
    assert {**alone.describe(), 'name': '', 'seed': 0} == {**cell.describe(), 'name': '', 'seed': 0}


@pytest.mark.parametrize('name', PLAIN)
def test_every_cell_resolves_without_data(name):
    """A run with sizes and rows; the networks are those of its column; in the printed table it belongs to its row."""
    sweep, found = SWEEPS[name], build(name)
    assert list(dict.fromkeys(cell.column for cell in found.cells)) == list(sweep.pairs)
    if name in _COLUMNS:
        assert list(sweep.pairs) == _COLUMNS[name]
    table = papers.find(sweep.paper) if sweep.paper else None
    for cell in found.cells:
        run = cell.run
        assert min(run.sizes) >= run.recipe.batch and 0 < run.rows <= run.recipe.batch
        assert run.data.train.images.shape[1:] == run.data.image_shape
        if table is None:
            continue
        assert run.recipe.epochs == (table.epochs or run.recipe.epochs) and run.data.name == table.dataset
        row = next(row for row in table.rows if row.label == cell.label)
        place = next(i for i, c in enumerate(table.columns) if f'{c.teacher}-{c.student}' == cell.column)
        assert run.student == (row.student or table.columns[place].student)
        assert run.teacher is None or run.teacher.student == table.columns[place].teacher
        summary = make_summary(
            'student' if run.method.name == 'none' else 'kd', 0, 0.5, method=run.method.name, policy=run.policy.name,
            dataset=run.data.name, student=run.student, teacher=run.teacher and run.teacher.student,
            epochs=run.recipe.epochs, batch=run.recipe.batch, run=cell.describe(),
        )  # fmt: skip
        runs = [other for other in table.rows if other.kind in ('run', 'student')]
        belongs = [other.label for other in runs if paper_results._belongs(summary, other, place, table)]
        assert belongs == [cell.label], (name, cell.name)


@pytest.mark.parametrize(('name', 'label'), _K)
def test_unix_trains_on_the_rows_of_the_papers(name, label):
    found = [cell.run for cell in build(name).cells if cell.label == label]
    assert [run.policy.keywords['k'] for run in found] == _K[name, label] == [run.rows for run in found]
    if label.startswith('UNIX') and name in ('unix_table4', 'unix_table6'):
        assert {run.policy.keywords['beta'] for run in found} == {0.2} and {run.recipe.batch for run in found} == {256}


def test_a_row_that_cannot_run_is_left_out_by_name():
    found = build('kcd_table3')
    assert 'OnlineKD' not in {cell.label for cell in found.cells} and len(found.cells) == 10
    assert found.omitted == ('OnlineKD: its student needs branches, which resnet18 does not have',)


BENCHMARK = [name for name in SWEEPS if name.startswith('benchmark_')]


@pytest.mark.parametrize('name', BENCHMARK)
def test_every_policy_of_the_benchmark_is_a_row_at_the_budgets_that_it_can_meet(name):
    sweep = SWEEPS[name]
    entries = grid.expand(sweep)
    assert [entry.label for entry in entries[:2]] == ['Student alone', 'KD'] and sweep.references == ('KD', 'Random')
    for label, policy in sweep.equal.items():
        budgets = [entry.budget for entry in entries if entry.label.startswith(f'{label}, ')]
        assert budgets == [budget for budget in sweep.budgets if budget >= policy.least]
    for entry in {entry.words: entry for entry in entries}.values():
        run = grid.run_of(entry.words, ROOT, grammar.shapes)
        assert run.recipe.augment.seed == 1 and run.recipe.eval_every == run.recipe.epochs
        assert run.data.name in (f'digits:{name.removeprefix("benchmark_")}', 'cifar100')


@pytest.mark.slow
def test_the_benchmark_comes_near_its_budgets():
    for cell in build('benchmark_hard', trials=2, seed=100).cells:
        expected = ('SeTa', 'InfoBatch')  # known in expectation only
        if cell.group and not cell.label.startswith(expected):
            assert 100 * grid.cost_of(cell.run).relative == pytest.approx(float(cell.group[:-2]), abs=2.5), cell.label


def test_seeds_and_words_of_a_sweep():
    sweep = grid.with_words(Grid('t', f'{ROOT}/configs/digits_kd.py:batch=30', {'KD': 'policy=none'}), 'epochs=12')
    found = grid.build('t', sweep, ROOT, trials=2, seed=100, load=grammar.shapes)
    assert found.seeds == (100, 101)
    assert (found.cells[0].run.recipe.epochs, found.cells[0].run.recipe.batch) == (12, 30)


def test_a_sweep_for_one_device_is_refused_on_several():
    """Before a budget is solved for rows that several devices could share."""
    with pytest.raises(ValueError, match='for one device, 4 were found; set CUDA_VISIBLE_DEVICES=0, or on a CPU leave'):
        build('benchmark_hard', device_count=4)
    with pytest.raises(ValueError, match='no row of kr_table3'):  # for any number of devices
        build('kr_table3', device_count=4)


@pytest.mark.parametrize('name', SWEEPS)
def test_results_have_distinct_names(name):
    entries = [(entry.label, entry.pair) for entry in grid.expand(SWEEPS[name])]
    assert len(set(entries)) == len(entries)
    if name in PLAIN[:4]:
        slugs = [cell.slug for cell in build(name).cells]
        assert len(set(slugs)) == len(slugs)
        assert all(set(slug) <= set('abcdefghijklmnopqrstuvwxyz0123456789_') for slug in slugs)


def test_pairs_choose_columns():
    chosen = grid.expand(SWEEPS['kcd_table4'], ['vgg13-vgg8'])
    assert len(chosen) == 6 and {entry.pair for entry in chosen} == {'vgg13-vgg8'}
    with pytest.raises(ValueError, match="unknown pair of this sweep 'vgg13-vgg9'.*did you mean 'vgg13-vgg8'"):
        grid.expand(SWEEPS['kcd_table4'], ['vgg13-vgg9'])
    with pytest.raises(ValueError, match="unknown sweep 'kcd_tabl4'.*did you mean 'kcd_table4'"):
        grid.find(SWEEPS, 'kcd_tabl4')


def test_a_run_starts_from_the_set_of_another(tmp_path):
    found = {(cell.label, cell.column): cell for cell in build('fig4').cells}
    pair = 'wrn_40_2-wrn_16_2'
    assert found['KD + DS', pair].reuse == Reuse('KC-KD', 'ds', pair)
    assert found['KD + DS, transferred', pair].reuse == Reuse('KC-KD', 'ds', 'vgg13-vgg8')
    assert ('KD + DS, transferred', 'vgg13-vgg8') not in found
    assert found['KD + VAKS', pair].describe()['policy'] == {'name': 'reuse', 'run': '', 'mode': 'vaks'}
    with pytest.raises(ValueError, match='needs KC-KD on vgg13-vgg8, which --pairs excludes; add it'):
        build('fig4', pairs=[pair])
    with pytest.raises(ValueError, match='holds no knowledge'):
        found['KD + DS', pair].resolved(0, tmp_path)


def test_budgets_make_rows():
    sweep = Grid('t', 'f.py', {'KD': 'policy=none'}, equal={'KC-KD': Budgeted('policy=kcd', 'ratio', 0.1, 1.0, 0.1)},
                 budgets=(0.6, 0.825))  # fmt: skip
    found = grid.expand(sweep)
    assert [(e.label, e.group, e.budget) for e in found] == [
        ('KD', '', 0.0), ('KC-KD, 60 %', '60 %', 0.6), ('KC-KD, 82.5 %', '82.5 %', 0.825)
    ]  # fmt: skip
    assert found[1].words == 'f.py:policy=kcd' and found[1].budgeted.values(64) == pytest.approx(
        [0.1 * n for n in range(1, 11)]
    )
    assert Budgeted('policy=unix', 'k', 1, None, 1).values(4) == [1, 2, 3, 4]


def test_every_policy_comes_near_its_budget(tiny_networks):
    """The sweep on the digits, solved as for its published results; costs are from the ledger."""
    found = {cell.label: cell.run for cell in build('digits_equal_compute').cells}
    solved = {label: dict(run.policy.keywords) for label, run in found.items()}
    assert [solved[f'Short KD, {share} %']['cost'] for share in (60, 80)] == [0.6, 0.8]
    for label in ('Random KD', 'KC-KD'):
        assert [solved[f'{label}, {share} %']['ratio'] for share in (60, 80)] == [0.407, 0.714]
    assert [solved[f'UNIX-KD, {share} %']['k'] for share in (60, 80)] == [17, 23]
    assert [solved[f'InfoBatch KD, {share} %']['fraction'] for share in (60, 80)] == [0.643, 0.303]
    for label, run in found.items():
        budget = {'60 %': 0.6, '80 %': 0.8}.get(label.rpartition(', ')[2])
        if budget and not label.startswith('InfoBatch'):
            assert grid.cost_of(run).relative == pytest.approx(budget, abs=0.02 if 'UNIX' in label else 0.005), label


@pytest.mark.parametrize(
    'words', ['policy=none', 'policy=kcd,stages=3', 'policy=unix,k=16', 'policy=learnability', 'method=none']
)
def test_the_cost_without_a_trace_is_the_ledgers(tiny_networks, words):
    """Without the method's own layers, which KD does not have."""
    run = grammar.run_of(
        grammar.load(f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,{words}'), grammar.shapes
    )
    cost, book = grid.cost_of(run), ledger.expected(run)
    assert cost.macs == book.total and cost.relative == pytest.approx(book.relative, rel=1e-12)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=40), st.booleans(), st.floats(0, 1), st.integers(0, 5))
def test_the_value_nearest_to_a_budget_is_found(steps, falling, target, impossible):
    """Uneven costs, increasing or decreasing, the cheapest ones impossible; against trying every value."""
    costs = [step / 100 for step in sorted(steps, reverse=falling)]
    values = list(range(len(costs)))
    cheap = values[::-1] if falling else values
    known = {value: None if cheap.index(value) < impossible else costs[value] for value in values}
    possible = [cost for cost in known.values() if cost is not None]
    if not possible or not min(possible) <= target <= max(possible):
        with pytest.raises(ValueError, match='cannot cost'):
            grid.solve(known.get, values, target, 'policy=mine with its key')
        return
    value, cost = grid.solve(known.get, values, target, 'policy=mine with its key')
    assert known[value] == cost
    assert abs(cost - target) == min(abs(other - target) for other in possible)


def test_few_values_are_tried():
    tried = []
    value, cost = grid.solve(lambda n: tried.append(n) or n / 1000, range(1, 1001), 0.4, 'x')
    assert (value, cost) == (400, 0.4) and len(tried) < 15


@pytest.mark.parametrize(
    ('target', 'says'),
    [(0.1, 'cannot cost 10.00% of training on all points; at least it costs 30.00%'), (0.9, 'at most it costs 70.00%')],
)
def test_an_unreachable_budget_is_refused(target, says):
    with pytest.raises(ValueError, match=says):
        grid.solve({1: 0.3, 2: 0.5, 3: 0.7}.get, [1, 2, 3], target, 'policy=mine with its key')


@pytest.mark.parametrize(
    ('content', 'says'),
    [('x = 1', 'defines no SWEEPS'), ('SWEEPS = {"a": 3}', 'defines no SWEEPS'), ('import nothing_here', 'No module')],
)
def test_a_file_that_holds_no_sweeps(tmp_path, content, says):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        grid.read(str(path))
