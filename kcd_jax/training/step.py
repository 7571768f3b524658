"""Pure functions: the order of an epoch, one training step, a chunk of steps.

Nothing here touches the disk, the host's clock or global state; `trainer.py` compiles and calls these functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from kcd_jax import knowledge, objective
from kcd_jax.contracts import (
    Array,
    Batch,
    Clock,
    Method,
    Network,
    Outputs,
    Phase,
    Plan,
    Policy,
    PyTree,
    TrainState,
    Weights,
    run_key,
    stream,
)
from kcd_jax.training import augment, optim
from kcd_jax.training.augment import mixtures
from kcd_jax.trees import leaf_paths, matches, merge, select


@struct.dataclass
class Points:
    """Resident data: u8[N, H, W, 3] images and i32[N] labels of all table rows, with zeros in padding rows."""

    images: Array
    labels: Array


@struct.dataclass
class RawBatch:
    """The points of a step before mixing and augmentation.

    Attributes:
      index: i32[B].
      image: u8[B, H, W, 3].
      partner_image: u8[B, H, W, 3]; `image` itself for points that are not mixed.
      label: i32[B].
      partner_label: i32[B]; None unless the recipe mixes labels.
    """

    index: Array
    image: Array
    partner_image: Array
    label: Array
    partner_label: Array | None = None


@struct.dataclass
class TeacherOutputs:
    """The teacher's answers for the steps of a slice of an epoch.

    Attributes:
      rows: f32[S, V * B, width] by step, K logits and optionally the embedding; split over the devices by rows.
      first: i32[], the step of the epoch that `rows[0]` belongs to.
    """

    rows: Array
    first: Array

    def outputs(self, done: Array, num_classes: int) -> Outputs:
        """The teacher's outputs for step `done` of the epoch."""
        rows = jax.lax.dynamic_index_in_dim(self.rows, done - self.first, keepdims=False)
        embed = rows[:, num_classes:] if rows.shape[1] > num_classes else None
        return Outputs(logits=rows[:, :num_classes], embed=embed)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """The static part of a training step.

    Attributes:
      student: the network that is trained.
      teacher: None if no teacher forward runs inside the step.
      method: of the run.
      policy: of the run.
      weights: of the main update.
      batch: rows of the global batch.
      num_classes: K of the teacher; 0 if it gives embeddings alone.
      records_loss: whether the recorded value is the point's own loss (`Run.predicts` is False).
      crop: padding of the random crop in pixels; 0 for none.
      flip: whether images are mirrored at random.
      area: bounds of the area fraction of a random resized crop; () for none.
      view_seed: seed of the views; -1: the run's.
      fixed_views: views that each point has in all epochs; 0: a new one in every epoch.
      mixing: of mixup and CutMix; None for neither.
      trivial: whether TrivialAugment changes the images.
      erase: probability of random erasing.
      logits: 'plain' or 'standardised', for the KD term.
      smoothing: label smoothing of the CE term.
      ema: decay of the average of the student's variables; 0 for none.
      accumulate: micro-batches per update, over which the gradient is averaged; they are trained on one by one.
      unroll: whether they are unrolled instead of scanned, as a CPU wants it.
      constrain: shards the rows of an array over the mesh; the identity without one.
    """

    student: Network
    teacher: Network | None
    method: Method
    policy: Policy
    weights: Weights
    batch: int
    num_classes: int = 0
    records_loss: bool = False
    crop: int = 4
    flip: bool = True
    area: tuple[float, ...] = ()
    view_seed: int = -1
    fixed_views: int = 0
    mixing: augment.Mixing | None = None
    trivial: bool = False
    erase: float = 0.0
    logits: str = 'plain'
    smoothing: float = 0.0
    ema: float = 0.0
    accumulate: int = 1
    unroll: bool = False
    constrain: Callable[[PyTree], PyTree] = lambda tree: tree

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with partners before the augmentation, by the policy's plan or by the recipe."""
        return self.policy.mixes or self.mixing is not None

    def draw_view(self, key: Array, index: Array) -> augment.View:
        """The views of the points `index` i32[B] in an epoch; `key` is that of `view_key`."""
        return augment.draw_view(
            key,
            index,
            num_views=self.method.num_views,
            pad=self.crop,
            flip=self.flip,
            resized=bool(self.area),
            fixed=self.fixed_views,
            mixing=self.mixing,
            trivial=self.trivial,
            erase=self.erase,
        )


# ------------------------------------------------------------------------------------------------- order of an epoch


