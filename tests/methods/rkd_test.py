from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kcd_jax.methods import rkd

# The public code takes distances from the Gram matrix, which loses two or three digits; ours are the differences'.
RTOL = 1e-4


def test_distance_and_angle_match_the_public_code(golden, loss_and_grad):
    arrays = golden('pooled')
    student, teacher = jnp.asarray(arrays['pooled/f_s']), jnp.asarray(arrays['pooled/f_t'])
    np.testing.assert_allclose(
        jnp.mean(rkd.distance_loss(student, teacher, 64)), arrays['rkd/loss_distance_only'], rtol=RTOL
    )
    np.testing.assert_allclose(jnp.mean(rkd.angle_loss(student, teacher, 64)), arrays['rkd/loss_angle_only'], rtol=RTOL)

    def both(s, t):
        return 25.0 * rkd.distance_loss(s, t, 64) + 50.0 * rkd.angle_loss(s, t, 64)

    loss, (grad, _) = loss_and_grad(both, student, teacher)
    np.testing.assert_allclose(loss, arrays['rkd/loss_w25_w50'], rtol=RTOL)
    np.testing.assert_allclose(grad, arrays['rkd/grad_f_s'], rtol=1e-3, atol=1e-6)


def slow(e_s, e_t):
    """(distance, angle) of every point, straight from the equations."""
    rows = len(e_s)

    def huber(x):
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    def distances(e):
        d = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
        return d / d[d > 0].mean()

    def cosine(e, i, j, k):
        a, b = e[j] - e[i], e[k] - e[i]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) if len({i, j, k}) == 3 or (j == k != i) else 0.0

    d_s, d_t = distances(e_s), distances(e_t)
    distance = [np.mean([huber(d_s[i, j] - d_t[i, j]) for j in range(rows)]) for i in range(rows)]
    angle = [
        np.mean([huber(cosine(e_s, i, j, k) - cosine(e_t, i, j, k)) for j in range(rows) for k in range(rows)])
        for i in range(rows)
    ]
    return np.array(distance), np.array(angle)


def test_every_points_term_matches_a_numpy_loop():
    rng = np.random.default_rng(0)
    e_s, e_t = rng.normal(size=(8, 3)), rng.normal(size=(8, 4))
    student, teacher = jnp.asarray(e_s, jnp.float32), jnp.asarray(e_t, jnp.float32)
    parts = [slow(e_s[i : i + 4], e_t[i : i + 4]) for i in (0, 4)]
    np.testing.assert_allclose(
        rkd.distance_loss(student, teacher, 4), np.concatenate([p[0] for p in parts]), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        rkd.angle_loss(student, teacher, 4), np.concatenate([p[1] for p in parts]), rtol=1e-4, atol=1e-7
    )


def test_gradient_is_finite_for_equal_points(loss_and_grad):
    rng = np.random.default_rng(0)
    student = rng.normal(size=(6, 3)).astype(np.float32)
    student[1] = student[0]
    teacher = rng.normal(size=(6, 3)).astype(np.float32)
    _, (grad, _) = loss_and_grad(lambda s, t: rkd.angle_loss(s, t, 64) + rkd.distance_loss(s, t, 64), student, teacher)
    assert np.max(np.abs(grad)) < 10.0
