"""Multiply-accumulates, counted from what JAX will run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex_core

# The functions of networks/convolution.py that write a depthwise convolution as shifted products: the operand or
# result whose every element costs a kernel's taps ('out' is the result), and how many taps there are.
_DEPTHWISE: dict[str, Callable[[Any], int]] = {
    'depthwise_forward': lambda eqn: _size(eqn.outvars[0]) * _taps(eqn.invars[1]),
    'depthwise_input_gradient': lambda eqn: _size(eqn.invars[0]) * _taps(eqn.invars[1]),
    'depthwise_kernel_gradient': lambda eqn: _size(eqn.invars[1]) * _taps(eqn.outvars[0]),
}


def macs(fn: Callable[..., Any], *abstract_args: Any) -> int:
    """Multiply-accumulates of the convolutions and matrix products of one call of `fn`.

    Biases, normalisation, pooling and activations are not counted; zeros that a strided convolution's gradient puts
    between pixels are not multiplied; a scan's body counts once a step, a conditional its dearest branch, and a
    while loop of unknown length once.

    Args:
      fn: any function of JAX. abstract_args: arrays, or each a `jax.ShapeDtypeStruct`; nothing is run.

    Returns:
      The count, for the whole batch of the arguments.

    >>> matrix = jax.ShapeDtypeStruct((8, 8), 'float32')
    >>> macs(lambda a, b: a @ b, matrix, matrix)
    512
    """
    return _count(jax.make_jaxpr(fn)(*abstract_args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(eqn) for eqn in jaxpr.eqns)


def _count_equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == 'conv_general_dilated':
        # The kernel's shape is by dimension_numbers; its size without the output channels is a product for each output.
        kernel = eqn.invars[1].aval.shape
        products = math.prod(kernel) // kernel[params['dimension_numbers'].rhs_spec[0]]
        inserted = math.prod(params['lhs_dilation'])
        return _size(eqn.outvars[0]) * products // params['batch_group_count'] // inserted
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        return _size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if params.get('name') in _DEPTHWISE:
        return _DEPTHWISE[params['name']](eqn)
    if name == 'cond':
        return max(_count(branch.jaxpr) for branch in params['branches'])
    inner = sum(_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value))
    return inner * params['length'] if name == 'scan' else inner


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, jex_core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, jex_core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for part in value for jaxpr in _jaxprs(part)]
    return []


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _taps(variable: Any) -> int:
    return math.prod(variable.aval.shape[:2])
