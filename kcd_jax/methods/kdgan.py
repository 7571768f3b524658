"""KDGAN: distillation with a discriminator (Wang et al., NeurIPS 2018), with a frozen teacher.

The discriminator D gives K logits per image and scores a pair (image, label) by sigmoid(D(x)[label]). Each step makes
two updates:

  discriminator: -log D(x, y) - (1 - share) E_{k ~ student} log(1 - D(x, k)) - share E_{k ~ teacher} log(1 - D(x, k)),
    with exact expectations over the classes and share = `teacher_share`;
  student: CE + adversarial * (-log sigmoid(sum_k y_k D(x)_k)) + mimic * 1/2 sum_k (z_t - z_s)^2, with y a
    straight-through Gumbel-softmax sample of the student at temperature 1.

Differences from the authors' code, which is complete for MNIST only: the teacher is pretrained and does not learn from
the student; the players alternate in every step, not in blocks of epochs; labels are not sampled for the discriminator;
the discriminator has three convolutions of stride 2 (32, 64, 128), a global average and a linear layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Phase, PyTree, Update, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)

WIDTHS = (32, 64, 128)


def discriminator_init(key: Array, num_classes: int) -> PyTree:
    """Three convolutions and a linear layer."""
    keys = jax.random.split(key, len(WIDTHS) + 1)
    params = {
        f'conv{i + 1}': _parts.conv_init(keys[i], (3, 3, channels, width), bias=True)
        for i, (channels, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False))
    }
    return {**params, 'linear': _parts.linear_init(keys[-1], WIDTHS[-1], num_classes)}


def discriminate(params: PyTree, image: Array) -> Array:
    """[B, H, W, 3] in [0, 1] -> f32[B, K]: the logit of each label being the true one."""
    x = 2.0 * image.astype(jnp.float32) - 1.0
    for i in range(len(WIDTHS)):
        x = jax.nn.relu(_parts.conv(params[f'conv{i + 1}'], x, stride=2))
    return _parts.linear(params['linear'], jnp.mean(x, axis=(1, 2)))


def discriminator_loss(
    scores: Array, label: Array, student_logits: Array, teacher_logits: Array, teacher_share: float
) -> Array:
    """f32[B] in nats; student and teacher get no gradient."""
    student, teacher = (
        jax.nn.softmax(jax.lax.stop_gradient(z).astype(jnp.float32)) for z in (student_logits, teacher_logits)
    )
    players = (1.0 - teacher_share) * student + teacher_share * teacher
    own = jnp.take_along_axis(scores, label[:, None], axis=1)[:, 0]
    return jax.nn.softplus(-own) + jnp.sum(players * jax.nn.softplus(scores), axis=1)


def straight_through_sample(key: Array, logits: Array) -> Array:
    """f32[B, K]: a one-hot sample of softmax(logits), with the gradient of the Gumbel-softmax at temperature 1."""
    noisy = logits.astype(jnp.float32) + jax.random.gumbel(key, logits.shape, jnp.float32)
    soft = jax.nn.softmax(noisy)
    hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), logits.shape[-1], dtype=jnp.float32)
    return jax.lax.stop_gradient(hard - soft) + soft


def student_loss(
    scores: Array, sample: Array, student_logits: Array, teacher_logits: Array, adversarial: float, mimic: float
) -> Array:
    """f32[B]: the student's loss besides its cross entropy."""
    difference = teacher_logits.astype(jnp.float32) - student_logits.astype(jnp.float32)
    fooled = jax.nn.softplus(-jnp.sum(sample * scores, axis=-1))
    return adversarial * fooled + mimic * 0.5 * jnp.sum(difference**2, axis=-1)


@ranges(
    adversarial={'low': 0, 'high': 1e6},
    mimic={'low': 0, 'high': 1e6},
    teacher_share={'low': 0, 'high': 1},
)
def make(*, adversarial: float = 0.5, mimic: float = 0.5, teacher_share: float = 0.5) -> Method:
    """Builds the method.

    Args:
      adversarial: weight of the student's term that the discriminator judges.
      mimic: weight of half the squared distance of the student's logits to the teacher's.
      teacher_share: fraction of the discriminator's false pairs that come from the teacher, in [0, 1].
    """

    def init(key, setup):
        return {'discriminator': discriminator_init(key, setup.num_classes)}, {}

    def discriminator(params, state, student, teacher, batch, clock, key):
        del clock, key
        scores = discriminate(params['discriminator'], batch.image)
        return LossOut(discriminator_loss(scores, batch.label, student.logits, teacher.logits, teacher_share), state)

    def loss(params, state, student, teacher, batch, clock, key):
        del clock
        scores = jax.lax.stop_gradient(discriminate(params['discriminator'], batch.image))
        sample = straight_through_sample(key, student.logits)
        return LossOut(student_loss(scores, sample, student.logits, teacher.logits, adversarial, mimic), state)

    def phases(epochs, main, student):
        del student
        first = Update(
            discriminator,
            ('method/discriminator/*',),
            'discriminator',
            Weights(gamma=0.0, alpha=0.0, beta=1.0),
            keep=False,
        )
        second = Update(loss, ('student/*',), 'main')
        return (Phase('main', epochs, ('student/*',), {'discriminator': main, 'main': main}, (first, second)),)

    return Method(loss=loss, init=init, phases=phases, needs=('logits',), needs_labels=True)