def epoch_order(key: Array, plan: Plan, epoch: Array) -> Array:
    """The order of the points in an epoch, i32[N]: kept points first, shuffled; a pure function of (key, epoch, plan).

    Every point draws 31 random bits, the top bit is set for dropped points, and one sort by (bits, index) gives the
    order. It does not depend on the number of devices or the batch size.
    """
    rows = plan.order.shape[0]
    kept = jnp.zeros(rows, jnp.bool_).at[plan.order].set(jnp.arange(rows) < plan.num_keep)
    bits = jax.random.bits(stream(key, 'order', epoch), (rows,), jnp.uint32) >> jnp.uint32(1)
    bits = jnp.where(kept, bits, bits | jnp.uint32(1 << 31))
    return knowledge.order_by(bits)


def pool_of(policy_state: PyTree) -> Array | None:
    """u8[N, H, W, 3]: the image pool of a policy that mixes permanently, used instead of the data set's; else None."""
    return policy_state.get('pool') if isinstance(policy_state, Mapping) else None


def view_key(key: Array, epoch: int | Array, seed: int) -> Array:
    """The key of the views of an epoch; `key` is the run's, `seed` is `StepSpec.view_seed`."""
    return stream(key if seed < 0 else run_key(seed), 'view', epoch)


def partners(key: Array, plan: Plan, epoch: Array, spec: StepSpec) -> Array:
    """i32[N]: every point's partner in an epoch, where the recipe mixes; `key` is the run's."""
    every = jnp.arange(plan.partner.shape[0], dtype=jnp.int32)
    return mixtures.partners(view_key(key, epoch, spec.view_seed), every, plan, spec.mixing)


def fetch(points: Points | RawBatch, state: TrainState, order: Array, spec: StepSpec) -> RawBatch:
    """The next batch of the epoch: gathered from resident points or the policy's pool, or the streamed batch itself."""
    if isinstance(points, RawBatch):
        return points
    index = jax.lax.dynamic_slice(order, (state.done * spec.batch,), (spec.batch,))
    index = spec.constrain(index)
    pool = pool_of(state.policy_state)
    images = points.images if pool is None else pool
    image = spec.constrain(images[index])
    if not spec.mixes:
        return RawBatch(index, image, image, points.labels[index])
    if spec.mixing is None:
        return RawBatch(index, image, spec.constrain(images[state.plan.partner[index]]), points.labels[index])
    partner = mixtures.partners(view_key(state.key, state.epoch, spec.view_seed), index, state.plan, spec.mixing)
    return RawBatch(index, image, spec.constrain(images[partner]), points.labels[index], points.labels[partner])


# ---------------------------------------------------------------------------------------------------- training step


def _prepare(state: TrainState, raw: RawBatch, spec: StepSpec) -> Batch:
    """The networks' input: the batch mixed with partners and augmented by this epoch's views."""
    method = spec.method
    view = spec.draw_view(view_key(state.key, state.epoch, spec.view_seed), raw.index)
    epsilon = state.plan.epsilon[raw.index] if spec.mixes else None
    image = augment.apply_view(
        view,
        raw.image,
        raw.partner_image if spec.mixes else None,
        epsilon,
        pad=spec.crop,
        views=method.views,
        area=spec.area,
    )
    label_b, lam = raw.label, jnp.zeros(raw.label.shape, jnp.float32)
    if view.mixture is not None:
        lam = mixtures.label_share(view.mixture, epsilon)
        label_b = jnp.where(lam > 0, raw.partner_label, raw.label)
    return Batch(
        index=raw.index,
        image=spec.constrain(image),
        label=raw.label,
        label_b=label_b,
        lam=lam,
        weight=state.plan.weight[raw.index],
    )


def _restore_outside(new: PyTree, old: PyTree, patterns: tuple[str, ...]) -> PyTree:
    """The running statistics: `new` for paths of the student that match, else `old`; the dropout's counter is `new`."""

    def student_path(path: str) -> str:
        return 'student/' + path.split('/', 1)[-1]

    kept = {
        path: leaf
        for path, leaf in leaf_paths(new).items()
        if path.startswith('dropout/') or matches(student_path(path), patterns)
    }
    return merge(old, kept)


