"""Multiply-accumulates, counted from jaxprs; `python -m kcd_jax cost` lists them by pass."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex_core

# Functions of networks/primitives.py that write a depthwise convolution as shifted products, with their count: the
# elements of an operand or result times the taps of the kernel.
_DEPTHWISE: dict[str, Callable[[Any], int]] = {
    'depthwise_forward': lambda eqn: _size(eqn.outvars[0]) * _taps(eqn.invars[1]),
    'depthwise_input_gradient': lambda eqn: _size(eqn.invars[0]) * _taps(eqn.invars[1]),
    'depthwise_kernel_gradient': lambda eqn: _size(eqn.invars[1]) * _taps(eqn.outvars[0]),
}

Counts = collections.Counter[str]


def count(fn: Callable[..., Any], *abstract_args: Any) -> int:
    """Multiply-accumulates of the convolutions and matrix products of one call of `fn`, as `by_scope` counts them.

    Args:
      fn: any JAX function.
      *abstract_args: arrays or `jax.ShapeDtypeStruct`s; nothing is run.

    Returns:
      The count, for the whole batch of the arguments.

    >>> matrix = jax.ShapeDtypeStruct((8, 8), 'float32')
    >>> count(lambda a, b: a @ b, matrix, matrix)
    512
    """
    return by_scope(jax.make_jaxpr(fn)(*abstract_args)).total()


def by_scope(closed: jex_core.ClosedJaxpr) -> Counts:
    """Multiply-accumulates of a traced program, by `jax.named_scope`.

    Biases, normalisation, pooling and activations are not counted, nor are dead operations, which the compiler removes.
    Multiplications by the zeros that the gradient of a strided convolution inserts are not counted. A scan's body
    counts once per step, a conditional as its most expensive branch, and a while loop once.

    Returns:
      {scope: count}, the scope as JAX writes it: '/student_forward/...', '/transpose(jvp(student_forward))/...'.
    """
    counts: Counts = collections.Counter()
    _visit(closed.jaxpr, [True] * len(closed.jaxpr.outvars), '', 1, counts)
    return counts


def _visit(jaxpr: Any, used: Sequence[bool], scope: str, times: int, counts: Counts) -> list[bool]:
    """Adds the products of live equations to `counts`; returns which inputs they need.

    Args:
      jaxpr: to visit.
      used: whether each output is needed.
      scope: of this jaxpr.
      times: how often it runs.
      counts: updated in place.
    """
    live = {var for var, needed in zip(jaxpr.outvars, used, strict=True) if needed and _is_variable(var)}
    for eqn in reversed(jaxpr.eqns):
        needed = [var in live for var in eqn.outvars]
        if any(needed) or eqn.effects:
            inputs = _count(eqn, needed, f'{scope}/{eqn.source_info.name_stack}', times, counts)
            live.update(var for var, use in zip(eqn.invars, inputs, strict=True) if use and _is_variable(var))
    return [var in live for var in jaxpr.invars]


def _count(eqn: Any, needed: Sequence[bool], scope: str, times: int, counts: Counts) -> list[bool]:
    """Adds one equation's products to `counts`; returns which of its inputs it needs."""
    name, params = eqn.primitive.name, eqn.params
    everything = [True] * len(eqn.invars)
    products = _products(eqn)
    if products is not None:
        counts[scope] += products * times
        return everything
    if name == 'cond':
        branches = []
        for branch in params['branches']:
            branches.append(collections.Counter())
            _visit(branch.jaxpr, [True] * len(branch.jaxpr.outvars), scope, times, branches[-1])
        counts.update(max(branches, key=collections.Counter.total))
        return everything
    inner = [jaxpr for value in params.values() for jaxpr in _jaxprs(value)]
    if name not in ('scan', 'while') and len(inner) == 1 and _same_ends(inner[0], eqn):
        return _visit(inner[0], needed, scope, times, counts)
    for jaxpr in inner:
        _visit(jaxpr, [True] * len(jaxpr.outvars), scope, times * params.get('length', 1), counts)
    return everything


def _products(eqn: Any) -> int | None:
    """Multiply-accumulates of an equation that is one convolution or matrix product; None for others."""
    name, params = eqn.primitive.name, eqn.params
    if name == 'conv_general_dilated':
        # Each output costs the kernel's size without its output channels, whose axis dimension_numbers gives.
        kernel = eqn.invars[1].aval.shape
        products = math.prod(kernel) // kernel[params['dimension_numbers'].rhs_spec[0]]
        inserted = math.prod(params['lhs_dilation'])
        return _size(eqn.outvars[0]) * products // params['batch_group_count'] // inserted
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        return _size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if params.get('name') in _DEPTHWISE:
        return _DEPTHWISE[params['name']](eqn)
    return None


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, jex_core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, jex_core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for part in value for jaxpr in _jaxprs(part)]
    return []


def _same_ends(jaxpr: Any, eqn: Any) -> bool:
    """Whether the jaxpr has as many inputs and outputs as the equation, as in a call."""
    return (len(jaxpr.invars), len(jaxpr.outvars)) == (len(eqn.invars), len(eqn.outvars))


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, jex_core.Literal)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _taps(variable: Any) -> int:
    return math.prod(variable.aval.shape[:2])
