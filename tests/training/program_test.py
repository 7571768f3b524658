"""Compilation: once, counted apart, and never a second time unseen."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from kcd_jax.training.program import Program


def test_it_compiles_once_and_says_how_long_that_took():
    traced, seconds = [], {'compile': 1.0}
    program = Program(
        lambda x: traced.append(x.shape) or 2 * x, seconds, look=lambda jaxpr: traced.append(len(jaxpr.eqns))
    )
    assert not traced and seconds == {'compile': 1.0}
    assert program(jnp.arange(3.0)).tolist() == [0, 2, 4]
    after = dict(seconds)
    assert after['compile'] > 1 and traced == [(3,), 1]
    assert program(jnp.ones(3)).tolist() == [2, 2, 2]
    assert seconds == after and traced == [(3,), 1]
    assert program.compiled(jnp.ones(3)) is program.compiled(jnp.ones(3))


def test_other_shapes_are_an_error():
    program = Program(jnp.sin, {'compile': 0.0})
    program(jnp.ones(3))
    with pytest.raises(TypeError, match='compiled'):
        program(jnp.ones(4))
