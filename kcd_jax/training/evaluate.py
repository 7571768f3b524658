"""Accuracy on the held-out images, every image counted once, in one compiled step."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from kcd_jax import data, knowledge
from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.runtime import inflight, sharding
from kcd_jax.training import augment, feed, serving
from kcd_jax.training.program import Program

TOP5_CLASSES = 20  # report top-5 accuracy only from this many classes on
_RENAMED = {'correct': 'accuracy', 'agree': 'agreement', 'top5': 'top5_accuracy'}


class Evaluator:
    """Evaluates networks on the held-out images of a split."""

    def __init__(
        self, split: data.Split, batch: int, mesh: Mesh, workers: int = 0, seconds: dict[str, float] | None = None
    ):
        """`seconds`: as for `Program`."""
        self.batches = feed.HeldOut(split, batch, mesh, workers)
        self.labels, self.count = split.labels, self.batches.count
        self.batch, self.mesh, self.workers = batch, mesh, workers
        self._programs: dict[str, Program] = {}
        self._seconds = {'compile': 0.0} if seconds is None else seconds

    def _step(self, name: str, network: Network, *arguments: Any) -> tuple[dict[str, jax.Array], Reading]:
        if name not in self._programs:
            self._programs[name] = Program(functools.partial(eval_step, network=network), self._seconds)
        return self._programs[name](*arguments)

    def __call__(
        self, name: str, network: Network, variables: PyTree, teacher_logits: list[jax.Array] | None = None
    ) -> tuple[dict[str, float], list[jax.Array]]:
        """({'accuracy', 'loss', ...}, logits of each batch) of `network`; `name` identifies the compiled program."""
        sums, all_logits, pending = [], [], inflight.Inflight()
        for number, arrays in enumerate(self.batches):
            wanted = None if teacher_logits is None else teacher_logits[number]
            part, reading = self._step(name, network, variables, *arrays, wanted)
            sums.append(part)
            all_logits.append(reading.logits)
            pending.add(part)
        sums = jax.device_get(sums)
        means = {key: float(sum(float(part[key]) for part in sums) / self.count) for key in sums[0]}
        return {_RENAMED.get(key, key): value for key, value in means.items()}, all_logits

    def first(
        self, name: str, network: Network, variables: PyTree, teacher_logits: list[jax.Array] | None
    ) -> np.ndarray:
        """f32[B, K]: the logits of the first batch alone. Arguments as `__call__`."""
        wanted = None if teacher_logits is None else teacher_logits[0]
        with contextlib.closing(iter(self.batches)) as batches:
            return sharding.to_host(self._step(name, network, variables, *next(batches), wanted)[1].logits)

    def on_host(self, logits: list[jax.Array]) -> np.ndarray:
        """f32[N, K]: the logits of all held-out images, in their order."""
        return np.concatenate(sharding.to_host(logits))[: self.count]

    def read(
        self,
        name: str,
        network: Network,
        variables: PyTree,
        split: data.Split,
        teacher_logits: list[jax.Array] | None,
        with_embed: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(entropy f32[N] in nats, embedding f32[N, D]) of other images, by the evaluation program.

        The embedding is None without `with_embed`, if the network has none, or if all of them would take more than
        `serving.EMBEDDING_BYTES`.
        """
        unused = None if teacher_logits is None else teacher_logits[0]
        entropy, embed, start = np.empty(len(split), np.float32), None, 0
        for arrays in feed.HeldOut(split, self.batch, self.mesh, self.workers, keep=False):
            reading = self._step(name, network, variables, *arrays, unused)[1]
            size = min(len(reading.entropy), len(split) - start)  # the last batch is padded
            entropy[start : start + size] = sharding.to_host(reading.entropy)[:size]
            width = reading.embed.shape[1] if with_embed and reading.embed is not None else 0
            if width and 4 * len(split) * width <= serving.EMBEDDING_BYTES:
                embed = np.empty((len(split), width), np.float32) if embed is None else embed
                embed[start : start + size] = sharding.to_host(reading.embed)[:size]
            start += size
        return entropy, embed


# ------------------------------------------------------------------------------------------------- the compiled step


@struct.dataclass
class Reading:
    """A network's outputs for a batch: f32[B, K] logits, f32[B] entropy in nats, f32[B, D] embedding or None."""

    logits: Array
    entropy: Array
    embed: Array | None


def eval_step(
    variables: PyTree, images: Array, labels: Array, valid: Array, teacher_logits: Array | None, network: Network
) -> tuple[dict[str, Array], Reading]:
    """Sums over the valid rows of one evaluation batch, and the network's outputs for each row.

    Args:
      variables: of `network`.
      images: u8[B, H, W, 3].
      labels: i32[B].
      valid: bool[B], False on padding.
      teacher_logits: f32[B, K] or None.
      network: that is evaluated, in eval mode.

    Returns:
      ({'correct', 'loss', 'top5' from 20 classes on, 'agree' and 'teacher_kl' with a teacher: f32[]}, the outputs).
    """
    outputs, _ = network.apply(variables, augment.to_float(images), False)
    logits = outputs.logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(logits)
    prediction = jnp.argmax(logits, axis=-1)

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(valid, x.astype(jnp.float32), 0.0))

    sums = {
        'correct': total(prediction == labels),
        'loss': total(-jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]),
    }
    if logits.shape[-1] >= TOP5_CLASSES:
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        sums['top5'] = total(jnp.sum(logits > own, axis=-1) < 5)
    if teacher_logits is not None:
        log_q = jax.nn.log_softmax(teacher_logits)
        sums['agree'] = total(prediction == jnp.argmax(teacher_logits, axis=-1))
        sums['teacher_kl'] = total(jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1))
    embed = None if outputs.embed is None else outputs.embed.astype(jnp.float32)
    return sums, Reading(logits, knowledge.prediction_entropy(logits), embed)
