"""KC-KD on CIFAR-10, by the recipe of CIFAR-100: wrn_40_2 -> wrn_16_2, 240 epochs, batch 64.

  python -m kcd_jax.main --config=configs/cifar10_kd.py
No figure of the papers belongs to it; it is there for users of CIFAR-10 and for the KR tables' data.
"""

from configs import cifar100_kd


def get_config(arg=None):
    config = cifar100_kd.get_config(arg)
    if config.data.name == 'cifar100':
        config.data.name = 'cifar10'
    return config
