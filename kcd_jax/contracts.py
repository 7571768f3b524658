"""The types that every part shares, and the contracts between the parts.

Shapes: B rows of a batch, N rows of a table (`table_rows(num_points)`), K classes, D embedding width, V views per
point. Arrays are float32 unless stated otherwise. A *scatter* uses N as its padding index (such rows are dropped); a
*gather* must never see it.
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

from kcd_jax.settings import setting, validate

Array = jax.Array
PyTree = Any

# Rows of every per-point array are rounded up to a multiple of this constant, not of the number of devices, so that a
# checkpoint fits any topology. Device counts that do not divide it are refused.
ROW_MULTIPLE = 512


def table_rows(num_points: int) -> int:
    """Rows of a per-point array: `num_points` rounded up to a multiple of 512."""
    return -(-num_points // ROW_MULTIPLE) * ROW_MULTIPLE


# --------------------------------------- network outputs


@struct.dataclass
class Outputs:
    """What a network returns for a batch.

    Attributes:
      logits: f32[B, K].
      feats: the feature taps [B, h, w, c]: the stem, then one per stage. Taken after ReLU, except in WRN (raw sums) and
        MobileNetV2 (linear bottleneck outputs). The pooled vector is not among them; it is `embed`.
      preacts: one tap per stage, before its last activation (ReviewKD reads the teacher's).
      embed: f32[B, D], the pooled vector that feeds the classifier.
      aux: further outputs by name, e.g. the branches of a multi-branch network.
      convs: the map [B, h, w, c] after each convolution of the trunk, starting with the stem: after its ReLU, or after
        the block's sum and ReLU for the last one of a block (KR aggregates them). Only residual networks have them.
    """

    logits: Array
    feats: tuple[Array, ...] = ()
    preacts: tuple[Array, ...] = ()
    embed: Array | None = None
    aux: Mapping[str, PyTree] = struct.field(default_factory=dict)
    convs: tuple[Array, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as two pure functions.

    Attributes:
      name: the config name.
      init: (key, image_shape (H, W, 3)) -> variables {'params', 'batch_stats', 'constants': {'mean', 'std'}}; networks
        of other frameworks have other collections of state. Must work under `jax.eval_shape`.
      apply: (variables, image [B, H, W, 3] in [0, 1], train) -> (Outputs, model_state). `model_state` is everything
        in `variables` except 'params', updated if `train`. It normalises the image by the constants.
      tail: patterns of the parameter paths after the last tap (the classifier, and for WRN the last norm).
      convs: the paths of the kernels that produce `Outputs.convs`, in the same order.
    """

    name: str
    init: Callable[[Array, tuple[int, int, int]], PyTree]
    apply: Callable[[PyTree, Array, bool], tuple[Outputs, PyTree]]
    tail: tuple[str, ...] = ()
    convs: tuple[str, ...] = ()

    @functools.lru_cache(maxsize=64)  # noqa: B019 (bounded)
    def variable_shapes(self, image_shape: tuple[int, int, int]) -> PyTree:
        """What `init` returns, as `jax.ShapeDtypeStruct`s: nothing is computed, and it is traced once."""
        return jax.eval_shape(lambda key: self.init(key, image_shape), jax.random.key(0))

    @functools.lru_cache(maxsize=64)  # noqa: B019 (bounded)
    def output_shapes(self, image_shape: tuple[int, int, int], batch: int = 1) -> Outputs:
        """The outputs for a batch in training, in the same way."""
        image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
        return jax.eval_shape(lambda v, x: self.apply(v, x, True)[0], self.variable_shapes(image_shape), image)


# ------------------------------------ batches and points


@struct.dataclass
class Batch:
    """The points of one step.

    Attributes:
      index: i32[B], row of the point in the value table.
      image: f32[B, H, W, 3] in [0, 1]; already mixed, except by policies that mix inside the batch (UNIX).
      label: i32[B].
      label_b: i32[B], the partner's label (equal to `label` if the label is not mixed).
      lam: f32[B], the partner's share of the LABEL (0 for KCD; c * lambda for UNIX).
      weight: f32[B], the point's weight in the loss; a row of weight 0 has no effect.
    """

    index: Array
    image: Array
    label: Array
    label_b: Array
    lam: Array
    weight: Array


@struct.dataclass
class ValueTable:
    """The recorded value of every training point (KCD Eq. 12).

    Attributes:
      value: f32[N] in nats, the running mean over the visits (or the last one); 0 for a point never visited.
      count: i32[N], visits.
      num_points: real points; further rows are padding and never rank before a real point. Static, not a leaf.
    """

    value: Array
    count: Array
    num_points: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, num_points: int, rows: int | None = None) -> ValueTable:
        """An empty table of `rows` rows (default: `table_rows(num_points)`).

        >>> ValueTable.create(num_points=600).value.shape
        (1024,)
        """
        rows = table_rows(num_points) if rows is None else rows
        if num_points < 1 or rows < num_points:
            raise ValueError(
                f'a value table of {rows} rows cannot hold {num_points} points; use at least 1 point and rows >= points'
            )
        return cls(jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.int32), num_points)


