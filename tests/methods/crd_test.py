from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.contracts import Outputs, Setup
from kcd_jax.methods import _contrast, crd
from kcd_jax.runtime import sharding

NUM_POINTS, SIZE = 96, 16


@functools.partial(jax.jit, static_argnames='momentum')
def golden_step(params, bank, student, teacher, index, negatives, momentum):
    """((loss, new bank), gradients of the layers and of the student's vectors) with given negatives."""
    side = functools.partial(_contrast.noise_contrast, temperature=0.07)

    def loss(params, student):
        s, t = crd.embed(params['embed_student'], student), crd.embed(params['embed_teacher'], teacher)
        weight = jnp.ones(student.shape[0])
        extra, new = _contrast.contrast(s, t, bank, index, weight, negatives, momentum, side)
        return jnp.mean(extra), new

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, student)


def test_two_steps_match_the_public_code(golden):
    arrays = golden('crd')
    params = {
        f'embed_{side}': {
            'kernel': jnp.asarray(arrays[f'crd/embed_{s}_w_OI'].T),
            'bias': jnp.asarray(arrays[f'crd/embed_{s}_b']),
        }
        for side, s in (('student', 's'), ('teacher', 't'))
    }
    bank = {
        'student': jnp.asarray(arrays['crd/memory_v1_init']),
        'teacher': jnp.asarray(arrays['crd/memory_v2_init']),
        'normaliser': jnp.ones(2),
        'ready': jnp.zeros((), jnp.bool_),
        'by_class': jnp.arange(NUM_POINTS, dtype=jnp.int32),
    }
    for step in range(2):
        at = f'crd/step{step}'
        index = jnp.asarray(arrays[f'{at}/idx'], jnp.int32)
        columns = jnp.asarray(arrays[f'{at}/contrast_idx'], jnp.int32)
        np.testing.assert_array_equal(columns[:, 0], index)
        student, teacher = jnp.asarray(arrays[f'{at}/f_s']), jnp.asarray(arrays[f'{at}/f_t'])
        (loss, bank), (layers, grad) = golden_step(params, bank, student, teacher, index, columns[:, 1:], momentum=0.5)
        # exp(score / 0.07) turns one unit in the last place of a cosine into fourteen.
        np.testing.assert_allclose(loss, arrays[f'{at}/loss'], rtol=1e-5)
        np.testing.assert_allclose(bank['normaliser'], arrays[f'{at}/Z_v1_Z_v2'], rtol=1e-5)
        np.testing.assert_allclose(grad, arrays[f'{at}/grad_f_s'], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(
            layers['embed_student']['kernel'], arrays[f'{at}/grad_embed_s_w'].T, rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(
            layers['embed_teacher']['kernel'], arrays[f'{at}/grad_embed_t_w'].T, rtol=1e-3, atol=1e-6
        )
        # Unit vectors after one division.
        np.testing.assert_allclose(bank['student'], arrays[f'{at}/memory_v1_after'], atol=1e-6)
        np.testing.assert_allclose(bank['teacher'], arrays[f'{at}/memory_v2_after'], atol=1e-6)


def state_of(make_setup, make_outputs, **options):
    setup = make_setup(make_outputs(4), make_outputs(4), **options)
    return crd.make(size=8).init(jax.random.key(0), setup)[1], np.asarray(setup.labels)


def test_negatives_are_of_other_classes_and_all_of_them(make_setup, make_outputs):
    state, labels = state_of(make_setup, make_outputs, num_classes=4, num_points=30)
    label = jnp.arange(4, dtype=jnp.int32)
    drawn = np.asarray(_contrast.draw_negatives(jax.random.key(1), state, label, 4096))
    for own in range(4):
        others = np.flatnonzero(labels[:30] != own)
        points, counts = np.unique(drawn[own], return_counts=True)
        np.testing.assert_array_equal(points, others)
        # 4096 draws over 22 or 23 points: about 180 each, standard deviation 13; five of them.
        assert np.all(np.abs(counts - 4096 / len(others)) < 5 * np.sqrt(4096 / len(others)))


def test_the_bank_is_initialised_in_the_published_range(golden):
    bound = float(golden('crd')['crd/memory_init_bound'])
    assert pytest.approx(bound, rel=1e-6) == 1 / np.sqrt(SIZE / 3)
    outputs = Outputs(jnp.zeros((2, 3)), embed=jnp.zeros((2, 4)))
    setup = Setup(outputs, outputs, 50, 256, 3, 2, (8, 8, 3), np.arange(256) % 3, None, None, None)
    bank = _contrast.bank_init(jax.random.key(0), setup, SIZE)
    for side in ('student', 'teacher'):
        assert bank[side].shape == (256, SIZE)
        assert 0.99 * bound < np.max(np.abs(bank[side])) <= bound
    assert not np.array_equal(bank['student'], bank['teacher'])


def test_only_rows_with_a_weight_and_an_index_move(make_setup, make_outputs):
    state, _ = state_of(make_setup, make_outputs)
    rows = state['student'].shape[0]
    index = jnp.asarray([3, 7, rows, 5], jnp.int32)
    weight = jnp.asarray([1.0, 0.0, 1.0, 2.0])
    embedding = jnp.eye(4, 8)
    got = np.asarray(_contrast.update_bank(state['student'], index, embedding, weight, 0.5))
    want = np.asarray(state['student']).copy()
    for row, point in ((0, 3), (3, 5)):
        mixed = 0.5 * want[point] + 0.5 * np.asarray(embedding[row])
        want[point] = mixed / np.linalg.norm(mixed)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.delete(got, (3, 5), 0), np.delete(np.asarray(state['student']), (3, 5), 0))


def test_the_normaliser_is_set_once(make_setup, make_outputs, make_batch, clock):
    method = crd.make(num_negatives=8, size=8)
    student, teacher, batch = make_outputs(4, seed=1), make_outputs(4, seed=2), make_batch(4)
    params, state = method.init(jax.random.key(0), make_setup(student, teacher))
    loss = jax.jit(method.loss)
    first = loss(params, state, student, teacher, batch, clock(), jax.random.key(1)).state
    second = loss(params, first, teacher, student, batch, clock(), jax.random.key(2)).state
    assert bool(first['ready']) and not bool(state['ready'])
    np.testing.assert_array_equal(first['normaliser'], second['normaliser'])
    assert np.all(np.asarray(first['normaliser']) != 1.0)
    assert not np.array_equal(first['student'], second['student'])


def test_a_split_bank_gives_what_a_replicated_one_gives(make_setup, make_outputs):
    state, labels = state_of(make_setup, make_outputs)
    mesh = sharding.make_mesh()
    rng = np.random.default_rng(0)
    size = state['student'].shape[1]
    student, teacher = (jnp.asarray(rng.normal(size=(8, size)), jnp.float32) for _ in range(2))
    index = jnp.asarray(rng.permutation(len(labels))[:8], jnp.int32)
    negatives = jnp.asarray(rng.integers(0, len(labels), (8, 30)), jnp.int32)
    side = functools.partial(_contrast.noise_contrast, temperature=0.07)

    @jax.jit
    def contrast(bank):
        return _contrast.contrast(student, teacher, bank, index, jnp.ones(8), negatives, 0.5, side)

    split = {
        name: sharding.put(leaf, sharding.batch(mesh) if leaf.ndim == 2 else sharding.replicated(mesh))
        for name, leaf in state.items()
    }
    # A product over a split bank may sum in another order.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), contrast(split), contrast(state))


def test_one_class_is_refused_in_one_line(make_setup, make_outputs):
    with pytest.raises(ValueError, match='one class; use kd'):
        state_of(make_setup, make_outputs, num_classes=1)
