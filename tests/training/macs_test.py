"""The counter of multiply-accumulates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from kcd_jax.networks import primitives
from kcd_jax.training import macs

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(('stride', 'positions'), [(1, 64), (2, 16)])
def test_convolution(stride, positions):
    count = macs.count(lambda x, k: primitives.plain(x, k, stride), X, shape(3, 3, 4, 6))
    assert count == 2 * positions * 9 * 4 * 6


def test_grouped_convolution():
    assert macs.count(lambda x, k: primitives.plain(x, k, 1, 2), X, shape(1, 1, 2, 6)) == 2 * 64 * 2 * 6


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_gradients_cost_twice_the_forward(size, stride):
    def loss(x, k):
        return jnp.sum(primitives.convolve(x, k, stride))

    forward = macs.count(loss, X, shape(size, size, 4, 6))
    assert macs.count(jax.value_and_grad(loss, argnums=(0, 1)), X, shape(size, size, 4, 6)) == 3 * forward


@pytest.mark.parametrize('stride', [1, 2])
def test_depthwise_as_shifted_products_counts_as_a_convolution(stride):
    kernel = shape(3, 3, 1, 4)
    forward = macs.count(lambda x, k: primitives.depthwise(x, k, stride), X, kernel)
    assert forward == 2 * (64 // stride**2) * 9 * 4
    assert forward == macs.count(lambda x, k: primitives.plain(x, k, stride, 4), X, kernel)
    gradient = jax.grad(lambda x, k: jnp.sum(primitives.depthwise(x, k, stride) ** 2), argnums=(0, 1))
    assert macs.count(gradient, X, kernel) == 3 * forward


def test_products_inside_other_transformations():
    a, b = shape(3, 5), shape(5, 7)
    product = 3 * 5 * 7

    def scanned(a, b):
        return jax.lax.scan(lambda carry, _: (carry + jnp.sum(a @ b), None), jnp.float32(0), length=4)[0]

    def branched(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a @ b) + (a @ b))

    assert macs.count(jnp.matmul, a, b) == product
    assert macs.count(jax.jit(jax.checkpoint(jnp.matmul)), a, b) == product
    assert macs.count(scanned, a, b) == 4 * product
    assert macs.count(branched, a, b) == 2 * product
    assert macs.count(jax.vmap(jnp.matmul, (0, None)), shape(6, 3, 5), b) == 6 * product


def test_what_no_result_depends_on_is_not_counted():
    a, b = shape(3, 5), shape(5, 7)

    @jax.jit
    def both(a, b):
        return a @ b, jnp.sum(a @ b) + 1.0

    assert macs.count(lambda a, b: jnp.sum(a) + 0 * len([a @ b]), a, b) == 0
    assert macs.count(lambda a, b: both(a, b)[0], a, b) == 3 * 5 * 7
    assert macs.count(both, a, b) == 2 * 3 * 5 * 7