@struct.dataclass
class Plan:
    """The points to train on until the next condensation, and how.

    Attributes:
      order: i32[N], the point at each rank, most valuable first; any part that was not ranked is in index order.
      num_keep: i32[], the first `num_keep` of `order` are kept.
      partner: i32[N] BY POINT: the point that is mixed in; the point itself if none is.
      epsilon: f32[N] BY POINT: the partner's share of the pixels, 0 if none is mixed in.
      weight: f32[N] BY POINT: weight in the loss.
    """

    order: Array
    num_keep: Array
    partner: Array
    epsilon: Array
    weight: Array


def full_plan(num_points: int, rows: int | None = None) -> Plan:
    """Every point kept, in index order, none augmented, weight 1."""
    rows = table_rows(num_points) if rows is None else rows
    # Separate buffers: the state is donated, and donation refuses shared ones.
    return Plan(
        order=jnp.arange(rows, dtype=jnp.int32),
        num_keep=jnp.asarray(num_points, jnp.int32),
        partner=jnp.array(jnp.arange(rows, dtype=jnp.int32), copy=True),
        epsilon=jnp.zeros(rows, jnp.float32),
        weight=jnp.ones(rows, jnp.float32),
    )


@struct.dataclass
class Clock:
    """The position in the training, as traced scalars i32[]: step and epoch of the run, epoch of the phase."""

    step: Array
    epoch: Array
    phase_epoch: Array


@struct.dataclass
class TrainState:
    """Everything that is checkpointed; not the teacher.

    Attributes:
      step: i32[], updates so far.
      epoch: i32[], finished epochs, over all phases.
      done: i32[], finished steps of the current epoch.
      key: the run's base key; every random stream is folded from it (`PURPOSE`), so no other key is stored.
      params: {'student', 'method'}.
      model_state: the student's running statistics and constants.
      method_state: the method's own state.
      opt_state: {label: optax state} of the optimisers of all phases, so that the tree never changes.
      table: the recorded values.
      plan: the current selection.
      policy_state: the policy's own state.
      metrics: {name: f32[2]}, sum and count over the current epoch.
      bad_step: i32[], the first step whose loss was not finite, or -1.
      ema: the student's averaged variables ('params' and all of `model_state`) with `Recipe.ema`; {} without.
    """

    step: Array
    epoch: Array
    done: Array
    key: Array
    params: Mapping[str, PyTree]
    model_state: PyTree
    method_state: PyTree
    opt_state: Mapping[str, PyTree]
    table: ValueTable
    plan: Plan
    policy_state: PyTree
    metrics: Mapping[str, Array]
    bad_step: Array
    ema: PyTree = struct.field(default_factory=dict)


# ------------------------------------------- randomness

# Each stream is `fold_in(fold_in(key, PURPOSE[...]), counter)` of one base key.
PURPOSE = {name: number for number, name in enumerate('student method step order replan data policy view'.split())}


def run_key(seed: int) -> Array:
    """The base key of a run, 0 <= seed < 2**63; the high 32 bits count too, which `jax.random.PRNGKey` would drop."""
    key = jax.random.PRNGKey(seed & 0xFFFFFFFF)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def stream(key: Array, purpose: str, counter: int | Array) -> Array:
    """The key of `purpose` at `counter` (a step, an epoch, ...)."""
    return jax.random.fold_in(jax.random.fold_in(key, PURPOSE[purpose]), counter)


# ---------------------------------------------- methods


