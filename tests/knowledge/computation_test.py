"""Every Computation cell of the UNIX paper, from its printed ratios F_t / F_s."""

from __future__ import annotations

import pytest

from kcd_jax import knowledge

# Printed with two decimals, from ratios with two decimals.
TOLERANCE = 0.025

CROSS = {
    'vgg13>mobilenetv2': 38.17,
    'resnet50>mobilenetv2': 174.00,
    'resnet50>vgg8': 13.56,
    'resnet32x4>shufflev1': 27.16,
    'resnet32x4>shufflev2': 23.49,
    'wrn_40_2>shufflev1': 8.22,
}
SIMILAR = {
    'wrn_40_2>wrn_16_2': 3.25,
    'wrn_40_2>wrn_40_1': 3.93,
    'resnet56>resnet20': 3.06,
    'resnet32x4>resnet8x4': 6.12,
    'vgg13>vgg8': 2.97,
    'vgg16>vgg8': 4.14,
}
CROSS_48 = [77.49, 75.57, 81.43, 78.43, 78.92, 84.79]
SIMILAR_48 = [94.06, 91.88, 94.76, 87.32, 95.10, 91.29]

# (table, ratios, k, n, scoring, cells)
ROWS = [
    ('1', CROSS, 64, 64, False, [100.0] * 6),
    ('1', CROSS, 48, 64, False, [75.0] * 6),
    ('1', CROSS, 40, 64, True, [64.99, 63.07, 68.93, 65.93, 66.42, 72.29]),
    ('1', CROSS, 48, 64, True, CROSS_48),
    ('2', SIMILAR, 64, 64, False, [100.0] * 6),
    ('2', SIMILAR, 48, 64, False, [75.0] * 6),
    ('2', SIMILAR, 36, 64, True, [75.31, 73.13, 76.01, 68.57, 76.35, 72.53]),
    ('2', SIMILAR, 48, 64, True, SIMILAR_48),
    ('7', CROSS, 64, 64, False, [100.0] * 6),
    ('7', CROSS, 48, 64, True, CROSS_48),
    ('8', SIMILAR, 64, 64, False, [100.0] * 6),
    ('8', SIMILAR, 48, 64, True, SIMILAR_48),
    ('3', {'wrn_40_2>wrn_16_2': 3.25}, 64, 64, False, [100.0]),
    ('3', {'wrn_40_2>wrn_16_2': 3.25}, 48, 64, False, [75.0]),
    ('3', {'wrn_40_2>wrn_16_2': 3.25}, 36, 64, True, [75.31]),
    ('3', {'resnet32x4>shufflev2': 23.49}, 64, 64, False, [100.0]),
    ('3', {'resnet32x4>shufflev2': 23.49}, 50, 64, False, [78.13]),
    ('3', {'resnet32x4>shufflev2': 23.49}, 48, 64, True, [78.92]),
    # Table 6 prints k = 196; its percentages are those of 192.
    ('6', {'resnet32x4>shufflev1': 27.16, 'resnet32x4>shufflev2': 23.49}, 256, 256, False, [100.0] * 2),
    ('6', {'resnet32x4>shufflev1': 27.16, 'resnet32x4>shufflev2': 23.49}, 192, 256, False, [75.0] * 2),
    ('6', {'resnet32x4>shufflev1': 27.16, 'resnet32x4>shufflev2': 23.49}, 192, 256, True, [78.43, 78.92]),
]


@pytest.mark.parametrize(
    ('ratio', 'k', 'n', 'scoring', 'cell'),
    [
        pytest.param(ratio, k, n, scoring, cell, id=f'table{table}-{pair}-{k}-{"scored" if scoring else "unscored"}')
        for table, ratios, k, n, scoring, cells in ROWS
        for (pair, ratio), cell in zip(ratios.items(), cells, strict=True)
    ],
)
def test_printed_cells(ratio, k, n, scoring, cell):
    assert 100 * knowledge.computation(k, n, ratio, scoring=scoring) == pytest.approx(cell, abs=TOLERANCE)


@pytest.mark.parametrize('k', [36, 40, 48])
def test_golden_table(golden, k):
    golden = golden('ref')
    ratios = golden['unix/Ft_over_Fs_paper']
    assert ratios.tolist() == [*CROSS.values(), *SIMILAR.values()]
    found = [knowledge.computation(k, 64, ratio) for ratio in ratios]
    assert found == pytest.approx(golden[f'unix/computation_k{k}_n64'].tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ('ratio', 'k'), [(3.25, 40.0), (3.93, 41.4), (3.06, 39.6), (2.97, 39.3), (38.17, 50.6), (13.56, 48.1)]
)
def test_k_for_a_cost(ratio, k):
    """KCD Table 2 runs UNIX at 81.6 % of KD."""
    found = knowledge.rows_for(0.816, 64, ratio)
    assert found == pytest.approx(k, abs=0.06)
    assert knowledge.computation(found, 64, ratio) == pytest.approx(0.816, abs=1e-12)


def test_a_counted_backward_pass():
    assert knowledge.computation(48, 64, 3.0, backward=2.0) == pytest.approx((64 + 48 * 6) / (64 * 6))
    assert knowledge.rows_for(0.75, 64, 3.0, scoring=False, backward=2.0) == pytest.approx(48)
