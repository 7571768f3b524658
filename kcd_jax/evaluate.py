"""Accuracy on the held-out images, every image counted once, in one compiled step."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kcd_jax import data, sharding, step


class Evaluator:
    """Accuracy of a network on the held-out images, every image counted once, in one compiled step."""

    def __init__(self, split: data.Split, batch: int, mesh: Mesh):
        batch = -(-batch // mesh.size) * mesh.size
        self.count = len(split.labels)
        self.batches = []
        for start in range(0, self.count, batch):
            images, labels = split.images[start : start + batch], split.labels[start : start + batch]
            valid = np.arange(batch) < len(labels)
            padding = batch - len(labels)
            arrays = (
                np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0))),
                np.pad(labels.astype(np.int32), (0, padding)),
                valid,
            )
            self.batches.append(sharding.put(arrays, sharding.batch(mesh)))
        self.compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, name: str, network, variables, teacher_logits=None) -> tuple[dict[str, float], list[jax.Array]]:
        """({'accuracy', 'loss', ...}, logits of each batch) of `network`; `name` keys the compiled program."""
        if name not in self.compiled:
            start = time.perf_counter()
            logits = None if teacher_logits is None else teacher_logits[0]
            jitted = jax.jit(functools.partial(step.eval_step, network=network))
            self.compiled[name] = jitted.lower(variables, *self.batches[0], logits).compile()
            self.compile_seconds += time.perf_counter() - start
        sums, all_logits = [], []
        for number, arrays in enumerate(self.batches):
            part, logits = self.compiled[name](
                variables, *arrays, None if teacher_logits is None else teacher_logits[number]
            )
            sums.append(part)
            all_logits.append(logits)
        sums = jax.device_get(sums)
        means = {key: float(sum(float(part[key]) for part in sums) / self.count) for key in sums[0]}
        renamed = {'correct': 'accuracy', 'agree': 'agreement'}
        return {renamed.get(key, key): value for key, value in means.items()}, all_logits
