"""Computes the teacher's outputs for an epoch before its steps, in large batches: its views are known by then.

A point's view is a pure function of (seed, epoch, point). Before the steps of a slice of an epoch the rows that no
cache holds go through the teacher in large batches; the training steps then gather what they need by position. One
compiled program serves the whole run, and a row's numbers do not depend on what else is asked, so a cold cache, a warm
one and none give the same training bit for bit. A teacher on the host (`kcd_jax.teachers.host`) is asked in the same
way: the devices make the images, and the host answers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Array, Network, Plan, PyTree, TrainState
from kcd_jax.runtime import distributed, sharding
from kcd_jax.teachers.cache import Cache, rounded
from kcd_jax.teachers.host import Query
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import augment, feed, serving, step
from kcd_jax.training.program import Program
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_cache import identity, open_cache, views_of

ROWS = 256  # images per call of the teacher
SLICE_BYTES = 2**26  # of what waits on the devices for its steps: answers, and images of streamed data
SLICE_CALLS = 16  # of the teacher before the next steps: between slices a run hears that it should stop, and saves
_AHEAD = 4  # calls in flight


@dataclasses.dataclass(frozen=True)
class TeacherQuery:
    """Points whose views the teacher is asked for.

    Attributes:
      index: i32[M], the points.
      images: u8[R, H, W, 3] on the devices.
      partners: u8[R, H, W, 3] on the devices, what is mixed in; may be `images`.
      slot: i32[M], the row of each point in `images`.
      partner_slot: i32[M], the row of its partner in `partners`.
      epsilon: f32[M], the partner's share; 0 for a point that is not mixed.
      own: bool[M], whether a point's image is the data set's own, unmixed: only such rows may be cached.
    """

    index: np.ndarray
    images: Array
    partners: Array
    slot: np.ndarray
    partner_slot: np.ndarray
    epsilon: np.ndarray
    own: np.ndarray


def no_rows() -> dict[str, int]:
    """{'computed', 'served', 'mixed', 'padding': 0}: counts of rows; 'mixed' ones are among the computed."""
    return dict.fromkeys(('computed', 'served', 'mixed', 'padding'), 0)


class TeacherPass:
    """Answers of one run's teacher, row by row.

    Attributes:
      width: numbers per row: K logits, then the embedding if the method reads it.
      counts: {'computed', 'served', 'mixed', 'padding': rows so far}; 'mixed' ones are among the computed.
    """

    def __init__(
        self,
        run: Run,
        variables: PyTree,
        mesh: Mesh,
        counts: dict[str, int] | None = None,
        seconds: dict[str, float] | None = None,
    ):
        """`mesh` has devices of this process alone: each asks for the rows of its own devices, without the others.

        Args:
          run: any that does not have its teacher in the step.
          variables: of the teacher, on the mesh.
          mesh: `sharding.local` of the run's.
          counts: of `no_rows`, which go on where they are.
          seconds: whose 'compile' grows by what the programs take to compile.
        """
        self.run, self.mesh, self._variables, self._host = run, mesh, variables, run.host
        self.num_views, self._crop = run.method.num_views, run.recipe.augment.crop
        outputs = run.setup.teacher
        self._embeds = 'embed' in run.needs
        self.width = outputs.logits.shape[-1] + (outputs.embed.shape[-1] if self._embeds else 0)
        self.counts = no_rows() if counts is None else counts
        per_call = max(ROWS // self.num_views, 1)
        self._points = -(-per_call // mesh.size) * mesh.size
        self._spec = run.step_spec()
        # A crop whose size is random has no finite set of views; a reader that crops gives no image twice.
        count = serving.view_count(run)
        self._finite = count is not None
        self.views_per_row = count // self.num_views if self._finite else 0
        stored = self._host is not None and not self._host.reads_images
        self.cache = self._open() if self._finite and not stored else None
        rows = sharding.batch(mesh)
        # What a call of the devices gives: the network's answers, or the images that the host is asked about.
        seconds = {'compile': 0.0} if seconds is None else seconds
        self._call = Program(self._compute if self._host is None else self._images, seconds, out_shardings=rows)
        self._draw = Program(self._spec.draw_view, seconds)

    # -- the cache ------------------------------------------------------------------------------------------------

    def _open(self) -> Cache | None:
        if not isinstance(self.run.teacher, Teacher):  # it is yet to be trained: its programs alone are looked at
            return None
        spec, crops = self._spec, self.run.data.train.draws_crops
        area = list(self.run.recipe.augment.area)
        views = [*views_of(self.run), spec.crop, spec.flip, spec.fixed_views, area, crops]
        key = identity(self.run, self.mesh, self._points, views, self._embeds)
        return open_cache(self.run, key, self.run.num_points * self.num_views * self.views_per_row, self.width)

    def _positions(self, index: np.ndarray, key: Array) -> np.ndarray:
        """i64[M, V]: the cache's position of each row; `key` as for `rows`."""
        view = self._views(index, key)
        if view.number is not None:
            number = view.number[:, None]
        else:
            side, rows = 2 * self._crop + 1, view.rows
            corners = rows[:, 1:].reshape(len(rows), self.num_views, 2).astype(np.int64)
            number = (rows[:, :1] * side + corners[..., 0]) * side + corners[..., 1]
        row = index.astype(np.int64)[:, None] * self.num_views + np.arange(self.num_views)
        return row * self.views_per_row + number

    def _views(self, index: np.ndarray, key: Array) -> augment.View:
        """The view of each point on the host, drawn in equal blocks: any number of points takes the same program."""
        starts = range(0, len(index), self._points)
        blocks = [self._draw(key, padded(index[start : start + self._points], self._points)) for start in starts]
        whole = jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *blocks)
        return jax.tree.map(lambda part: part[: len(index)], whole)

    # -- asking ---------------------------------------------------------------------------------------------------

    def rows(self, asked: TeacherQuery, view_key: Array) -> np.ndarray:
        """The teacher's answers.

        Args:
          asked: M points.
          view_key: `step.view_key`, as the step draws its views.

        Returns:
          f32[M, V, width].

        Raises:
          ValueError: a teacher on the host answered with a wrong shape, or numbers that are not finite.
        """
        count = len(asked.index)
        if self._host is not None and not self._host.reads_images:
            views = self._view_numbers(asked.index, view_key)
            answers = self._host.answer(Query(np.repeat(asked.index, self.num_views), None, views), self._embeds)
            self.counts['served'] += count * self.num_views
            return answers.reshape(count, self.num_views, self.width)
        found = np.zeros((count, self.num_views, self.width), np.float32)
        missing = np.ones(count, bool)
        positions = None
        if self.cache is not None and asked.own.any():
            positions = self._positions(asked.index, view_key)
            own = np.flatnonzero(asked.own)
            rows, present = self.cache.get(positions[own].reshape(-1))
            found[own] = rows.reshape(len(own), self.num_views, self.width)
            missing[own] = ~present.reshape(len(own), self.num_views).all(axis=1)
            self.counts['served'] += int(count - missing.sum()) * self.num_views
        wanted = np.flatnonzero(missing)
        for points, answers in self._computed(asked, wanted, view_key):
            answers = rounded(answers, self.run.recipe.teaching.cache_dtype)
            found[points] = answers
            if positions is not None:
                own = asked.own[points]
                self.cache.put(positions[points[own]].reshape(-1), answers[own].reshape(-1, self.width))
        self.counts['computed'] += len(wanted) * self.num_views
        mixed = len(wanted) if self._spec.mixing is not None else int(np.count_nonzero(~asked.own[wanted]))
        self.counts['mixed'] += mixed * self.num_views
        return found

    def _computed(self, asked: TeacherQuery, wanted: np.ndarray, key: Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(which of the asked points, their answers), call by call, a few in flight."""
        pending: list[tuple[np.ndarray, Array]] = []
        for start in range(0, len(wanted), self._points):
            points = wanted[start : start + self._points]
            places = padded(points, self._points)
            self.counts['padding'] += (len(places) - len(points)) * self.num_views
            columns = (asked.slot, asked.partner_slot, asked.index, asked.epsilon)
            placed = sharding.put_rows(tuple(column[places] for column in columns), self.mesh)
            pending.append((points, self._call(self._variables, asked.images, asked.partners, *placed, key)))
            if len(pending) > _AHEAD:
                yield self._finished(*pending.pop(0), asked, key)
        for points, found in pending:
            yield self._finished(points, found, asked, key)

    def _finished(
        self, points: np.ndarray, found: Array, asked: TeacherQuery, key: Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """(which of the asked points, their answers) of what a call of the devices gave."""
        if self._host is None:
            return points, np.asarray(found)[: len(points)]
        index = asked.index[padded(points, self._points)]
        query = Query(np.repeat(index, self.num_views), np.asarray(found), self._view_numbers(index, key))
        answers = self._host.answer(query, self._embeds).reshape(len(index), self.num_views, self.width)
        return points, answers[: len(points)]

    def _view_numbers(self, index: np.ndarray, key: Array) -> np.ndarray | None:
        """i64[M * V]: the number of each view among those of its point; None where they are not finite."""
        if not self._finite:
            return None
        positions = self._positions(index, key)
        return (positions - index.astype(np.int64)[:, None] * self.num_views * self.views_per_row).reshape(-1)

    # -- programs -------------------------------------------------------------------------------------------------

    def _compute(self, variables: PyTree, *asked: Array) -> Array:
        """f32[P, V, width]: a network's answers for one call's points; `asked` as for `_images`."""
        row = answered(self.run.teacher_network, variables, self._images({}, *asked), self._embeds)
        return row.reshape(-1, self.num_views, self.width)

    def _images(
        self,
        variables: PyTree,
        images: Array,
        partners: Array,
        slot: Array,
        partner_slot: Array,
        index: Array,
        epsilon: Array,
        key: Array,
    ) -> Array:
        """f32[P * V, H, W, 3]: what one call's points look like."""
        del variables
        constrain = functools.partial(sharding.constrain_batch, self.mesh)
        view = self._spec.draw_view(key, index)
        image = augment.apply_view(
            view,
            constrain(images[slot]),
            constrain(partners[partner_slot]),  # also for policies that mix nothing: all share one program's answers
            epsilon,
            pad=self._crop,
            views=self.run.method.views,
            area=self._spec.area,
        )
        return constrain(image)

    def slice_steps(self, chunk: int) -> int:
        """Steps whose answers are asked for at once: a multiple of `chunk`, within `SLICE_BYTES` and `SLICE_CALLS`."""
        batch, row = self.run.recipe.batch, self.num_views * self.width * 4
        if self.run.data.train.streamed:  # a slice's images wait too: as read, stacked, and their partners
            row += 3 * math.prod(self.run.data.image_shape)
        most = max(min(SLICE_BYTES // row, SLICE_CALLS * self._points) // batch, -(-self._points // batch))
        whole = max(self.run.num_points // batch, 1)
        return chunk * max(math.ceil(min(most, whole) / chunk), 1)


class TeacherFeed:
    """The teacher's answers for the steps of an epoch, slice by slice, as the step takes them."""

    def __init__(self, teacher_pass: TeacherPass, supply: feed.Resident | feed.Streamed, mesh: Mesh):
        """`supply`: what feeds the steps; `mesh`: of the run, with the devices of all processes."""
        self.teacher_pass, self._feed, self._mesh = teacher_pass, supply, mesh
        self._steps = teacher_pass.slice_steps(getattr(supply, 'chunk', 1))

    def epoch(
        self,
        supplies: Iterator[tuple[int, step.Points | step.RawBatch]],
        current: TrainState,
        order: Array,
        plan: Plan,
        done: int,
        steps: int,
    ) -> Iterator[tuple[int, step.Points | step.RawBatch, step.TeacherOutputs]]:
        """What feeds the steps, with the answers that they need.

        Args:
          supplies: of the feed's `epoch`.
          current: the state before the first of the steps; it is read before it is donated.
          order, plan: of the epoch, with the partners that its steps show (`step.partners`).
          done: steps of the epoch that are finished.
          steps: of the whole epoch.
        """
        batch = self.teacher_pass.run.recipe.batch
        key, number = jax.device_get((current.key, current.epoch))
        key = step.view_key(key, number, self.teacher_pass.run.recipe.augment.seed)
        resident = self._feed.points.images if isinstance(self._feed, feed.Resident) else None
        pool = step.pool_of(current.policy_state)
        resident, pool = sharding.on_local((resident, pool), self._mesh)
        order, partner, epsilon = jax.device_get((order, plan.partner, plan.epsilon))
        own = epsilon == 0
        if pool is not None:
            own &= ~np.asarray(_altered(pool, resident))
            if steps - done > self._steps:
                pool = jnp.copy(pool)  # the first slice's steps donate the state's own
        index = order[: steps * batch].reshape(steps, batch)[:, sharding.local_rows(self._mesh, batch)]
        held: list[tuple[int, step.RawBatch]] = []
        for start in range(done, steps, self._steps):
            stop = min(start + self._steps, steps)
            points = index[start:stop].reshape(-1)
            if resident is not None:
                images = resident if pool is None else pool
                partners, slot, partner_slot = images, points, partner[points]
            else:
                held = [next(supplies) for _ in range(start, stop)]
                images = self._stacked([raw.image for _, raw in held])
                alone = all(raw.partner_image is raw.image for _, raw in held)
                partners = images if alone else self._stacked([raw.partner_image for _, raw in held])
                slot = partner_slot = np.arange(len(points), dtype=np.int32)
            asked = TeacherQuery(points, images, partners, slot, partner_slot, epsilon[points], own[points])
            with distributed.together():
                rows = self.teacher_pass.rows(asked, key)
            answers = self._placed(rows, start)
            if held:
                yield from ((length, raw, answers) for length, raw in held)
                continue
            taken = start
            while taken < stop:
                length, points_of_all = next(supplies)
                taken += length
                yield length, points_of_all, answers

    def _stacked(self, batches: list[Array]) -> Array:
        """u8[S * B, H, W, 3]: a slice's images of this process, the last batch repeated to fill up."""
        here = [sharding.on_local(batch, self._mesh) for batch in batches]
        return jnp.concatenate([*here, *[here[-1]] * (self._steps - len(here))])

    def _placed(self, rows: np.ndarray, first: int) -> step.TeacherOutputs:
        """Answers f32[S * B, V, width] on the devices, padded to a whole slice whose first step is `first`.

        B rows of each step are those of this process.
        """
        asking = self.teacher_pass
        batch = len(sharding.local_rows(self._mesh, asking.run.recipe.batch))
        whole = np.zeros((self._steps, batch * asking.num_views, asking.width), np.float32)
        whole[: len(rows) // batch] = rows.reshape(-1, batch * asking.num_views, asking.width)
        placed = sharding.put_columns(whole, self._mesh)
        return step.TeacherOutputs(placed, sharding.put(np.int32(first), sharding.replicated(self._mesh)))


def answered(network: Network, variables: PyTree, image: Array, embed: bool) -> Array:
    """f32[B, K]: a network's logits for f32[B, H, W, 3]; with `embed`, the embeddings follow."""
    outputs, _ = network.apply(variables, image, False)
    parts = [outputs.logits, outputs.embed] if embed else [outputs.logits]
    return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)


@jax.jit
def _altered(pool: Array, images: Array) -> Array:
    """bool[N]: which images of a policy's pool are no longer the data set's own."""
    return jnp.any(pool != images, axis=(1, 2, 3))


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows: the given ones, the last one repeated to fill up."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