@struct.dataclass
class LossOut:
    """What a method's loss returns.

    Attributes:
      extra: f32[B], the method's own term per point, before it is multiplied by beta and the point's weight.
      state: the new method_state (same structure).
      metrics: {name: f32[]} for the log.
    """

    extra: Array
    state: PyTree
    metrics: Mapping[str, Array] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the objective gamma * CE + alpha * KD(temperature) + beta * extra."""

    gamma: float = setting(1.0, 'weight of the cross entropy with the labels', low=0, high=1e6)
    alpha: float = setting(0.0, 'weight of the KD term', low=0, high=1e6)
    beta: float = setting(0.0, "weight of the method's own term", low=0, high=1e6)
    temperature: float = setting(4.0, 'temperature of the KD term', low=0.01, high=1000)

    def __post_init__(self) -> None:
        validate(self, 'weights.')


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a method may read when it creates its parameters and state.

    Attributes:
      student, teacher: `Outputs` of `jax.ShapeDtypeStruct` for one batch of B rows (not multiplied by the views).
      num_points: real training points.
      rows: N, rows of the value table.
      num_classes: K.
      batch: B.
      image_shape: (H, W, 3).
      labels: i32[N] on the host (NumPy), padded with 0.
      student_network, teacher_network: the networks; the teacher's may be None.
      teacher_variables: may be copied, never changed; None before the teacher is trained.
    """

    student: Outputs
    teacher: Outputs
    num_points: int
    rows: int
    num_classes: int
    batch: int
    image_shape: tuple[int, int, int]
    labels: Any
    student_network: Network
    teacher_network: Network | None
    teacher_variables: PyTree | None


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """An optax chain WITHOUT the learning rate, and the rate as a function of the phase's epoch (counted from 0)."""

    transform: optax.GradientTransformation
    lr: Callable[[int], float]


LossFn = Callable[[PyTree, PyTree, Outputs, 'Outputs | None', Batch, Clock, Array], LossOut]


@dataclasses.dataclass(frozen=True)
class Update:
    """One gradient step inside a training step.

    Attributes:
      loss: as `Method.loss`.
      moves: patterns of the parameter paths it changes ('student/*', 'method/head/*').
      label: the optimiser's key in `Phase.optimisers` and in `TrainState.opt_state`; unique over all phases.
      weights: of this update; None takes the run's.
      keep: whether the student's new running statistics come from this update's forward pass. Exactly one of the
        updates that move or read the student keeps them.
    """

    loss: LossFn
    moves: tuple[str, ...]
    label: str
    weights: Weights | None = None
    keep: bool = True


@dataclasses.dataclass(frozen=True)
class Phase:
    """A run of epochs with the same updates.

    Attributes:
      name: of the phase, unique in a run.
      epochs: its length.
      train_mode: patterns of the student's paths (``student/*``) whose normalisation runs in train mode; if empty, the
        student is in eval mode. Running statistics outside the patterns are restored after the step.
      optimisers: {label: Optimiser}.
      updates: in order; all see the same batch.
      record: whether values are recorded and the policy acts. Phases that do not train on every point and come first.
    """

    name: str
    epochs: int
    train_mode: tuple[str, ...]
    optimisers: Mapping[str, Optimiser]
    updates: tuple[Update, ...]
    record: bool = True


def _no_parameters(key: Array, setup: Setup) -> tuple[PyTree, PyTree]:
    del key, setup
    return {}, {}


# What a method may need of the teacher: fields of its `Outputs`, and its network with its variables.
NEEDS = ('logits', 'embed', 'feats', 'preacts', 'convs', 'aux', 'variables')


@dataclasses.dataclass(frozen=True)
class Method:
    """A distillation method: what it adds to gamma * CE + alpha * KD.

    Attributes:
      loss: (method_params, method_state, student, teacher, batch, clock, key) -> LossOut with `extra` only; CE and KD
        are added elsewhere. `student` and `teacher` have num_views * B rows, the views of a point adjacent and the
        original first, so rows [::num_views] carry CE, KD and the recorded value. `method_params` is
        TrainState.params['method'].
      init: (key, Setup) -> (method_params, method_state); raises a one-line ValueError with a remedy if the pair of
        networks does not suit the method. Nothing has been compiled at that point.
      num_views: V, rows per point.
      views: image [B, H, W, 3] -> [V * B, H, W, 3]; applied after the flip and before the crop.
      phases: (epochs, main Optimiser, student Network) -> phases; None: one phase with one update of everything.
      needs: what `loss` and `init` read of the teacher, from `NEEDS`. Methods that read only logits and embeddings can
        be served by a pass over the teacher before the steps, and by teachers that are no networks of this package.
        Default: everything. An empty one with alpha 0: no teacher is needed at all.
      needs_labels: whether `loss` or `init` reads the labels of the training points; such methods are refused for data
        without labels.
      predicts: whether its own term trains the student's logits. If not, and gamma and alpha are 0, there is no
        prediction: the recorded value is the point's own loss, and embeddings are evaluated instead.
      similarity: (method_params, student, teacher) -> f32[B] in [-1, 1], how near the student's embedding is to the
        teacher's; its mean over the held-out images is reported.
      name, keywords: how it was made; filled in by `methods.get(name).make(**keywords)`.
    """

    loss: LossFn
    init: Callable[[Array, Setup], tuple[PyTree, PyTree]] = _no_parameters
    num_views: int = 1
    views: Callable[[Array], Array] | None = None
    phases: Callable[[int, Optimiser, Network], tuple[Phase, ...]] | None = None
    needs: tuple[str, ...] = NEEDS
    needs_labels: bool = False
    predicts: bool = True
    similarity: Callable[[PyTree, Outputs, Outputs], Array] | None = None
    name: str = ''
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def default_phases(method: Method, epochs: int, main: Optimiser) -> tuple[Phase, ...]:
    """One phase, one update of the student and of the method's own parameters with the main optimiser."""
    update = Update(loss=method.loss, moves=('student/*', 'method/*'), label='main')
    return (Phase('main', epochs, ('student/*',), {'main': main}, (update,)),)


