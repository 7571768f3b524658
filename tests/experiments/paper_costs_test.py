"""The papers' cost columns, recomputed: every printed Computation of UNIX, and KCD's C and C_a, exact to one sample."""

from __future__ import annotations

import pytest

from kcd_jax.experiments import paper_costs as program

pytestmark = pytest.mark.fast_compile

# Printed with two decimals, from ratios with two decimals; our counts differ for the light networks.
FROM_PRINTED, FROM_OURS = 0.025, 0.4
CELLS = {'unix_table1': 24, 'unix_table2': 24, 'unix_table3': 12, 'unix_table4': 10, 'unix_table6': 6,
         'unix_table7': 12, 'unix_table8': 12}  # fmt: skip


@pytest.mark.parametrize('name', program.UNIX_TABLES)
def test_every_computation_of_unix(name):
    found = list(program.cells(name))
    assert len(found) == CELLS[name]
    for cell in found:
        if name != 'unix_table4':  # it prints no ratio
            assert cell.from_paper == pytest.approx(cell.printed, abs=FROM_PRINTED), cell
        assert cell.from_ours == pytest.approx(cell.printed, abs=FROM_OURS), cell


def test_the_counted_backward_pass_makes_scoring_a_smaller_part():
    """Near two forward passes, without the gradient of the image; scoring is then a smaller part."""
    assert program.backward_share('wrn_16_2', 32, 100) == pytest.approx(
        2 - 9 * 3 * 16 * 32 * 32 / 101_118_464, abs=1e-12
    )
    cell = next(cell for cell in program.cells('unix_table2') if cell.scoring and cell.student == 'wrn_16_2')
    assert 100 * cell.k / cell.n < cell.counted < cell.from_ours


# (schedule, first, samples, steps with the partial batch) of docs/METHODS.md, 5.4, the rounded sizes.
KCD = [
    ('', '', 12_000_000, 187_680),
    ('linear', 'stage', 10_500_000, 164_200),
    ('exponential', 'none', 9_796_200, 153_160),
    ('exponential', 'epoch', 9_811_200, 153_395),
    ('exponential', 'stage', 10_396_200, 162_560),
    ('linear', 'none', 9_900_000, 154_800),
]


@pytest.mark.parametrize(('kind', 'first', 'samples', 'steps'), KCD)
def test_samples_of_every_schedule_are_exact(kind, first, samples, steps):
    found = program.schedule(program.CIFAR100, kind, first)
    assert (found.samples, found.steps_with_partial) == (samples, steps)
    assert found.relative == samples / 12_000_000


def test_every_schedule_is_printed():
    assert [(kind, first) for _, kind, first in program.SCHEDULES] == [row[:2] for row in KCD]


def test_sizes_of_the_stages():
    claimed = program.schedule(program.CIFAR100, 'exponential', 'none').sizes
    assert claimed[::40] == (47_114, 44_395, 41_833, 39_419, 37_144, 35_000)
    assert program.schedule(program.CIFAR100, 'linear', 'stage').sizes[::40] == (
        50_000,
        47_500,
        45_000,
        42_500,
        40_000,
        37_500,
    )


@pytest.mark.parametrize(('ratio', 'claimed', 'code'), [(0.9, 94.08, 95.84), (0.5, 68.05, 79.17), (0.3, 52.50, 70.84)])
def test_other_ratios(ratio, claimed, code):
    for (kind, first), percent in ((('exponential', 'none'), claimed), (('linear', 'stage'), code)):
        assert round(100 * program.schedule(program.CIFAR100, kind, first, ratio).relative, 2) == percent


def test_imagenet():
    kd, claimed, first_full, code = (
        program.schedule(program.IMAGENET, kind, first).samples
        for kind, first in (('', ''), ('exponential', 'none'), ('exponential', 'stage'), ('linear', 'stage'))
    )
    assert (kd, claimed, first_full, code) == (115_305_030, 94_129_200, 99_894_450, 100_891_980)


def test_the_runs_that_drop_the_partial_batch():
    paper = program.schedule(program.CIFAR100, 'exponential', 'epoch').processed
    reference = program.schedule(program.CIFAR100, 'linear', 'stage').processed
    assert paper == (9_801_920, 153_155) and reference == (10_496_000, 164_000)


def test_errors_of_the_papers_are_printed_with_their_numbers():
    text = '\n'.join(program.errors())
    for figure in ('81.61 %', '81.76 %', '92.6 %', '115.3M', '94.1M', 'k = 192', '79.99 %', '42.8', '44.8'):
        assert figure in text, figure


def test_unix_in_kcd_table_2_costs_what_kc_kd_does():
    """The nearest even k of each pair, as its sweep runs it, by UNIX's own convention."""
    text = '; '.join(program.kcd_table2_rows())
    expected = {'W40-2→W16-2': (40.0, 40), 'W40-2→W40-1': (41.4, 42), 'R56→R20': (39.6, 40), 'V13→V8': (39.3, 40),
                'V13→MN2': (50.6, 50), 'R50→V8': (48.1, 48)}  # fmt: skip
    for pair, (solved, k) in expected.items():
        assert f'{pair} {solved}, {k} (C = ' in text
        assert abs(k - solved) <= 1
    shares = [float(part.partition('C = ')[2].partition(' ')[0]) for part in text.split('; ')]
    assert all(abs(share - 81.6) < 1.3 for share in shares), shares
