from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import embed


@pytest.mark.parametrize('hidden', [0, 7])
@pytest.mark.parametrize('distance', ['cosine', 'mse'])
def test_the_term_matches_a_loop(distance, hidden, make_setup, make_outputs, make_batch, clock):
    student, teacher = make_outputs(6, widths=(4, 4, 6, 5), seed=1), make_outputs(6, widths=(4, 4, 6, 9), seed=2)
    method = embed.make(distance=distance, hidden=hidden)
    params, state = method.init(jax.random.key(0), make_setup(student, teacher))
    out = method.loss(params, state, student, teacher, make_batch(6), clock(0), None)
    near = method.similarity(params, student, teacher)
    for row in range(6):
        x, y = np.asarray(student.embed[row], np.float64), np.asarray(teacher.embed[row], np.float64)
        if hidden:
            x = np.maximum(x @ np.asarray(params['hidden']['kernel']) + np.asarray(params['hidden']['bias']), 0)
            assert x.shape == (7,)
        x = x @ np.asarray(params['out']['kernel']) + np.asarray(params['out']['bias'])
        cosine = x @ y / np.sqrt((x @ x) * (y @ y))
        expected = 1 - cosine if distance == 'cosine' else np.mean((x - y) ** 2)
        assert float(out.extra[row]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert float(near[row]) == pytest.approx(cosine, rel=1e-4, abs=1e-6)


def test_a_network_without_an_embedding_is_refused(make_setup, make_outputs):
    outputs = make_outputs(4)
    with pytest.raises(ValueError, match='and the student has none'):
        embed.make().init(jax.random.key(0), make_setup(outputs.replace(embed=None), outputs))
    with pytest.raises(ValueError, match='and the teacher has none'):
        embed.make().init(jax.random.key(0), make_setup(outputs, outputs.replace(embed=None)))


def test_the_cosine_ignores_lengths():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    np.testing.assert_allclose(embed.cosine(3.0 * x, 0.5 * x), 1.0, atol=1e-6)
    np.testing.assert_allclose(embed.cosine(x, -x), -1.0, atol=1e-6)
