"""UNIX: the uncertain part of every batch, with uncertainty-aware mixup (Xu, Liu, Loy 2020, arXiv 2012.09413).

A scoring pass over the whole batch (student, train mode) gives uncertainties. The k most uncertain points are mixed
with partners from the whole batch by c * lambda, with lambda ~ Beta(a, a) once per batch and c = sigmoid(w (r - b +
1/2) / B) increasing with the rank r. Teacher and student train on these k rows. The paper's rank is r + 1/2 in the
code, which makes c symmetric about b. The defaults w = 10, b = B / 2 and k = 3/4 B are the code's.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Batch, Policy
from kcd_jax.settings import ranges

MIXES = ('adaptive', 'constant', 'none')


def entropy(key: Array, logits: Array) -> Array:
    """f32[B]: prediction entropy in nats; the authors' form is NaN if a probability is 0."""
    del key
    return knowledge.prediction_entropy(logits)


def confidence(key: Array, logits: Array) -> Array:
    """f32[B]: 1 - max p."""
    del key
    return 1.0 - jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)


def margin(key: Array, logits: Array) -> Array:
    """f32[B]: -(p_(1) - p_(2)), the two largest probabilities."""
    del key
    top = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), 2)[0]
    return top[:, 1] - top[:, 0]


def random(key: Array, logits: Array) -> Array:
    """f32[B]: uniform in [0, 1), without a scoring pass."""
    return jax.random.uniform(key, logits.shape[:1], jnp.float32)


SCORES = {'entropy': entropy, 'confidence': confidence, 'margin': margin, 'random': random}


def uncertainty_order(score: Array) -> Array:
    """i32[B]: the rows from the most to the least uncertain, ties by row."""
    return jnp.argsort(-score, stable=True).astype(jnp.int32)


def correction(num_rows: int, w: float, b: float, batch: int) -> Array:
    """c = sigmoid(w (r - b + 1/2) / batch), f32[num_rows] for the ranks r = 0 ... num_rows - 1.

    `batch` is the configured batch size, even if a batch has fewer rows.
    """
    rank = jnp.arange(num_rows, dtype=jnp.float32)
    return jax.nn.sigmoid(w * (rank - b + 0.5) / batch)


def select_and_mix(batch: Batch, order: Array, partner: Array, share: Array) -> Batch:
    """The first k = len(share) rows of `order`, each mixed with the row `partner` by its share of pixels and label.

    Args:
      batch: B rows.
      order, partner: i32[B], permutations of the rows.
      share: f32[k], c * lambda.

    Returns:
      A batch of k rows.
    """
    rows, partner = order[: share.shape[0]], partner[: share.shape[0]]
    pixels = share.reshape((-1,) + (1,) * (batch.image.ndim - 1))
    return Batch(
        index=batch.index[rows],
        image=(1.0 - pixels) * batch.image[rows] + pixels * batch.image[partner],
        label=batch.label[rows],
        label_b=batch.label[partner],
        lam=share,
        weight=batch.weight[rows],
    )


def _draw_lambda(key: Array, beta: float) -> Array:
    """f32[], lambda ~ Beta(beta, beta). Beta(1, 1) is drawn as a uniform, without a rejection loop."""
    if beta == 1:
        return jax.random.uniform(key, (), jnp.float32)
    return jax.random.beta(key, jnp.float32(beta), jnp.float32(beta))


@ranges(
    score={'choices': tuple(SCORES)},
    mix={'choices': MIXES},
    k={'low': 0, 'high': 2**20},
    w={'low': 0, 'high': 1e6},
    b={'low': 0, 'high': 1e6},
    beta={'low': 0.001, 'high': 1000},
)
def make(
    *, score: str = 'entropy', mix: str = 'adaptive', k: int = 0, w: float = 10.0, b: float = 0.0, beta: float = 1.0
) -> Policy:
    """Builds the policy.

    Args:
      score: 'entropy' | 'confidence' | 'margin' | 'random' (no scoring pass).
      mix: 'adaptive', c from the rank; 'constant', c = 1 (with score 'random': "Mixup w/o uncertainty", else
        "Non-adaptive mixup"); 'none' (with score 'random': Random+KD).
      k: rows of the batch that are trained on; 0: three quarters of it, as a multiple of 4 if the batch is one, so that
        they divide over the devices.
      w: steepness of c.
      b: rank at which c = 1/2; 0: half of the batch.
      beta: a of lambda ~ Beta(a, a): 1 on CIFAR, 0.2 on Tiny-ImageNet and ImageNet.
    """

    def rows(batch: int) -> int:
        if k > batch:
            raise ValueError(f'k is {k}, more than the {batch} rows of a batch; use at most {batch}')
        shared = math.gcd(batch, 4)
        return k or max(1, shared * round(0.75 * batch / shared))

    def in_batch(key: Array, batch: Batch, logits: Array) -> Batch:
        size = batch.index.shape[0]
        num_rows = rows(size)
        score_key, partner_key, beta_key = jax.random.split(key, 3)
        order = uncertainty_order(SCORES[score](score_key, logits))
        if mix == 'none':
            return select_and_mix(batch, order, order, jnp.zeros(num_rows, jnp.float32))
        partner = jax.random.permutation(partner_key, jnp.arange(size, dtype=jnp.int32))
        share = _draw_lambda(beta_key, beta)
        c = correction(num_rows, w, b or size / 2, size) if mix == 'adaptive' else jnp.ones(num_rows, jnp.float32)
        return select_and_mix(batch, order, partner, c * share)

    return Policy(scores=score != 'random', rows=rows, in_batch=in_batch)
