from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import reviewkd


def test_the_pyramid_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('reviewkd')
    for level in range(4):
        maps = arrays.map(f'reviewkd/hcl/f_s{level}'), arrays.map(f'reviewkd/hcl/f_t{level}')
        loss, (grad, _) = loss_and_grad(reviewkd.pyramid, *maps)
        np.testing.assert_allclose(loss, arrays[f'reviewkd/hcl/term{level}'], rtol=1e-5)
        np.testing.assert_allclose(grad, arrays.map(f'reviewkd/hcl/grad_f_s{level}'), rtol=1e-5, atol=1e-8)


def test_the_fused_maps_match_the_public_code(golden):
    arrays = golden('reviewkd')
    params, pairs = {}, []
    for level in range(3):  # 0 is the deepest
        at, student = f'reviewkd/abf/{level}', 2 - level
        width, channels = arrays[f'{at}/conv1_w_OIHW'].shape[0], arrays[f'{at}/conv2_w_OIHW'].shape[0]
        params[f'level{level}'] = {
            'conv1': {'kernel': jnp.asarray(arrays.kernel(f'{at}/conv1_w_OIHW'))},
            'conv2': {'kernel': jnp.asarray(arrays.kernel(f'{at}/conv2_w_OIHW'))},
            'norm1': {'scale': jnp.ones(width), 'bias': jnp.zeros(width)},
            'norm2': {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)},
        }
        if level:
            attention = {
                'kernel': jnp.asarray(arrays.kernel(f'{at}/att_w_OIHW')),
                'bias': jnp.asarray(arrays[f'{at}/att_b']),
            }
            params[f'level{level}']['attention'] = attention
        size = int(arrays['reviewkd/abf/out_shapes'][level])
        pairs.append((jnp.asarray(arrays.map(f'reviewkd/abf/in{student}')), (size, size)))
    fused = jax.jit(lambda params: reviewkd.review(params, pairs))(params)
    for level, out in enumerate(fused):
        # The deepest maps have four values a channel to normalise by; their deviation may be small.
        np.testing.assert_allclose(out, arrays.map(f'reviewkd/abf/out{2 - level}'), rtol=1e-3, atol=1e-4)


def test_nearest_reads_the_floor():
    x = jnp.arange(3, dtype=jnp.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(reviewkd.nearest(x, (7, 1)).ravel(), [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(reviewkd.nearest(x, (2, 1)).ravel(), [0, 1])


def test_a_pyramid_of_seven_pools_to_uneven_cells():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 7, 7, 3)), rng.normal(size=(2, 7, 7, 3))

    def pool(x, size):
        cells = [range(i * 7 // size, -(-(i + 1) * 7 // size)) for i in range(size)]
        return np.stack([np.stack([x[:, a][:, :, b].mean((1, 2)) for b in cells], 1) for a in cells], 1)

    want, weights = np.mean((s - t) ** 2, (1, 2, 3)), 1.0
    for weight, size in ((0.5, 4), (0.25, 2), (0.125, 1)):
        want = want + weight * np.mean((pool(s, size) - pool(t, size)) ** 2, (1, 2, 3))
        weights += weight
    got = reviewkd.pyramid(jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(got, want / weights, rtol=1e-5)


def test_levels_are_paired_from_the_pooled_vector_up():
    assert reviewkd.paired_levels(['s1', 's2', 's3', 'sp'], ['t1', 't2', 't3', 'tp']) == [
        ('sp', 'tp'), ('s3', 't3'), ('s2', 't2'), ('s1', 't1'),
    ]  # fmt: skip
    assert reviewkd.paired_levels(['s1', 's2', 's3', 'sp'], ['t1', 't2', 'tp']) == [
        ('sp', 'tp'),
        ('s2', 't2'),
        ('s1', 't1'),
    ]


def test_widths_and_warm_up(make_outputs, make_setup, make_batch, clock):
    student, teacher = make_outputs(4, seed=1), make_outputs(4, widths=(4, 5, 7, 9), sizes=(8, 8, 8, 4), seed=2)
    method = reviewkd.make()
    params, state = method.init(jax.random.key(0), make_setup(student, teacher))
    assert [params[f'level{i}']['conv1']['kernel'].shape for i in range(4)] == [(1, 1, c, 8) for c in (8, 8, 6, 4)]
    assert [params[f'level{i}']['conv2']['kernel'].shape for i in range(4)] == [(3, 3, 8, c) for c in (9, 9, 7, 5)]
    assert 'attention' not in params['level0']

    loss = jax.jit(method.loss)
    extra = [loss(params, state, student, teacher, make_batch(4), clock(epoch), None).extra for epoch in (0, 5, 20, 99)]
    np.testing.assert_array_equal(extra[0], np.zeros(4))
    np.testing.assert_allclose(extra[1], 0.25 * extra[2], rtol=1e-6)
    np.testing.assert_array_equal(extra[2], extra[3])


def test_the_teacher_is_compared_before_its_activation(make_outputs, make_setup, make_batch, clock):
    student, teacher = make_outputs(4, seed=1), make_outputs(4, seed=2)
    method = reviewkd.make(warmup=0)
    params, state = method.init(jax.random.key(0), make_setup(student, teacher))
    loss = jax.jit(method.loss)
    want = loss(params, state, student, teacher, make_batch(4), clock(), None).extra
    other = teacher.replace(feats=tuple(jnp.zeros_like(f) for f in teacher.feats))
    np.testing.assert_array_equal(loss(params, state, student, other, make_batch(4), clock(), None).extra, want)


def test_a_teacher_without_preactivations_is_refused(make_outputs, make_setup):
    with pytest.raises(ValueError, match=r'preacts.*use at, sp or crd'):
        reviewkd.make().init(jax.random.key(0), make_setup(make_outputs(2), make_outputs(2).replace(preacts=())))
