"""KR's narrowed students: the CIFAR ResNets of depth 6n + 2 with fewer filters.

The paper (KR, Tables 1 and 2) gives only the parameters, about 0.09 M and 0.17 M; these widths come nearest.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from kcd_jax.contracts import Network
from kcd_jax.networks.layers import Normalization
from kcd_jax.networks.resnet import of_depth

# name: (depth, widths of the stem and of the three stages)
NAMES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    'resnet8_kr': (8, (17, 17, 34, 69)),
    'resnet14_kr': (14, (15, 15, 31, 62)),
}


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    return of_depth(name, *NAMES[name], num_classes, dtype, normalization)
