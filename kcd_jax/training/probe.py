"""Evaluation of a student without predictions: how close its embeddings are to the teacher's, how well they classify.

After every evaluated epoch: the mean cosine of the projected embeddings to the teacher's on the held-out images. After
the last one, where there are labels: the accuracy of a linear probe (logistic regression on standardised embeddings)
and of the nearest neighbours by cosine. Both are fitted on the embeddings of the training points; if only the held-out
images have labels, on every other one of them, and measured on the rest.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Array, Outputs, PyTree
from kcd_jax.runtime import sharding
from kcd_jax.training import augment
from kcd_jax.training.evaluate import Evaluator
from kcd_jax.training.program import Program
from kcd_jax.training.run import Run

MOST_FITTED = 50_000  # points that a probe is fitted on, the first ones of a fixed permutation
NEIGHBOURS = 10


class Probe:
    """Evaluates the embeddings of a student.

    Args:
      run: whose student is evaluated.
      evaluator: of the held-out images.
      mesh: of the devices.
      target: f32[M, D], the teacher's embeddings of the held-out images; None: not known.
      seconds: as for `Program`.
    """

    def __init__(
        self, run: Run, evaluator: Evaluator, mesh: Mesh, target: np.ndarray | None, seconds: dict[str, float]
    ):
        self.run, self._evaluator, self._mesh = run, evaluator, mesh
        self._similarity = Program(self._similarities, seconds)
        self._target = None
        if target is not None and run.method.similarity is not None:
            size = evaluator.batches.index.shape[1]
            padded = np.pad(target, ((0, -len(target) % size), (0, 0))).reshape(-1, size, target.shape[1])
            self._target = [sharding.put_rows(part, mesh) for part in padded]

    def __call__(self, variables: PyTree, method_params: PyTree, final: bool) -> dict[str, float]:
        """{'cosine'} as far as known, and {'accuracy', 'knn_accuracy'} after the last epoch, where there are labels."""
        found = {}
        if self._target is not None:
            batches = zip(self._evaluator.batches, self._target, strict=True)
            sums = [
                self._similarity(variables, method_params, images, valid, rows) for (images, _, valid), rows in batches
            ]
            found['cosine'] = float(sum(map(float, sums)) / self._evaluator.count)
        if final and self.run.data.scored:
            found |= self._accuracies(variables)
        return found

    def _similarities(self, variables: PyTree, params: PyTree, images: Array, valid: Array, target: Array) -> Array:
        student, _ = self.run.student_network.apply(variables, augment.to_float(images), False)
        values = self.run.method.similarity(params, student, Outputs(logits=target[:, :0], embed=target))
        return jnp.sum(jnp.where(valid, values, 0.0))

    def _accuracies(self, variables: PyTree) -> dict[str, float]:
        data, read = self.run.data, self._evaluator.read

        def embeddings(split: Any) -> np.ndarray | None:
            return read('student', self.run.student_network, variables, split, None, with_embed=True)[1]

        held_out, labels = embeddings(data.held_out), data.held_out.labels
        if held_out is None:
            return {}
        if not data.labelled:
            return accuracies(held_out[::2], labels[::2], held_out[1::2], labels[1::2])
        train = data.train
        if len(train) > MOST_FITTED:
            train = train.take(np.sort(np.random.RandomState(0).permutation(len(train))[:MOST_FITTED]))
        return accuracies(embeddings(train), train.labels, held_out, labels)


def accuracies(
    embed: np.ndarray, labels: np.ndarray, test_embed: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """{'accuracy': of the linear probe, 'knn_accuracy'}, fitted on the first pair; {} if that has a single class.

    Args:
      embed: f32[N, D].
      labels: i32[N].
      test_embed: f32[M, D].
      test_labels: i32[M].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        return {}
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    nearest = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric='cosine')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        found = [one.fit(embed, labels).score(test_embed, test_labels) for one in (linear, nearest)]
    return dict(zip(('accuracy', 'knn_accuracy'), map(float, found), strict=True))
