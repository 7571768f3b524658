from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kcd_jax.methods import sp


def test_the_similarity_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('maps')
    maps = arrays.map('maps/f_s1'), arrays.map('maps/f_t1')
    loss, (grad, _) = loss_and_grad(lambda s, t: sp.similarity_loss(s, t, 64), *maps)
    # Differences of cosines of about 0.1 between numbers near 0.9.
    np.testing.assert_allclose(loss, arrays['sp/loss'], rtol=1e-5)
    np.testing.assert_allclose(grad, arrays.map('sp/grad_f_s1'), rtol=1e-4, atol=1e-9)


def test_groups_have_the_papers_batch_size_and_are_independent():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(12, 2, 2, 3)), jnp.float32) for _ in range(2))
    whole = sp.similarity_loss(student, teacher, 4)
    parts = [sp.similarity_loss(student[i : i + 4], teacher[i : i + 4], 4) for i in (0, 4, 8)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5)


def test_a_points_share_is_its_row_of_the_matrix():
    rng = np.random.default_rng(1)
    student, teacher = (rng.normal(size=(5, 6)).astype(np.float32) for _ in range(2))
    gram = [f @ f.T / np.linalg.norm(f @ f.T, axis=1, keepdims=True) for f in (student, teacher)]
    want = ((gram[1] - gram[0]) ** 2).sum(1) / 5
    np.testing.assert_allclose(sp.similarity_loss(jnp.asarray(student), jnp.asarray(teacher), 64), want, rtol=1e-4)
