"""What a teacher says of images as they are, neither cropped nor mirrored nor mixed.

Its scores of the training points are reduced batch by batch to one number per point, for policies that select by them
(`Policy.teacher_scores`); its logits of the held-out images judge it, if it answers on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax import data, knowledge
from kcd_jax.contracts import Array, PyTree, table_rows
from kcd_jax.runtime import distributed, sharding
from kcd_jax.teachers import host
from kcd_jax.teachers.cache import Cache, rounded
from kcd_jax.teachers.host import Query
from kcd_jax.training import augment, feed, serving
from kcd_jax.training.evaluate import Evaluator
from kcd_jax.training.program import Program
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_cache import identity, open_cache
from kcd_jax.training.teacher_pass import ROWS, answered, no_rows, padded


class CleanImages:
    """A run's teacher, asked about whole images."""

    def __init__(self, run: Run, variables: PyTree, mesh: Mesh, seconds: dict[str, float]):
        """`mesh` has devices of this process alone, `variables` are on it; `seconds` are those of `Program`."""
        self.run, self._mesh, self._variables, self._host = run, mesh, variables, run.host
        self._rows = -(-ROWS // mesh.size) * mesh.size
        options = {'out_shardings': sharding.batch(mesh)}
        # {whether the embedding follows the logits: the program}
        self._forward = {
            embed: Program(functools.partial(self._compute, embed=embed), seconds, **options) for embed in (False, True)
        }
        self._reduced = Program(_reduced, seconds)

    def held_out_embeddings(self, split: data.Split) -> np.ndarray | None:
        """f32[M, D]: the teacher's embeddings of the held-out images, all of them; None where it has none."""
        stored = serving.stored_outputs(self.run.teacher)
        if any(outputs.test_embed is None for outputs in stored):
            return None
        if self._host is not None and self._host.kind == 'outputs':
            return self._host.test_embed.astype(np.float32)
        if self._host is not None:
            rows = self.held_out(split, embed=True)
            return None if rows is None else rows[:, self._host.num_classes :]

        found, classes = [], self.run.setup.teacher.logits.shape[1]
        for images, _, valid in feed.HeldOut(split, self._rows, self._mesh, self.run.recipe.workers, keep=False):
            rows = np.asarray(self._forward[True](self._variables, images))
            found.append(rows[np.asarray(valid), classes:])
        return np.concatenate(found)

    def held_out(self, split: data.Split, embed: bool = False) -> np.ndarray | None:
        """f32[M, K]: what a teacher on the host says of the held-out images, all of them; None where it cannot.

        With `embed`, the embeddings follow: f32[M, K + D].
        """
        if any(outputs.test is None for outputs in serving.stored_outputs(self.run.teacher)):
            return None
        if not self._host.reads_images:
            return self._host.answer(Query(np.arange(len(split), dtype=np.int32), held_out=True), embed)
        width = self._host.num_classes + (self._host.embed_dim if embed else 0)
        cache, known = self._held_out(split, self._rows, width, embed)
        if known is not None:
            return known
        batches, found = feed.HeldOut(split, self._rows, self._mesh, self.run.recipe.workers, keep=False), []
        with distributed.together():
            for points, (images, _, valid) in zip(batches.index, batches, strict=True):
                query = Query(points, np.asarray(augment.to_float(images)), held_out=True)
                found.append(self._host.answer(query, embed)[np.asarray(valid)])
        rows = np.concatenate(found)
        if cache is not None:
            cache.put(np.arange(len(split)), rows)
        return rows

    def _held_out(
        self, split: data.Split, points: int, width: int, embed: bool = False
    ) -> tuple[Cache | None, np.ndarray | None]:
        """The cache of answers to held-out images, asked in calls of `points`, and all of them if it has them.

        Answers are kept if nothing rounds them, and with one process: several evaluate together.
        """
        if self.run.recipe.teaching.cache_dtype != 'float32' or jax.process_count() > 1:
            return None, None
        key = identity(self.run, self._mesh, points, ['held out', split.digests['images']], embed)
        if (cache := open_cache(self.run, key, len(split), width)) is None:
            return None, None
        known, present = cache.get(np.arange(len(split)))
        return cache, known if present.all() else None

    def evaluated(self, evaluator: Evaluator, variables: PyTree) -> np.ndarray:
        """f32[M, K]: what a network says of the evaluator's images, or said of them in an earlier run.

        Raises:
          ValueError: they are probabilities, or not finite.
        """
        run, split = self.run, evaluator.batches.split
        name = run.teacher_network.name
        cache, known = self._held_out(split, evaluator.batch, run.data.num_classes)
        if known is not None:
            return known
        logits = evaluator.on_host(evaluator('teacher', run.teacher_network, variables)[1])
        if not np.isfinite(logits).all():
            raise ValueError(f'the teacher {name} answers held-out images with numbers that are not finite')
        host.refuse_probabilities(logits, f'the teacher {name}, asked about held-out images')
        if cache is not None:
            cache.put(np.arange(len(split)), logits)
        return logits

    def scores(self, names: Sequence[str], counts: dict[str, int] | None = None) -> dict[str, np.ndarray]:
        """The teacher's scores of all training points; with several processes, each asks about its share of them.

        Args:
          names: from `contracts.SCORES`.
          counts: of rows, as `TeacherPass.counts`; increased.

        Returns:
          {name: f32[N]}, 0 in padding rows.

        Raises:
          ValueError: a teacher on the host answered with a wrong shape, or numbers that are not finite.
        """
        counts = no_rows() if counts is None else counts
        share = table_rows(self.run.num_points) // jax.process_count()
        first = share * jax.process_index()
        index = np.arange(first, min(first + share, self.run.num_points))
        train, with_embed = self.run.data.train, 'distance' in names
        classes = self.run.setup.teacher.logits.shape[1]
        embed = np.zeros((share, self.run.setup.teacher.embed.shape[1] if with_embed else 0), np.float32)
        by_logits = [name for name in names if name != 'distance']
        found = np.zeros((share, len(by_logits)), np.float32)
        with distributed.together():
            for points, rows in self._answers(index, counts, with_embed):
                logits, embed[points - first] = np.split(rows, [classes], axis=1)
                if not by_logits:
                    continue
                labels = train.labels[points].astype(np.int32)
                scores = self._reduced(padded(logits, self._rows), padded(labels, self._rows))
                columns = [np.asarray(scores[name])[: len(points)] for name in by_logits]
                found[points - first] = np.reshape(columns, (len(by_logits), len(points))).T
        result = dict(zip(by_logits, distributed.concatenated(found).T.copy(), strict=True))
        if with_embed:
            whole = distributed.concatenated(embed)[: len(train)]
            result['distance'] = np.zeros(table_rows(len(train)), np.float32)
            result['distance'][: len(train)] = centre_distances(whole, train.labels)
        return result

    def _answers(
        self, index: np.ndarray, counts: dict[str, int], embed: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(points i32[M], f32[M, K] or with the embedding f32[M, K + D]), M at most `_rows`; known ones come first."""
        index = index.astype(np.int32)
        blocks = [index[start : start + self._rows] for start in range(0, len(index), self._rows)]
        if self._host is not None and not self._host.reads_images:
            counts['served'] += len(index)
            for points in blocks:
                yield points, self._host.answer(Query(points, view=self._numbers(points)), embed)
            return
        cache, missing = self._open(embed), [index[:0]]
        for points in blocks:
            rows, present = (None, np.zeros(len(points), bool)) if cache is None else cache.get(points.astype(np.int64))
            missing.append(points[~present])
            if present.any():
                counts['served'] += int(present.sum())
                yield points[present], rows[present]
        for points, images in self._images(np.concatenate(missing), counts):
            if self._host is None:
                rows = np.asarray(self._forward[embed](self._variables, images))[: len(points)]
            else:
                pixels, asked = np.asarray(augment.to_float(images)), padded(points, len(images))
                rows = self._host.answer(Query(asked, pixels, self._numbers(asked)), embed)[: len(points)]
            rows = rounded(rows, self.run.recipe.teaching.cache_dtype)
            if cache is not None:
                cache.put(points.astype(np.int64), rows)
            yield points, rows

    def _images(self, index: np.ndarray, counts: dict[str, int]) -> Iterator[tuple[np.ndarray, Array]]:
        """(points i32[M], images of `_rows` rows, the first M of them theirs); counts them as computed."""
        batches = feed.HeldOut(
            self.run.data.train, self._rows, self._mesh, self.run.recipe.workers, keep=False, chosen=index
        )
        for points, (images, _, valid) in zip(batches.index, batches, strict=True):
            count = int(np.sum(np.asarray(valid)))
            counts['computed'] += count
            counts['padding'] += len(points) - count
            yield points[:count], images

    def _open(self, embed: bool) -> Cache | None:
        run, outputs = self.run, self.run.setup.teacher
        width = outputs.logits.shape[1] + (outputs.embed.shape[1] if embed else 0)
        return open_cache(run, identity(run, self._mesh, self._rows, 'clean', embed), run.num_points, width)

    def _numbers(self, index: np.ndarray) -> np.ndarray | None:
        """i64[M]: the number of the view that shows each point as it is; None where views are not finite."""
        if serving.view_count(self.run) is None:
            return None
        crop = self.run.recipe.augment.crop
        return np.full(len(index), crop * (2 * crop + 1) + crop, np.int64)

    def _compute(self, variables: PyTree, images: Array, embed: bool) -> Array:
        return answered(self.run.teacher_network, variables, augment.to_float(images), embed)


def _reduced(logits: Array, labels: Array) -> dict[str, Array]:
    """{name: f32[M]} for `contracts.SCORES` of logits f32[M, K] and labels i32[M]."""
    log_p = jax.nn.log_softmax(logits)
    largest = jax.lax.top_k(jnp.exp(log_p), 2)[0]
    return {
        'entropy': knowledge.prediction_entropy(logits),
        'cross_entropy': -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0],
        'margin': largest[:, 0] - largest[:, 1],
    }


def centre_distances(embed: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """f32[N]: Euclidean distance of each embedding f32[N, D] to the median of its class, coordinate by coordinate."""
    found = np.empty(len(labels), np.float32)
    for label in np.unique(labels):
        own = embed[labels == label]
        found[labels == label] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
    return found