def train_step(
    state: TrainState,
    raw: RawBatch,
    lrs: Mapping[str, Array],
    teacher_variables: PyTree,
    spec: StepSpec,
    phase: Phase,
    taught: TeacherOutputs | None = None,
) -> tuple[TrainState, Array]:
    """One step: mix, augment, teacher forward, student forward, the phase's updates one by one, record values.

    The passes are in named scopes, which profilers show and the cost ledger (`ledger.parts`) reads.

    Args:
      state: before the step.
      raw: the batch.
      lrs: {label: f32[]} learning rates.
      teacher_variables: frozen.
      spec, phase: static.
      taught: the teacher's answers if it runs before the steps of the epoch, else None.

    Returns:
      The state after the step (`metrics` are sums over the epoch, reset at its first step) and the loss f32[].
    """
    step_key = stream(state.key, 'step', state.step)
    policy_key, *update_keys = jax.random.split(step_key, 1 + len(phase.updates))
    clock = Clock(state.step, state.epoch, lrs['phase_epoch'])
    batch = _prepare(state, raw, spec)
    train = bool(phase.train_mode)
    views = spec.method.num_views
    model_state = state.model_state

    def student_apply(params: PyTree, model_state: PyTree, image: Array) -> tuple[Outputs, PyTree]:
        outputs, new_state = spec.student.apply({'params': params, **model_state}, image, train)
        return outputs, _restore_outside(new_state, model_state, phase.train_mode)

    # The scoring pass of policies that select within the batch; it updates running statistics (UNIX, METHODS 2.1).
    if spec.policy.in_batch is not None and phase.record:
        scores = jnp.zeros((spec.batch, 1), jnp.float32)
        if spec.policy.scores:
            with jax.named_scope('scoring_forward'):
                scored, model_state = student_apply(state.params['student'], model_state, batch.image)
            scores = jax.lax.stop_gradient(scored.logits)
        batch = spec.policy.in_batch(policy_key, batch, scores)
        batch = jax.tree.map(spec.constrain, batch)

    def ask(image: Array) -> Outputs:
        with jax.named_scope('teacher_forward'):
            return jax.lax.stop_gradient(spec.teacher.apply(teacher_variables, image, False)[0])

    def forward_pass(params: PyTree, model_state: PyTree, image: Array) -> tuple[Outputs, Any, PyTree]:
        def apply_now(student_params):
            with jax.named_scope('student_forward'):
                return student_apply(student_params, model_state, image)

        return jax.vjp(apply_now, params, has_aux=True)

    teacher = None
    if taught is not None:
        teacher = taught.outputs(state.done, spec.num_classes)
    elif spec.teacher is not None and spec.accumulate == 1:
        teacher = ask(batch.image)

    params, method_state, opt_state = dict(state.params), state.method_state, dict(state.opt_state)
    kept_state, recorded, per_point, terms, bad = model_state, None, None, {}, jnp.zeros((), jnp.bool_)
    forward = None
    for update, key in zip(phase.updates, update_keys, strict=True):
        weights = spec.weights if update.weights is None else update.weights
        moved = select(params, update.moves)
        moves_student = any(path.startswith('student/') for path in moved)

        def loss_fn(outputs, method_params, method_state, teacher, batch, key, update=update, weights=weights):
            out = update.loss(method_params, method_state, outputs, teacher, batch, clock, key)
            teacher_logits = None if teacher is None else teacher.logits[::views]
            per_point, terms = objective.compose(
                weights, outputs.logits[::views], teacher_logits, batch, out.extra, spec.logits, spec.smoothing
            )
            return objective.batch_loss(per_point, batch.weight), (per_point, terms, out.state, out.metrics)

        gradients = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        of_loss = (method_state, teacher, batch, key)
        if spec.accumulate == 1:
            if forward is None:  # once per change of the student's parameters: XLA does not merge equal forward passes
                outputs, pull_back, new_state = forward_pass(params['student'], model_state, batch.image)
                forward = (outputs, pull_back)
            outputs, pull_back = forward
            (loss, aux), (outputs_grad, method_grad) = gradients(outputs, params['method'], *of_loss)
            all_grads = {'method': method_grad}
            if moves_student:
                all_grads['student'] = pull_back(outputs_grad)[0]
        else:  # the phase has this one update

            def one_pass(
                model_state, method_state, teacher, batch, key, gradients=gradients, params=params, moves=moves_student
            ):
                if teacher is None and spec.teacher is not None:
                    teacher = ask(batch.image)
                outputs, pull_back, new_state = forward_pass(params['student'], model_state, batch.image)
                found = gradients(outputs, params['method'], method_state, teacher, batch, key)
                (loss, aux), (outputs_grad, method_grad) = found
                grads = {'method': method_grad, **({'student': pull_back(outputs_grad)[0]} if moves else {})}
                return loss, aux, grads, new_state, outputs, teacher

            loss, aux, all_grads, new_state, outputs, teacher = optim.accumulate(
                one_pass, model_state, *of_loss, count=spec.accumulate, constrain=spec.constrain, unroll=spec.unroll
            )
        points, update_terms, method_state, extra_metrics = aux
        if recorded is None:
            recorded = outputs
        bad = bad | ~jnp.isfinite(loss)
        grads = {path: leaf for path, leaf in leaf_paths(all_grads).items() if path in moved}

        def moved_loss(moved, loss_fn=loss_fn, params=params, of_loss=of_loss):
            now = merge(params, moved)
            outputs, _ = student_apply(now['student'], model_state, batch.image)
            return loss_fn(outputs, now['method'], *of_loss)[0]

        transform = phase.optimisers[update.label].transform
        hvp = functools.partial(hessian_vector_product, moved_loss, moved)  # costs nothing unless it is called
        moved, opt_state[update.label] = optim.apply(
            transform, lrs[update.label], grads, opt_state[update.label], moved, hvp=hvp
        )
        params = merge(params, moved)
        if moves_student:
            forward = None
        if update.keep:
            kept_state, per_point = new_state, points
            terms = {'loss': loss, **{k: jnp.mean(v) for k, v in update_terms.items()}, **terms}
        terms.update(extra_metrics)

    table = state.table
    entropy = knowledge.prediction_entropy(recorded.logits[::views])
    if phase.record:
        value = per_point if spec.records_loss else entropy
        if spec.policy.observe is not None:
            value = spec.policy.observe(recorded, teacher, batch, per_point)
        record = knowledge.record if spec.policy.records == 'mean' else knowledge.record_last
        table = record(table, batch.index, jax.lax.stop_gradient(value).astype(jnp.float32))

    correct = jnp.argmax(recorded.logits[::views], axis=-1).astype(jnp.int32) == batch.label
    terms = {**terms, 'accuracy': jnp.mean(correct.astype(jnp.float32)), 'entropy': jnp.mean(entropy)}
    if teacher is not None and teacher.logits.shape[-1]:
        terms['teacher_entropy'] = jnp.mean(knowledge.prediction_entropy(teacher.logits[::views]))
    average = state.ema
    if spec.ema:
        now = {'params': params['student'], **kept_state}
        average = optim.moving_average(average, now, state.step, spec.ema)
    state = state.replace(
        step=state.step + 1,
        done=state.done + 1,
        params=params,
        model_state=kept_state,
        method_state=method_state,
        opt_state=opt_state,
        table=table,
        metrics=_accumulate(state.metrics, terms, first=state.done == 0),
        bad_step=jnp.where(bad & (state.bad_step < 0), state.step, state.bad_step),
        ema=average,
    )
    return state, terms['loss']


