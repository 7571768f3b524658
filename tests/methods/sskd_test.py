from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kcd_jax import objective, policies
from kcd_jax.contracts import Batch, Network, Optimiser, Outputs, Setup, Weights
from kcd_jax.knowledge import prediction_entropy
from kcd_jax.methods import sskd
from kcd_jax.training import state as state_lib
from kcd_jax.training import step


@pytest.fixture
def arrays(golden):
    return golden('sskd')


def test_the_rows_of_a_point_are_its_rotations():
    image = jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 1)), jnp.float32)
    views = sskd.rotations(image)
    assert views.shape == (8, 3, 3, 1)
    for i in range(2):
        for r in range(4):
            np.testing.assert_array_equal(views[4 * i + r, ..., 0], np.rot90(image[i, ..., 0], r))
    # Counter-clockwise: the right column becomes the top row.
    np.testing.assert_array_equal(views[1, 0, :, 0], image[0, :, 2, 0])


def test_similarities_match_the_public_code(arrays):
    for net in ('student', 'teacher'):
        got = sskd.similarities(jnp.asarray(arrays[f'sskd/{net}_rep']))
        np.testing.assert_allclose(got, arrays[f'sskd/{net}_similarity'], rtol=1e-5, atol=1e-6)


def test_the_kept_rows_match_the_public_code(arrays):
    kept = sskd.kept_rows(jnp.asarray(arrays['sskd/teacher_similarity']), sskd.own_column(6), 0.75)
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(arrays['sskd/keep_index_ss']))
    assert len(arrays['sskd/keep_index_tf']) == 18  # the logits' ratio is 1: all rows


def slow_kept(scores, target, keep):
    rank = [
        sorted(range(len(row)), key=lambda c, row=row: -row[c]).index(y) for row, y in zip(scores, target, strict=True)
    ]
    right = [i for i, r in enumerate(rank) if r == 0]
    wrong = sorted((i for i, r in enumerate(rank) if r > 0), key=lambda i: rank[i])
    return sorted(right + wrong[: int(len(wrong) * keep)])


@pytest.mark.parametrize('keep', [0.0, 0.3, 0.75, 1.0])
def test_kept_rows_with_ties_match_a_numpy_loop(keep):
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores, target = rng.integers(0, 3, (12, 4)).astype(np.float32), rng.integers(0, 4, 12)
        got = sskd.kept_rows(jnp.asarray(scores), jnp.asarray(target, jnp.int32), keep)
        assert np.flatnonzero(got).tolist() == slow_kept(scores, target, keep)


def test_the_four_terms_and_their_gradients_match_the_public_code(arrays):
    label = jnp.asarray(arrays['sskd/labels'], jnp.int32)
    zeros = jnp.zeros(6)
    batch = Batch(label, jnp.zeros((24, 1, 1, 3)), label, label, zeros, zeros + 1.0)
    teacher_logits = jnp.asarray(arrays['sskd/teacher_logits'])
    teacher_scores = sskd.similarities(jnp.asarray(arrays['sskd/teacher_rep']))

    def total(logits, representation):
        transformed = sskd.transformed_loss(logits, teacher_logits, 4.0)
        similarity = sskd.similarity_loss(sskd.similarities(representation), teacher_scores, 0.75, 0.5)
        extra = 2.7 * transformed + 10.0 * similarity
        per_point, terms = objective.compose(sskd.WEIGHTS, logits[::4], teacher_logits[::4], batch, extra)
        return jnp.mean(per_point), {**terms, 'tf': transformed, 'ss': similarity}

    (loss, terms), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
        jnp.asarray(arrays['sskd/student_logits']), jnp.asarray(arrays['sskd/student_rep'])
    )
    for name in ('ce', 'kd', 'tf', 'ss'):
        # Cosines differ by a rounding, which the temperature 0.5 doubles; the term itself is 0.06.
        np.testing.assert_allclose(jnp.mean(terms[name]), arrays[f'sskd/loss_{name}'], rtol=1e-5)
    np.testing.assert_allclose(loss, arrays['sskd/loss_total_0.1_0.9_2.7_10'], rtol=1e-5)
    np.testing.assert_allclose(grads[0], arrays['sskd/grad_student_logits'], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], arrays['sskd/grad_student_rep'], rtol=1e-3, atol=1e-6)


