"""Mixup and CutMix: what is drawn for a point, the mixed image, and the rule for points that the policy mixes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.contracts import full_plan
from kcd_jax.training import augment, mixtures
from kcd_jax.training.mixtures import Mixing

pytestmark = pytest.mark.fast_compile

KEY = jax.random.PRNGKey(3)
MANY = jnp.arange(2000, dtype=jnp.int32)
DRAW = jax.jit(mixtures.draw, static_argnames='mixing')
KINDS = {
    'mixup': Mixing(0.4, 0.0, 2000, (12, 20)),
    'cutmix': Mixing(0.0, 1.0, 2000, (12, 20)),
    'both': Mixing(1.0, 1.0, 2000, (12, 20)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_mixture_is_a_function_of_the_key_and_the_point(kind):
    whole = DRAW(KEY, MANY, KINDS[kind])
    some = np.array([1999, 3, 3, 700], np.int32)
    for name, x in vars(DRAW(KEY, jnp.asarray(some), KINDS[kind])).items():
        np.testing.assert_array_equal(x, np.asarray(getattr(whole, name))[some])
    other = DRAW(jax.random.PRNGKey(4), MANY, KINDS[kind])
    assert np.mean(np.asarray(whole.partner) == np.asarray(other.partner)) < 0.01
    np.testing.assert_array_equal(
        mixtures.partners(KEY, MANY, full_plan(2000, 2000), KINDS[kind]), whole.partner
    )  # the reader and the teacher pass find the same partners


@pytest.mark.parametrize('kind', KINDS)
def test_partners_are_other_points_and_shares_are_folded(kind):
    drawn = DRAW(KEY, MANY, KINDS[kind])
    partner, share = np.asarray(drawn.partner), np.asarray(drawn.share)
    assert partner.min() >= 0 and partner.max() < 2000 and not np.any(partner == np.asarray(MANY))
    assert 1100 < len(np.unique(partner)) < 1400  # 1 - 1/e of them, if they are uniform
    assert share.min() >= 0 and share.max() <= 0.5
    mixing_of = KINDS[kind]
    folded = np.random.default_rng(0).beta(*2 * [mixing_of.mixup or 1.0], 100_000)
    folded = np.quantile(np.minimum(folded, 1 - folded), [0.1, 0.5, 0.9])
    smooth = share[~np.asarray(drawn.cut)]
    if len(smooth):  # CutMix's rectangles are smaller: they are clipped
        np.testing.assert_allclose(np.quantile(smooth, [0.1, 0.5, 0.9]), folded, atol=0.02)
    assert np.mean(drawn.cut) == pytest.approx({'mixup': 0, 'cutmix': 1, 'both': 0.5}[kind], abs=0.05)


def test_the_share_of_a_rectangle_is_its_area():
    drawn = DRAW(KEY, MANY, KINDS['cutmix'])
    top, left, bottom, right = np.asarray(drawn.box).T
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= 12 and right.max() <= 20
    assert np.all(bottom >= top) and np.all(right >= left)
    np.testing.assert_allclose(drawn.share, (bottom - top) * (right - left) / 240, rtol=1e-6)


def test_the_image_and_the_label_are_mixed_as_drawn_and_the_policys_mixture_stays():
    """Against a slow loop, without crop and flip; every third point is one that the policy mixes."""
    rng, rows = np.random.default_rng(0), 60
    image, partner = (rng.integers(0, 256, (rows, 12, 20, 3)).astype(np.uint8) for _ in range(2))
    epsilon = np.where(np.arange(rows) % 3 == 0, 0.3, 0.0).astype(np.float32)
    index = jnp.arange(rows, dtype=jnp.int32)
    view = augment.draw_view(KEY, index, pad=0, flip=False, mixing=KINDS['both'])
    found = augment.apply_view(view, jnp.asarray(image), jnp.asarray(partner), jnp.asarray(epsilon), pad=0)
    label = np.asarray(mixtures.label_share(view.mixture, jnp.asarray(epsilon)))
    drawn, kinds = view.mixture, set()
    for row in range(rows):
        one, other = image[row] / 255, partner[row] / 255
        if epsilon[row] > 0:
            wanted, share = 0.7 * one + 0.3 * other, 0.0
        elif drawn.cut[row]:
            wanted, share = one.copy(), drawn.share[row]
            top, left, bottom, right = drawn.box[row]
            wanted[top:bottom, left:right] = other[top:bottom, left:right]
        else:
            share = float(drawn.share[row])
            wanted = (1 - share) * one + share * other
        kinds.add((epsilon[row] > 0, bool(drawn.cut[row])))
        np.testing.assert_allclose(found[row], wanted, atol=1e-6)
        assert label[row] == share
    assert len(kinds) == 4


def test_points_that_the_policy_mixes_keep_its_partner():
    plan = full_plan(100, 512)
    plan = plan.replace(partner=jnp.full(512, 7, jnp.int32), epsilon=plan.epsilon.at[jnp.array([2, 5])].set(0.4))
    index = jnp.arange(100, dtype=jnp.int32)
    found = np.asarray(mixtures.partners(KEY, index, plan, Mixing(0.2, 0.0, 100, (8, 8))))
    assert found[2] == found[5] == 7 and np.mean(found == 7) < 0.1
