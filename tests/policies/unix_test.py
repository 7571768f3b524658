"""The policy `unix` against the public code's golden vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.contracts import Batch
from kcd_jax.policies import unix

VARIANTS = ['entropy_w1', 'entropy_w10', 'entropy_w1000', 'confidence_w10', 'margin_w10', 'random_w10']


def golden_batch(golden, rows=64):
    images = jnp.asarray(golden['x'][:rows].transpose(0, 2, 3, 1))
    label = jnp.asarray(golden['labels'][:rows], jnp.int32)
    index = jnp.arange(100, 100 + rows, dtype=jnp.int32)
    return Batch(index, images, label, label, jnp.zeros(rows, jnp.float32), jnp.ones(rows, jnp.float32))


@pytest.mark.parametrize('variant', VARIANTS)
def test_golden(golden, variant):
    golden = golden('unix')
    name, w = variant.split('_w')
    stored = {key: golden[f'{variant}/{key}'] for key in ('scores', 'order', 'c', 'mixed_x')}
    scores = stored['scores']
    if name != 'random':
        scores = unix.SCORES[name](jax.random.key(0), jnp.asarray(golden['student_logits']))
        # Softmax in float32 by two libraries; the margin is a small difference of large probabilities.
        np.testing.assert_allclose(scores, stored['scores'], rtol=1e-5, atol=1e-6)
    order = unix.uncertainty_order(jnp.asarray(scores))
    np.testing.assert_array_equal(order, stored['order'])
    c = unix.correction(64, float(w), int(golden['b']), 64)
    # At w = 1000 the argument is in the hundreds, its last bit 3e-5.
    np.testing.assert_allclose(c, stored['c'], rtol=1e-4, atol=1e-7)
    share = c[: int(golden['k'])] * golden['lambda']
    mixed = unix.select_and_mix(golden_batch(golden), order, jnp.asarray(golden['shuffle_index']), share)
    np.testing.assert_allclose(mixed.image.transpose(0, 3, 1, 2), stored['mixed_x'], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(mixed.index, 100 + stored['order'][:48])
    np.testing.assert_array_equal(mixed.label_b, golden['labels'][golden['shuffle_index']][:48])
    np.testing.assert_allclose(mixed.lam, share)


def test_golden_losses(golden):
    """The label's share is the pixels' share: CE = (1 - lam) CE(label) + lam CE(label_b)."""
    golden = golden('unix')
    order = jnp.asarray(golden['entropy_w10/order'])
    share = unix.correction(48, 10.0, 32, 64) * golden['lambda']
    mixed = unix.select_and_mix(golden_batch(golden), order, jnp.asarray(golden['shuffle_index']), share)
    log_p = np.asarray(jax.nn.log_softmax(golden['mixed_student_logits']))
    rows = np.arange(48)
    expected = -(1 - mixed.lam) * log_p[rows, mixed.label] - mixed.lam * log_p[rows, mixed.label_b]
    np.testing.assert_allclose(expected, golden['entropy_w10/loss_ce_per_sample'], rtol=1e-5)


def test_a_short_batch_keeps_the_configured_scale(golden):
    golden = golden('unix')
    stored = {key: golden[f'last_batch16_entropy_w10/{key}'] for key in ('order', 'c', 'mixed_x', 'shuffle_index')}
    c = unix.correction(16, 10.0, 32, 64)
    np.testing.assert_allclose(c, stored['c'], rtol=1e-5)
    order = unix.uncertainty_order(unix.entropy(None, jnp.asarray(golden['student_logits'][:16])))
    np.testing.assert_array_equal(order, stored['order'])
    mixed = unix.select_and_mix(
        golden_batch(golden, 16), order, jnp.asarray(stored['shuffle_index']), c * golden['lambda']
    )
    np.testing.assert_allclose(mixed.image.transpose(0, 3, 1, 2), stored['mixed_x'], rtol=1e-5, atol=1e-6)


def test_variants(golden):
    batch = golden_batch(golden('unix'))
    logits = jnp.asarray(golden('unix')['student_logits'])
    random = unix.make(score='random', mix='none', k=40)
    assert not random.scores and unix.make().scores
    chosen = random.in_batch(jax.random.key(0), batch, logits)
    assert chosen.index.shape == (40,) and not chosen.lam.any() and (chosen.label_b == chosen.label).all()
    np.testing.assert_array_equal(chosen.image, batch.image[chosen.index - 100])
    constant = unix.make(mix='constant').in_batch(jax.random.key(0), batch, logits)
    assert len(set(constant.lam.tolist())) == 1
    order = unix.uncertainty_order(unix.entropy(None, logits))
    np.testing.assert_array_equal(constant.index, 100 + order[:48])
    adaptive = unix.make(k=64).in_batch(jax.random.key(0), batch, logits)
    assert (np.diff(adaptive.lam) > 0).all()
    # The same lambda; c(r) + c(63 - r) = 1.
    np.testing.assert_allclose(adaptive.lam + adaptive.lam[::-1], constant.lam[0], rtol=1e-5)


def test_scores_are_finite_for_certain_predictions():
    logits = jnp.asarray([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]], jnp.float32)
    for score in (unix.entropy, unix.confidence, unix.margin):
        found = score(None, logits)
        assert np.isfinite(found).all() and found[1] > found[0]


def test_rows_and_refused_options():
    assert [unix.make().rows(b) for b in (64, 256, 32, 20, 6, 1)] == [48, 192, 24, 16, 4, 1]
    with pytest.raises(ValueError, match='k is 48, more than the 32 rows of a batch; use at most 32'):
        unix.make(k=48).rows(32)
    with pytest.raises(ValueError, match='use one of entropy, confidence, margin, random'):
        unix.make(score='loss')
    with pytest.raises(ValueError, match='beta is 0'):
        unix.make(beta=0)
    with pytest.raises(ValueError, match='k is -1'):
        unix.make(k=-1)
