"""Sizes of every network against the figures of the papers' public code."""

from __future__ import annotations

import pathlib
import sys

import pytest

from kcd_jax import check_plugin, networks
from kcd_jax.commands.networks import describe, summarise

pytestmark = pytest.mark.fast_compile

RESNET = '16@32 16@32 32@16 64@8 64'
WIDE = '32@32 64@32 128@16 256@8 256'
DOUBLE = '16@32 32@32 64@16 128@8 128'
VGG = '64@32 128@16 256@8 512@4 512@4 512'
BASIC = '64@32 64@32 128@16 256@8 512@4 512'
IMAGENET = '64@112 64@56 128@28 256@14 512@7 512'
BOTTLENECK = '64@112 256@56 512@28 1024@14 2048@7 2048'

# 100 classes, 32x32: parameters, running values, multiply-accumulates, convolutions, taps C@H and the pooled width.
CIFAR = {
    'resnet8': (83_892, 672, 12_507_392, 9, RESNET),
    'resnet14': (181_108, 1_120, 26_663_168, 15, RESNET),
    'resnet20': (278_324, 1_568, 40_818_944, 21, RESNET),
    'resnet32': (472_756, 2_464, 69_130_496, 33, RESNET),
    'resnet44': (667_188, 3_360, 97_442_048, 45, RESNET),
    'resnet56': (861_620, 4_256, 125_753_600, 57, RESNET),
    'resnet110': (1_736_564, 8_288, 253_155_584, 111, RESNET),
    'resnet8x4': (1_233_540, 2_752, 177_071_104, 10, WIDE),
    'resnet32x4': (7_433_860, 9_920, 1_083_040_768, 34, WIDE),
    'wrn_16_1': (180_916, 928, 26_663_168, 15, RESNET),
    'wrn_16_2': (703_284, 1_824, 101_118_464, 16, DOUBLE),
    'wrn_40_1': (569_780, 2_720, 83_286_272, 39, RESNET),
    'wrn_40_2': (2_255_156, 5_408, 327_610_880, 40, DOUBLE),
    'vgg8': (3_965_028, 2_944, 96_192_512, 5, VGG),
    'vgg11': (9_277_284, 5_504, 209_438_720, 8, VGG),
    'vgg13': (9_462_180, 5_888, 284_936_192, 10, VGG),
    'vgg16': (14_774_436, 8_448, 398_182_400, 13, VGG),
    'vgg19': (20_086_692, 11_008, 511_428_608, 16, VGG),
    'mobilenetv2': (812_836, 18_368, 6_523_648, 53, '16@16 12@16 16@8 48@4 160@2 1280'),
    'shufflev1': (949_258, 23_736, 38_691_456, 49, '24@32 240@16 480@8 960@4 960'),
    'shufflev2': (1_355_528, 16_180, 44_504_448, 56, '24@32 116@16 232@8 464@4 1024'),
    'resnet18_cifar': (11_220_132, 9_600, 555_468_800, 20, BASIC),
    'resnet34_cifar': (21_328_292, 17_024, 1_159_448_576, 36, BASIC),
    'resnet50_cifar': (23_705_252, 53_120, 1_298_014_208, 53, '64@32 256@32 512@16 1024@8 2048@4 2048'),
}

# (classes, pixels), parameters, multiply-accumulates (None: not published), taps.
OTHER = {
    'resnet18': ((1000, 224), 11_689_512, 1_814_073_344, IMAGENET),
    'resnet34': ((1000, 224), 21_797_672, 3_663_761_408, IMAGENET),
    'resnet50': ((1000, 224), 25_557_032, 4_089_184_256, BOTTLENECK),
    'resnet101': ((1000, 224), 44_549_160, 7_801_405_440, BOTTLENECK),
    'shufflev2_x0_5': ((1000, 224), 1_366_792, 40_476_448, '24@112 48@28 96@14 192@7 1024'),
    # DeiT's paper: 5.72 M parameters; timm: 1.26 GMACs. ConvNeXt-Atto in timm: 3.70 M and 0.55 GMACs.
    'deit_tiny_16': ((1000, 224), 5_717_416, 1_253_683_200, ' '.join(['192@14'] * 5 + ['192'])),
    'convnext_atto': ((1000, 224), 3_695_520, 547_332_480, '40@56 40@56 80@28 160@14 320@7 320'),
    'resnet20_a': ((10, 32), 269_722, None, RESNET),
    'resnet32_a': ((10, 32), 464_154, None, RESNET),
    'resnet44_a': ((10, 32), 658_586, None, RESNET),
    'resnet56_a': ((10, 32), 853_018, None, RESNET),
    'resnet110_a': ((10, 32), 1_727_962, None, RESNET),
    'resnet26': ((10, 32), 369_690, 54_968_960, RESNET),
    'resnet8_kr': ((10, 32), 89_574, None, '17@32 17@32 34@16 69@8 69'),
    'resnet14_kr': ((100, 32), 169_490, None, '15@32 15@32 31@16 62@8 62'),
}
# The same at other class counts.
PARAMETERS = [
    ('resnet18', 100, 11_227_812),
    ('resnet34', 100, 21_335_972),
    ('resnet50', 100, 23_712_932),
    ('shufflev2_x0_5', 100, 444_292),
    ('resnet8', 10, 78_042),
    ('resnet26', 100, 375_540),
]
WITHOUT_PUBLISHED_SIZES = {
    *('resnet8x0_25', 'resnet8_one', 'resnet32_one', 'resnet18_one'),
    *('deit_tiny_4', 'vit_mini_4', 'convnext_atto_2'),
}


