from __future__ import annotations

import numpy as np

from kcd_jax.methods import _parts, at


def test_attention_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('maps')
    for tap in range(3):
        maps = arrays.map(f'maps/f_s{tap}'), arrays.map(f'maps/f_t{tap}')
        loss, (grad, _) = loss_and_grad(lambda s, t: at.attention_loss(*_parts.same_size(s, t)), *maps)
        # A mean of squared differences of numbers near 1/8: three digits of the difference cancel.
        np.testing.assert_allclose(loss, arrays['at/per_tap'][tap], rtol=1e-5)
        np.testing.assert_allclose(grad, arrays.map(f'at/grad_f_s{tap}'), rtol=1e-4, atol=1e-9)


def test_stages_are_summed_without_the_stem(make_batch, make_outputs, clock):
    student, teacher = make_outputs(4, seed=1), make_outputs(4, widths=(4, 5, 7, 9), sizes=(8, 8, 8, 4), seed=2)
    got = at.make().loss({}, {}, student, teacher, make_batch(4), clock(), None).extra
    want = np.zeros(4)
    for s, t in zip(student.feats[1:], teacher.feats[1:], strict=True):
        s, t = np.float64(s), np.float64(t)
        while t.shape[1] > s.shape[1]:
            t = (t[:, ::2, ::2] + t[:, 1::2, ::2] + t[:, ::2, 1::2] + t[:, 1::2, 1::2]) / 4
        for row in range(4):
            a, b = ((f[row] ** 2).mean(-1).ravel() for f in (s, t))
            want[row] += np.mean((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_deepest_maps_of_the_deeper_network_are_unused(make_batch, make_outputs, clock):
    student = make_outputs(4, seed=1)
    longer = make_outputs(4, widths=(4, 4, 6, 8, 8), sizes=(8, 8, 4, 2, 2), seed=2)
    shorter = longer.replace(feats=longer.feats[:-1])
    losses = [at.make().loss({}, {}, student, t, make_batch(4), clock(), None).extra for t in (longer, shorter)]
    np.testing.assert_array_equal(*losses)
