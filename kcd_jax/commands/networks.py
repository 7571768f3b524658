"""`python -m kcd_jax networks`: what every network costs and returns, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from kcd_jax import networks
from kcd_jax.training import macs
from kcd_jax.trees import leaf_paths

HEADER = (
    f'{"network":16s} {"classes":>7s} {"image":>5s} {"parameters":>11s} {"BN values":>9s} {"MACs":>14s} {"convs":>5s}'
    '  taps C@H, embed'
)
_IMAGENET = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet18_one', 'shufflev2_x0_5')
_CIFAR10 = ('resnet8_kr', 'resnet26')


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sizes of a network: trained values, running BatchNorm values, multiply-accumulates of one image's forward pass
    (convolutions and matrix products), convolution layers, and the taps as (channels, height)."""

    parameters: int
    statistics: int
    macs: int
    convolutions: int
    taps: tuple[tuple[int, int], ...]
    embed: int


@functools.cache
def summarise(name: str, num_classes: int, pixels: int) -> Summary:
    """The sizes of network `name` for square images; nothing is computed."""
    network = networks.get(name)(num_classes)
    image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
    variables = jax.eval_shape(lambda key: network.init(key, (pixels, pixels, 3)), jax.random.key(0))

    def forward(variables, image):
        return network.apply(variables, image, False)[0]

    outputs = jax.eval_shape(forward, variables, image)
    params = leaf_paths(variables['params'])
    return Summary(
        parameters=sum(math.prod(leaf.shape) for leaf in params.values()),
        statistics=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['batch_stats'])),
        macs=macs.count(forward, variables, image),
        convolutions=sum(len(leaf.shape) == 4 for leaf in params.values()),
        taps=tuple((feat.shape[3], feat.shape[1]) for feat in outputs.feats),
        embed=outputs.embed.shape[1],
    )


def describe(name: str) -> str:
    """One line of the table: at 100 classes and 32 pixels, or as the network's papers use it."""
    num_classes, pixels = (1000, 224) if name in _IMAGENET else (100, 32)
    if name in _CIFAR10 or name.endswith('_a'):
        num_classes = 10
    found = summarise(name, num_classes, pixels)
    taps = ' '.join(f'{channels}@{height}' for channels, height in found.taps)
    sizes = f'{found.parameters:11,d} {found.statistics:9,d} {found.macs:14,d} {found.convolutions:5d}'
    return f'{name:16s} {num_classes:7d} {pixels:5d} {sizes}  {taps} {found.embed}'


if __name__ == '__main__':
    print(HEADER)
    for network_name in networks.names():
        print(describe(network_name), flush=True)