def taps_text(summary) -> str:
    return ' '.join([*(f'{channels}@{height}' for channels, height in summary.taps), str(summary.embed)])


@pytest.mark.parametrize('name', CIFAR)
def test_cifar_table(name):
    parameters, statistics, macs, convolutions, taps = CIFAR[name]
    found = summarise(name, 100, 32)
    assert (found.parameters, found.statistics, found.macs, found.convolutions) == (
        parameters,
        statistics,
        macs,
        convolutions,
    )
    assert taps_text(found) == taps


@pytest.mark.parametrize('name', OTHER)
def test_other_table(name):
    (num_classes, pixels), parameters, macs, taps = OTHER[name]
    found = summarise(name, num_classes, pixels)
    assert found.parameters == parameters
    assert macs is None or found.macs == macs
    assert taps_text(found) == taps


@pytest.mark.parametrize(('name', 'num_classes', 'parameters'), PARAMETERS)
def test_parameters_at_other_class_counts(name, num_classes, parameters):
    assert summarise(name, num_classes, 32).parameters == parameters


def test_macs_of_plain_resnet8_at_ten_classes():
    assert summarise('resnet8', 10, 32).macs == 12_501_632


def test_every_network_is_in_a_table():
    assert set(networks.names()) == set(CIFAR) | set(OTHER) | WITHOUT_PUBLISHED_SIZES


def test_the_printed_line():
    line = describe('wrn_40_2')
    assert '2,255,156' in line and '327,610,880' in line and DOUBLE in line


def test_an_unknown_name_names_the_near_and_the_known():
    with pytest.raises(ValueError, match=r"unknown network 'wrn_40_3' \(did you mean 'wrn_40_2'\?\); known: .*vgg8"):
        networks.get('wrn_40_3')


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """A user's folder of networks, and what removes its modules again."""
    monkeypatch.setattr(networks, '__path__', [*networks.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob('*.py'):
        sys.modules.pop(f'kcd_jax.networks.{path.stem}', None)


def template(name):
    return pathlib.Path(networks.__file__).with_name('_template.py').read_text().replace("'template'", f"'{name}'")


def test_a_new_file_is_a_new_network(own_folder):
    (own_folder / 'mine.py').write_text(template('mine_16'))
    assert 'mine_16' in networks.names()
    assert summarise('mine_16', 10, 32).taps == ((16, 32), (16, 16), (32, 8))


def example(number):
    page = (pathlib.Path(__file__).parents[2] / 'docs' / 'adding_a_network.md').read_text()
    return page.split('```python\n')[number].split('```')[0]


def test_the_example_of_the_documentation(own_folder):
    (own_folder / 'tiny_example.py').write_text(example(1))
    assert {'tiny_4', 'tiny_24'} <= set(networks.names()) and networks.unusable() == []
    assert summarise('tiny_4', 10, 16).taps == ((4, 16), (8, 8))


def test_a_file_may_name_a_model_of_another_framework(own_folder):
    (own_folder / 'nnx_example.py').write_text(example(2))
    built = networks.get('mine_nnx')(10)
    assert built.name == 'mine_nnx' and networks.get('mine_nnx')(10) is built
    assert networks.get('mine_nnx')(10, normalization=[[0.5] * 3, [0.2] * 3]).name == 'mine_nnx'
    with pytest.raises(ValueError, match='mine_nnx is the name of another network'):
        networks.from_functions(lambda key, shape: {}, lambda _, x: x, name='mine_nnx')
    (own_folder / 'wrong.py').write_text(
        example(2).replace("'mine_nnx'", "'other_nnx'").replace('name=name', "name='x'")
    )
    with pytest.raises(ValueError, match=r"make\('other_nnx', ...\) of .*wrong.py returns a network named 'x', not a"):
        networks.get('other_nnx')(10)
    assert all(not found.error for found in check_plugin(own_folder / 'nnx_example.py', say=lambda line: None))


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('NAMES = {', r'cannot be loaded from .*/broken.py.* \(SyntaxError: .*never closed.*\); fix that file'),
        ('import absent_package', r"broken.py, line 1 \(ModuleNotFoundError: No module named 'absent_package'\)"),
        ('raise RuntimeError("several\\nlines")', r'broken.py, line 1 \(RuntimeError: several lines\)'),
        ('NAMES = ["net"]; make = 3', "network file 'broken' cannot be used: it has NAMES, but no function make"),
        ('NAMES = 3', "network file 'broken' cannot be used: 'int' object is not iterable"),
    ],
)
def test_a_broken_file_stops_nothing_but_is_named_where_a_name_is_missing(own_folder, source, reason):
    (own_folder / 'broken.py').write_text(source)
    assert networks.get('resnet8')(10).name == 'resnet8' and 'wrn_16_1' in networks.names()
    assert len(networks.unusable()) == 1
    with pytest.raises(ValueError, match=rf'unknown network .net.*; .*{reason}') as error:
        networks.get('net')
    assert '\n' not in str(error.value)


def test_a_file_without_names_is_no_family(own_folder):
    (own_folder / 'shared_parts.py').write_text('WIDTH = 3')
    assert networks.unusable() == []


def test_a_name_in_two_files_is_refused(own_folder):
    (own_folder / 'mine.py').write_text(template('resnet8'))
    with pytest.raises(
        ValueError, match=r"'resnet8' is defined in .*mine.py and .*resnet.py; give one of them another"
    ):
        networks.get('resnet8')
    assert networks.get('resnet14')(10).name == 'resnet14'
