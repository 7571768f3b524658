from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import objective
from kcd_jax.contracts import Batch, Weights

GOLDEN = pathlib.Path(__file__).parent / 'golden'

# float32 sums of a hundred classes, in another order than PyTorch's: a few units in the last place of the largest term.
RTOL, ATOL = 1e-5, 1e-7


def batch(label, label_b=None, lam=0.0):
    label = jnp.asarray(label, jnp.int32)
    label_b = label if label_b is None else jnp.asarray(label_b, jnp.int32)
    rows = label.shape[0]
    ones = jnp.ones(rows, jnp.float32)
    return Batch(jnp.arange(rows, dtype=jnp.int32), jnp.zeros((rows, 1, 1, 3)), label, label_b, lam * ones, ones)


def slow_kd(student, teacher, temperature):
    """Hinton's term, a class at a time, in float64."""
    result = []
    for z_s, z_t in zip(np.float64(student), np.float64(teacher), strict=True):
        p = np.exp(z_s / temperature) / np.sum(np.exp(z_s / temperature))
        q = np.exp(z_t / temperature) / np.sum(np.exp(z_t / temperature))
        result.append(temperature**2 * sum(b * (np.log(b) - np.log(a)) for a, b in zip(p, q, strict=True)))
    return np.array(result)


@pytest.fixture(scope='module')
def kd():
    with np.load(GOLDEN / 'kd.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def dkd():
    with np.load(GOLDEN / 'dkd.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('temperature', [4, 1])
def test_kd_matches_the_public_code(kd, temperature):
    teacher = jnp.asarray(kd['kd/logits_t'])
    loss, grad = jax.value_and_grad(lambda z: jnp.mean(objective.kd_per_point(z, teacher, float(temperature))))(
        jnp.asarray(kd['kd/logits_s'])
    )
    np.testing.assert_allclose(loss, kd[f'kd/T{temperature}/loss'], rtol=RTOL)
    np.testing.assert_allclose(grad, kd[f'kd/T{temperature}/grad_logits_s'], rtol=RTOL, atol=ATOL)


def test_the_total_matches_the_public_code(kd):
    points = batch(kd['kd/labels'])

    def total(z):
        weights = Weights(gamma=0.1, alpha=0.9, beta=0.0, temperature=4.0)
        per_point, _ = objective.compose(weights, z, jnp.asarray(kd['kd/logits_t']), points, jnp.zeros(8))
        return objective.batch_loss(per_point, points.weight)

    loss, grad = jax.value_and_grad(total)(jnp.asarray(kd['kd/logits_s']))
    np.testing.assert_allclose(loss, kd['kd/total_r0.1_a0.9_T4/loss'], rtol=RTOL)
    np.testing.assert_allclose(grad, kd['kd/total_r0.1_a0.9_T4/grad_logits_s'], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize('temperature', [2, 3])
def test_standardised_kd_matches_the_public_code(dkd, temperature):
    points = batch(dkd['dkd/labels'])
    weights = Weights(gamma=0.0, alpha=1.0, temperature=float(temperature))

    def total(z):
        teacher = jnp.asarray(dkd['dkd/logits_t'])
        return jnp.mean(objective.compose(weights, z, teacher, points, jnp.zeros(16), 'standardised')[0])

    loss, grad = jax.value_and_grad(total)(jnp.asarray(dkd['dkd/logits_s']))
    np.testing.assert_allclose(loss, dkd[f'logitstd/kd_T{temperature}/loss'], rtol=RTOL)
    # The gradient passes through the standard deviation: one more division by it, one more rounding.
    np.testing.assert_allclose(grad, dkd[f'logitstd/kd_T{temperature}/grad'], rtol=1e-4, atol=ATOL)


def test_kd_is_a_slow_loop_per_point(kd):
    student, teacher = kd['kd/logits_s'], kd['kd/logits_t']
    np.testing.assert_allclose(
        objective.kd_per_point(jnp.asarray(student), jnp.asarray(teacher), 4.0),
        slow_kd(student, teacher, 4.0),
        rtol=RTOL,
    )


def test_cross_entropy_shares_the_label():
    logits = jnp.asarray([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    lam = jnp.asarray([0.25, 1.0])
    got = objective.cross_entropy_per_point(logits, jnp.asarray([0, 1]), jnp.asarray([2, 2]), lam)
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(got, [-0.75 * log_p[0, 0] - 0.25 * log_p[0, 2], -log_p[1, 2]], rtol=RTOL)


def test_label_smoothing_is_the_cross_entropy_with_a_softer_label(kd):
    logits, lam, share = kd['kd/logits_s'], np.linspace(0, 0.5, 8, dtype=np.float32), 0.1
    label, other = kd['kd/labels'].astype(np.int32), kd['kd/labels'][::-1].astype(np.int32)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    num_classes = logits.shape[1]
    soft = np.full(logits.shape, share / num_classes)
    for row in range(8):
        soft[row, label[row]] += (1 - share) * (1 - lam[row])
        soft[row, other[row]] += (1 - share) * lam[row]
    given = [jnp.asarray(x) for x in (logits, label, other, lam)]
    got = objective.cross_entropy_per_point(*given, share)
    np.testing.assert_allclose(got, -(soft * log_p).sum(1), rtol=1e-5)
    points, teacher = batch(label), jnp.asarray(kd['kd/logits_t'])
    plain, smooth = (
        objective.compose(Weights(1.0, 2.0), given[0], teacher, points, jnp.zeros(8), smoothing=s)[1]
        for s in (0.0, share)
    )
    np.testing.assert_array_equal(plain['kd'], smooth['kd'])  # the cross entropy alone
    assert np.all(np.asarray(plain['ce']) != np.asarray(smooth['ce']))


def test_compose_weighs_the_three_terms(kd):
    points = batch(kd['kd/labels'])
    student, teacher = jnp.asarray(kd['kd/logits_s']), jnp.asarray(kd['kd/logits_t'])
    extra = jnp.arange(8, dtype=jnp.float32)
    per_point, terms = objective.compose(Weights(0.5, 2.0, 3.0, 4.0), student, teacher, points, extra)
    assert set(terms) == {'ce', 'kd', 'extra'}
    np.testing.assert_allclose(per_point, 0.5 * terms['ce'] + 2.0 * terms['kd'] + 3.0 * extra, rtol=RTOL)
    np.testing.assert_array_equal(terms['kd'], objective.kd_per_point(student, teacher, 4.0))


def test_a_term_of_weight_zero_is_not_computed():
    points = batch([0, 1])
    logits, bad = jnp.zeros((2, 3)), jnp.full(2, jnp.nan)
    per_point, terms = objective.compose(Weights(1.0, 0.0, 0.0), logits, None, points, bad)
    assert set(terms) == {'ce'}
    np.testing.assert_allclose(per_point, np.log(3.0) * np.ones(2), rtol=RTOL)
    per_point, terms = objective.compose(Weights(0.0, 0.0, 0.0), logits, None, points, bad)
    assert not terms
    np.testing.assert_array_equal(per_point, np.zeros(2))


def test_the_loss_is_a_mean_over_rows_and_not_over_weights():
    assert objective.batch_loss(jnp.asarray([1.0, 2.0, 3.0, 4.0]), jnp.asarray([2.0, 0.0, 0.0, 1.0])) == 1.5


def test_alpha_without_a_teacher_and_unknown_logits_are_refused():
    points, logits = batch([0, 1]), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match='this method has no teacher; use weights.alpha=0'):
        objective.compose(Weights(1.0, 0.5, 0.0), logits, None, points, jnp.zeros(2))
    with pytest.raises(ValueError, match='plain, standardised'):
        objective.compose(Weights(), logits, logits, points, jnp.zeros(2), 'standardized')


def test_standardise_has_mean_zero_and_the_unbiased_deviation_one():
    logits = np.random.default_rng(0).normal(3.0, 2.0, (4, 7)).astype(np.float32)
    want = (logits - logits.mean(1, keepdims=True)) / (logits.std(1, keepdims=True, ddof=1) + 1e-7)
    np.testing.assert_allclose(objective.standardise(jnp.asarray(logits)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', ['plain', 'standardised'])
@pytest.mark.parametrize('scale', [0.0, 1.0, 1e4, 1e15])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_finite_for_any_finite_logits(kind, scale, dtype):
    student = (scale * jax.random.normal(jax.random.key(0), (4, 5))).astype(dtype)
    teacher = (scale * jax.random.normal(jax.random.key(1), (4, 5))).astype(dtype)
    points = batch([0, 1, 2, 3])

    def total(z):
        return jnp.mean(objective.compose(Weights(0.1, 0.9), z, teacher, points, jnp.zeros(4), kind)[0])

    loss, grad = jax.value_and_grad(total)(student)
    assert loss.dtype == jnp.float32 and grad.dtype == dtype
    assert jnp.isfinite(loss) and jnp.all(jnp.isfinite(grad))


def test_bfloat16_logits_are_widened_before_anything_is_summed():
    student = jax.random.normal(jax.random.key(0), (4, 100), jnp.bfloat16)
    teacher = jax.random.normal(jax.random.key(1), (4, 100), jnp.bfloat16)
    want = objective.kd_per_point(student.astype(jnp.float32), teacher.astype(jnp.float32), 4.0)
    np.testing.assert_array_equal(objective.kd_per_point(student, teacher, 4.0), want)