# --------------------------------------------- policies


def _no_policy_state(num_points: int, rows: int, images: Any) -> PyTree:
    del num_points, rows, images
    return {}


def _same(number: int) -> int:
    return number


def _never(epoch: int, epochs: int) -> bool:
    del epoch, epochs
    return False


def _all_points(num_points: int, epochs: int) -> list[int]:
    return [num_points] * epochs


# A teacher's scores of a point. From its logits at T = 1: the entropy of its prediction in nats, its cross entropy with
# the label in nats, and its margin, the largest probability less the second largest. From its embeddings: the Euclidean
# distance to the median of the point's class, coordinate by coordinate.
SCORES = ('entropy', 'cross_entropy', 'margin', 'distance')
LABEL_SCORES = ('cross_entropy', 'distance')  # those that read the label


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which points are trained on; by default all of them in every epoch.

    Attributes:
      when: (epoch, epochs) -> bool, on the host: whether to replan after `epoch` epochs (counted from 1, over recording
        phases). Called with 0 before the first epoch, and not after the last. Default: never.
      replan: (key, table, plan, state, epoch, epochs) -> (Plan, state), plain Python around its own jitted parts. Table
        and plan are whole on every device, so that a sum over them is the same on any number of devices. None: the
        policy has no plan of its own.
      keep_counts: (num_points, epochs) -> points of each epoch, list of int: the cost, known before training. Sizes
        that depend on the data (InfoBatch's) are expectations.
      min_keep: (num_points, epochs) -> points of the smallest possible epoch, if `keep_counts` are expectations.
      epochs: epochs -> the epochs that this policy trains instead.
      init: (num_points, rows, images u8[num_points, H, W, 3] or None) -> policy_state; copies what it keeps.
      records: 'mean' (Eq. 12) or 'last'. Static.
      mixes: the step gathers partners and mixes pixels only when True. Static.
      scores: a train-mode scoring forward pass of the whole batch precedes the step; its running statistics are kept.
      rows: batch -> rows that are trained on.
      in_batch: (key, batch, logits [B, K]) -> Batch of rows(B) rows; None if the policy does not choose inside a batch.
      observe: (student, teacher, batch, per_point f32[B] unweighted loss) -> f32[B], the value to record; None: the
        student's prediction entropy (Eq. 7).
      needs: what `observe` reads of the teacher, from `NEEDS`.
      reads_predictions: whether `replan` needs values of the student's predictions; some methods train none.
      reads_labels: whether `replan` gets one more keyword, `labels`, i32[N] by point, 0 in padded rows.
      teacher_scores: scores that `replan` reads, from `SCORES`; if there are any, it is called with one more keyword,
        teacher={name: f32[N]}, 0 in padding rows: those of the training images as they are, made once per run.
      name, keywords: how it was made; filled in by `policies.get(name).make(**keywords)`.
    """

    when: Callable[[int, int], bool] = _never
    replan: Callable[..., tuple[Plan, PyTree]] | None = None
    keep_counts: Callable[[int, int], list[int]] = _all_points
    min_keep: Callable[[int, int], int] | None = None
    epochs: Callable[[int], int] = _same
    init: Callable[[int, int, Any], PyTree] = _no_policy_state
    records: str = 'mean'
    mixes: bool = False
    scores: bool = False
    rows: Callable[[int], int] = _same
    in_batch: Callable[[Array, Batch, Array], Batch] | None = None
    observe: Callable[[Outputs, Outputs | None, Batch, Array], Array] | None = None
    needs: tuple[str, ...] = ()
    reads_predictions: bool = False
    reads_labels: bool = False
    teacher_scores: tuple[str, ...] = ()
    name: str = ''
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
