"""Accuracy on the held-out images, every image counted once, in one compiled step."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
from jax.sharding import Mesh

from kcd_jax import data, feed, step


class Evaluator:
    """Accuracy of a network on the held-out images, every image counted once, in one compiled step."""

    def __init__(self, split: data.Split, batch: int, mesh: Mesh, workers: int = 0):
        self.batches = feed.HeldOut(split, batch, mesh, workers)
        self.count = self.batches.count
        self.compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, name: str, network, variables, teacher_logits=None) -> tuple[dict[str, float], list[jax.Array]]:
        """({'accuracy', 'loss', ...}, logits of each batch) of `network`; `name` keys the compiled program."""
        sums, all_logits = [], []
        for number, arrays in enumerate(self.batches):
            wanted = None if teacher_logits is None else teacher_logits[number]
            if name not in self.compiled:
                start = time.perf_counter()
                jitted = jax.jit(functools.partial(step.eval_step, network=network))
                self.compiled[name] = jitted.lower(variables, *arrays, wanted).compile()
                self.compile_seconds += time.perf_counter() - start
            part, logits = self.compiled[name](variables, *arrays, wanted)
            sums.append(part)
            all_logits.append(logits)
        sums = jax.device_get(sums)
        means = {key: float(sum(float(part[key]) for part in sums) / self.count) for key in sums[0]}
        renamed = {'correct': 'accuracy', 'agree': 'agreement'}
        return {renamed.get(key, key): value for key, value in means.items()}, all_logits