def test_the_teachers_head_learns_the_true_columns_first(make_outputs, make_batch, make_setup, clock):
    method = sskd.make()
    main = Optimiser(optax.trace(0.9), lambda epoch: 0.1)
    head, student = method.phases(240, main, None)
    assert (head.epochs, head.record, head.train_mode) == (60, False, ())
    assert (student.epochs, student.record) == (240, True)
    rates = [head.optimisers['head'].lr(epoch) for epoch in (0, 29, 30, 44, 45, 59)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])
    (update,) = head.updates
    assert update.moves == ('method/teacher_head/*',) and update.weights == Weights(0.0, 0.0, 1.0)
    assert student.updates[0].moves == ('student/*', 'method/student_head/*') and student.updates[0].weights is None

    outputs, batch = make_outputs(12, seed=1), make_batch(3, views=4)
    params, _ = method.init(jax.random.key(0), make_setup(make_outputs(3), make_outputs(3)))
    extra = update.loss(params, {}, outputs, outputs, batch, clock(), None).extra

    head = jax.tree.map(np.asarray, params['teacher_head'])
    hidden = np.maximum(np.asarray(outputs.embed) @ head['linear1']['kernel'] + head['linear1']['bias'], 0.0)
    rep = hidden @ head['linear2']['kernel'] + head['linear2']['bias']
    rep /= np.linalg.norm(rep, axis=1, keepdims=True)
    want = np.zeros(3)
    for i in range(3):
        for r in range(1, 4):
            scores = rep[::4] @ rep[4 * i + r]
            want[i] += (np.log(np.exp(scores).sum()) - scores[i]) / 3
    np.testing.assert_allclose(extra, want, rtol=1e-5)


def test_the_teachers_head_gets_no_gradient_from_the_student(make_outputs, make_batch, make_setup, clock):
    method = sskd.make()
    student, teacher, batch = make_outputs(12, seed=1), make_outputs(12, seed=2), make_batch(3, views=4)
    params, _ = method.init(jax.random.key(0), make_setup(make_outputs(3), make_outputs(3)))
    grads = jax.jit(jax.grad(lambda p: jnp.mean(method.loss(p, {}, student, teacher, batch, clock(), None).extra)))(
        params
    )
    assert all(np.all(np.asarray(g) == 0.0) for g in jax.tree.leaves(grads['teacher_head']))
    assert any(np.any(np.asarray(g) != 0.0) for g in jax.tree.leaves(grads['student_head']))


def test_the_recorded_value_is_that_of_the_unrotated_view():
    """One real step with a linear student, whose logits differ from view to view."""

    def apply(variables, image, train):
        del train
        flat = image.reshape(image.shape[0], -1)
        logits = flat @ variables['params']['fc']['kernel']
        return Outputs(logits, (image,), (), flat, {}), {}

    kernel = jax.random.normal(jax.random.key(0), (48, 5))
    network = Network('linear', lambda key, shape: {'params': {'fc': {'kernel': kernel}}}, apply, tail=('fc/*',))
    method, policy = sskd.make(), policies.get('none').make()
    main = Optimiser(optax.trace(0.9), lambda epoch: 0.1)
    phases = method.phases(4, main, network)
    images = np.random.default_rng(0).integers(0, 256, (256, 4, 4, 3)).astype(np.uint8)
    labels = np.zeros(256, np.int32)
    shapes = network.output_shapes((4, 4, 3), 4)
    setup = Setup(shapes, shapes, 8, 256, 5, 4, (4, 4, 3), labels, network, network, None)
    state = state_lib.create(
        jax.random.PRNGKey(0), student=network, method=method, policy=policy, phases=phases, setup=setup, images=None
    )
    spec = step.StepSpec(network, network, method, policy, sskd.WEIGHTS, 4, crop=0, flip=False)
    order = jnp.asarray([5, 2, 7, 0, *range(252)], jnp.int32)
    rates = {'main': jnp.float32(0.1), 'phase_epoch': jnp.int32(0)}
    points = step.Points(jnp.asarray(images), jnp.asarray(labels))
    teacher = {'params': {'fc': {'kernel': kernel}}}
    after, _ = step.run_chunk(state, order, rates, points, teacher, spec=spec, phase=phases[1], length=1)
    logits = (images / 255.0).astype(np.float32).reshape(256, -1) @ np.asarray(kernel)
    visited = order[:4]
    np.testing.assert_array_equal(np.nonzero(np.asarray(after.table.count))[0], sorted(visited.tolist()))
    # float32 sums of 48 products, in another order.
    np.testing.assert_allclose(after.table.value[visited], prediction_entropy(logits[visited]), rtol=1e-4, atol=1e-5)


def test_unsuitable_inputs_are_refused_in_one_line(make_outputs, make_setup):
    with pytest.raises(ValueError, match='8x16 is not square'):
        sskd.make().init(jax.random.key(0), make_setup(make_outputs(2), make_outputs(2), image_shape=(8, 16, 3)))
    with pytest.raises(ValueError, match=r'keep is 1\.5'):
        sskd.make(keep=1.5)
    with pytest.raises(ValueError, match='head_fraction is 0'):
        sskd.make(head_fraction=0)
