"""Batch normalisation with an explicit gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.networks.primitives import EPSILON, batch_normalise


def reference(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean, var = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    row = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale.reshape(row) + bias.reshape(row)


def arguments(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3.0, 2.0, shape), jnp.float32)
    scale, bias, pivot = (jnp.asarray(rng.normal(1.0, 0.5, shape[-1]), jnp.float32) for _ in range(3))
    return x, scale, bias, pivot


# One position, an odd number of them, and enough for four and for eight slices.
@pytest.mark.parametrize('shape', [(8, 5), (6, 7, 7, 3), (4, 8, 8, 3), (4, 16, 16, 2)])
def test_values_and_gradients_are_those_of_the_definition(shape):
    x, scale, bias, pivot = arguments(shape)
    upstream = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)

    def ours(x, scale, bias):
        return jnp.sum(batch_normalise(x, scale, bias, pivot)[0] * upstream)

    def theirs(x, scale, bias):
        return jnp.sum(reference(x, scale, bias) * upstream)

    normed, shift, var = batch_normalise(x, scale, bias, pivot)
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(normed, reference(x, scale, bias), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pivot + shift, np.mean(x, axes), rtol=1e-5)
    np.testing.assert_allclose(var, np.var(x, axes), rtol=1e-4)
    for found, wanted in zip(*(jax.grad(f, (0, 1, 2))(x, scale, bias) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)


def test_the_gradient_can_be_differentiated():
    x, scale, bias, pivot = arguments((6, 4, 4, 2))

    def penalty(f):
        return lambda scale: jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(jnp.sin(f(x, scale))))(x)))

    found = jax.grad(penalty(lambda x, scale: batch_normalise(x, scale, bias, pivot)[0]))(scale)
    np.testing.assert_allclose(found, jax.grad(penalty(lambda x, scale: reference(x, scale, bias)))(scale), rtol=1e-3)


def test_a_half_precision_input_keeps_its_dtype_and_float32_moments():
    x, scale, bias, pivot = arguments((4, 4, 4, 2))
    normed, shift, var = batch_normalise(x.astype(jnp.bfloat16), scale, bias, pivot)
    grad = jax.grad(lambda x: jnp.sum(batch_normalise(x, scale, bias, pivot)[0].astype(jnp.float32)))(
        x.astype(jnp.bfloat16)
    )
    assert (normed.dtype, shift.dtype, var.dtype, grad.dtype) == ('bfloat16', 'float32', 'float32', 'bfloat16')
