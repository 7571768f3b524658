"""The textbook count of a network's multiply-accumulates, layer by layer, to check the count from the jaxpr."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Network
from kcd_jax.networks.layers import Conv, Dense, GroupedConv


def forward_macs(network: Network, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image's forward pass by its `Conv`, `GroupedConv` and `Dense` layers.

    A convolution costs kernel^2 * (channels in / groups) * channels out per output position, a linear layer features in
    * features out. Other layers are not counted. Nothing is computed.
    """
    total = 0

    def counting(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal total
        outputs = method(*args, **kwargs)
        module = context.module
        if context.method_name == '__call__' and isinstance(module, Conv):
            total += math.prod(outputs.shape) * module.kernel**2 * args[0].shape[-1] // module.groups
        elif context.method_name == '__call__' and isinstance(module, Dense):
            total += math.prod(outputs.shape) * args[0].shape[-1]
        elif context.method_name == '__call__' and isinstance(module, GroupedConv):
            total += sum(math.prod(y.shape) * x.shape[-1] for x, y in zip(args[0], outputs, strict=True))
        return outputs

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = network.variable_shapes(image_shape)
    with nn.intercept_methods(counting):
        jax.eval_shape(lambda v, x: network.apply(v, x, False), variables, image)
    return total
