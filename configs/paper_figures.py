"""The papers' figures as sweeps: `python -m kcd_jax sweep NAME`, then `python -m kcd_jax report figures results/NAME`.

KCD 3a and 4 are in ablations.py. Where a paper does not name the networks of a figure, those of its tables are used.
"""

from __future__ import annotations

from kcd_jax.experiments.grid import Grid

CIFAR100 = 'configs/cifar100_kd.py'
_LABEL_FREE = 'weights.gamma=0,weights.alpha=1'
_RANDOM = f'policy=unix,{_LABEL_FREE},policy.score=random,policy.mix=none,policy.k=48'
_UNCERTAIN = f'policy=unix,{_LABEL_FREE},policy.mix=none,policy.k=48'
_STRATEGIES = {'Random': _RANDOM, 'Uncertainty': _UNCERTAIN}


def _condensing(title: str, *pairs: str) -> Grid:
    return Grid(title, CIFAR100, {'KC-KD': 'policy=kcd'}, pairs, references=('KC-KD',))


SWEEPS = {
    'kcd_fig3b': _condensing('KCD Fig. 3b: values of the points over training', 'wrn_40_2-wrn_16_2'),
    'kcd_fig3c': _condensing(
        'KCD Fig. 3c: Hamming distances of value labels',
        'vgg13-vgg8',
        'resnet50_cifar-vgg8',
        'resnet32x4-shufflev1',
        'resnet32x4-shufflev2',
        'wrn_40_2-wrn_16_2',
        'wrn_40_2-wrn_40_1',
    ),
    # Four teachers, which the paper does not name.
    'kcd_fig5': _condensing(
        'KCD Fig. 5: images and soft labels by value',
        'wrn_40_2-wrn_16_2',
        'vgg13-vgg8',
        'resnet32x4-shufflev2',
        'resnet56-resnet20',
    ),
    'unix_fig1': Grid(
        'UNIX Fig. 1: accuracy against computation',
        CIFAR100,
        {
            'Student': 'method=none,policy=none',
            'KD': f'policy=none,{_LABEL_FREE}',
            'Random+KD, k = 48': _RANDOM,
            'UNIXKD, k = 40': f'policy=unix,{_LABEL_FREE},policy.k=40',
            'UNIXKD, k = 48': f'policy=unix,{_LABEL_FREE},policy.k=48',
        },
        ('resnet32x4-shufflev2',),
    ),
    'unix_fig4': Grid(
        'UNIX Fig. 4: which samples are selected',
        CIFAR100,
        _STRATEGIES,
        ('resnet32x4-shufflev2',),
        references=('Random',),
    ),
    'unix_fig5': Grid(
        'UNIX Fig. 5: classes by accuracy and visits',
        CIFAR100,
        _STRATEGIES,
        ('resnet32x4-resnet8x4',),
        references=('Random',),
    ),
    # The runs of Fig. 5, whose visits are logged in every epoch.
    'unix_fig6': Grid(
        'UNIX Fig. 6: visits of classes by epoch',
        CIFAR100,
        _STRATEGIES,
        ('resnet32x4-resnet8x4',),
        references=('Random',),
    ),
}
