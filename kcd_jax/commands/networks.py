"""`python -m kcd_jax networks`: the cost and the outputs of every network, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys

import jax
import jax.numpy as jnp

from kcd_jax import networks
from kcd_jax.commands import launch
from kcd_jax.runtime import exitcodes
from kcd_jax.training import macs
from kcd_jax.trees import leaf_paths

HEADER = (
    f'{"network":16s} {"classes":>7s} {"image":>5s} {"parameters":>11s} {"BN values":>9s} {"MACs":>14s} {"convs":>5s}'
    '  taps C@H, embed'
)
_IMAGENET = (
    *('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet18_one', 'shufflev2_x0_5'),
    *('deit_tiny_16', 'convnext_atto'),
)
_CIFAR10 = ('resnet8_kr', 'resnet26')


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sizes of a network.

    Attributes:
      parameters: trained values.
      statistics: running values of batch normalisation.
      macs: multiply-accumulates of one image's forward pass, in convolutions and matrix products.
      convolutions: convolution layers.
      taps: (channels, height) of each feature map.
      embed: width of the pooled vector.
    """

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
    variables = network.variable_shapes((pixels, pixels, 3))

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


def describe(name: str, num_classes: int = 0, pixels: int = 0) -> str:
    """One line of the table.

    Args:
      name: of the network.
      num_classes: 0: as in the network's papers, usually 100.
      pixels: height and width of the images; 0: as in the network's papers, usually 32.
    """
    usual_classes, usual_pixels = (1000, 224) if name in _IMAGENET else (100, 32)
    if name in _CIFAR10 or name.endswith('_a'):
        usual_classes = 10
    num_classes, pixels = num_classes or usual_classes, pixels or usual_pixels
    found = summarise(name, num_classes, pixels)
    taps = ' '.join(f'{channels}@{height}' for channels, height in found.taps)
    sizes = f'{found.parameters:11,d} {found.statistics:9,d} {found.macs:14,d} {found.convolutions:5d}'
    return f'{name:16s} {num_classes:7d} {pixels:5d} {sizes}  {taps} {found.embed}'


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = launch.Parser(
        prog='python -m kcd_jax networks',
        description='Parameters, multiply-accumulates and feature maps of networks; nothing is computed.',
        epilog='example:\n  python -m kcd_jax networks resnet8 wrn_16_2 --classes=10',
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='networks; default: all')
    parser.add_argument('--classes', type=int, default=0, help="number of classes; default: 100, or the papers' own")
    parser.add_argument('--pixels', type=int, default=0, help="image height and width; default: 32, or the papers' own")

    def body() -> int:
        options = parser.parse_args(argv)
        for flag, least in (('classes', 1), ('pixels', 8)):
            if getattr(options, flag) and getattr(options, flag) < least:
                raise ValueError(f'--{flag}={getattr(options, flag)} is too small; use at least {least}')
        for name in options.names:
            networks.get(name)  # refuses an unknown name before printing
        print(HEADER)
        for name in options.names or networks.names():
            print(describe(name, options.classes, options.pixels), flush=True)
        for line in networks.unusable():
            print(f'not listed: {line}', file=sys.stderr)
        return exitcodes.OK

    return launch.run(body)