def hessian_vector_product(loss: Callable[[PyTree], Array], at: PyTree, vector: PyTree) -> PyTree:
    """H v with H the Hessian of the scalar `loss` at `at`; reverse over reverse, since custom VJPs have no JVP."""
    return jax.grad(lambda x: optax.tree.vdot(jax.grad(loss)(x), vector))(at)


def _accumulate(sums: Mapping[str, Array], terms: Mapping[str, Array], first: Array) -> dict[str, Array]:
    """Adds (value, 1) to each metric's (sum, count), from zero at the first step of an epoch."""
    result = {}
    for name, total in sums.items():
        total = jnp.where(first, jnp.zeros_like(total), total)
        if name in terms:
            total = total + jnp.stack([terms[name].astype(jnp.float32), jnp.ones((), jnp.float32)])
        result[name] = total
    return result


def run_chunk(
    state: TrainState,
    order: Array,
    lrs: Mapping[str, Array],
    points: Points | RawBatch,
    teacher_variables: PyTree,
    taught: TeacherOutputs | None = None,
    *,
    spec: StepSpec,
    phase: Phase,
    length: int,
) -> tuple[TrainState, Array]:
    """`length` steps in one program: a scan over resident points, or a single step if `length` is 1.

    `points` is the resident data, or the batch of a streamed step. Returns the state and the loss of the last step.

    On the CPU a scan around convolutions is nine to ten times slower, so `trainer.py` uses length 1 there.
    """

    def step(state: TrainState, _: Any = None) -> tuple[TrainState, Array]:
        return train_step(state, fetch(points, state, order, spec), lrs, teacher_variables, spec, phase, taught)

    if length == 1:
        return step(state)
    state, losses = jax.lax.scan(step, state, length=length)
    return state, losses[-1]
