"""KR: knowledge representing (Liu et al., CVPR workshops 2019), one interpretation of a paper without code.

The teacher's convolutions are grouped, `aggregate` consecutive ones each (the paper's c). A unit conv3x3-BN-ReLU maps
the teacher's features at the group's entrance to an approximation F~ of its features F at the exit, and the student
learns from F~. With B the batch, every training step makes the steps of Eq. 9 and 10:

  A, at the run's learning rate: the student minimises the posterior knowledge, the objective of any other method
     (`posterior`: kd, nst, kdgan, ...); the units W~ minimise the transport term
     gamma * sum_k mu_k * mean_b ||F_k - F~_k||_2 / sqrt(numel), mu_k the standard deviation of the kernels of group k;
  B, at `prior_lr` times that rate: the student and the ID layers R minimise the prior knowledge
     sum_k mean((R_k(F_s,k) - F~_k)^2), with recoded gradients (`sparse`, see `recoding`).

The two terms of A have disjoint parameters, so A is two updates ('main' and 'units') with equal settings. The student's
running statistics come from A. R is the identity if the channels agree, else conv1x1-BN, applied after average pooling
to the smaller size. Units and ID layers use batch statistics.

Among layers with maps of one size, a student's layer learns from the teacher's group at the same relative depth. Groups
that no student layer learns from have no unit. Networks without taps after their convolutions (`Outputs.convs`) are
matched stage by stage. The paper leaves most of this open: docs/KR.md lists the choices and the effect of alternatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kcd_jax import methods
from kcd_jax.contracts import (
    Array,
    LossOut,
    Method,
    Network,
    Optimiser,
    Outputs,
    Phase,
    PyTree,
    Setup,
    Update,
    Weights,
    default_phases,
)
from kcd_jax.methods import _parts
from kcd_jax.methods import _recoding as recoding
from kcd_jax.settings import ranges
from kcd_jax.trees import leaf_paths

# Weights of the default posterior; a config uses those of the posterior that it names.
WEIGHTS = methods.get('kd').WEIGHTS
WEIGHTS_OF = 'posterior'
RELATIONAL = True  # a point's term depends on the rest of the batch, through batch statistics

SPARSE = ('recode', 'drop', 'penalty', 'l1', 'l2', 'none')
MEASURES = ('kernels', 'residual', 'one')

# ------------------------------------------------------------------------------------------------------- layer matching


@dataclasses.dataclass(frozen=True)
class Pair:
    """A group of teacher layers and the student layer that learns from it, as indices into `layers(outputs)`.

    Attributes:
      entrance, exit: of the teacher's maps before and after the group.
      student: of the student's map.
    """

    entrance: int
    exit: int
    student: int


def layers(outputs: Outputs) -> tuple[Array, ...]:
    """The maps by depth, starting at the stem: after each convolution if the network has such taps, else per stage."""
    return outputs.convs or outputs.feats


def match(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """(student, teacher) elements of two sequences at the same relative depth; the last ones are paired."""
    many, few = max(len(student), len(teacher)), min(len(student), len(teacher))
    nearest = [-(-(place + 1) * many // few) - 1 for place in range(few)]
    places = zip(range(few), nearest, strict=True) if few == len(student) else zip(nearest, range(few), strict=True)
    return [(student[s], teacher[t]) for s, t in places]


def pair_layers(student: Sequence[int], teacher: Sequence[int], aggregate: int) -> tuple[Pair, ...]:
    """Groups of `aggregate` teacher layers, each with the student layer that learns from it.

    Args:
      student, teacher: heights of the maps by depth, starting at the stem.
      aggregate: layers per group; the last group may have fewer.

    Returns:
      The pairs by depth. If the networks have no map size in common, they are matched by depth alone.
    """
    ends = list(range(aggregate, len(teacher) - 1, aggregate)) + [len(teacher) - 1]
    own = list(range(1, len(student)))
    sizes = [size for size in dict.fromkeys(student[1:]) if size in {teacher[end] for end in ends}]
    parts = [([i for i in own if student[i] == size], [e for e in ends if teacher[e] == size]) for size in sizes]
    matched = [found for part in (parts or [(own, ends)]) for found in match(*part)]
    return tuple(Pair((end - 1) // aggregate * aggregate, end, layer) for layer, end in matched)


def deviation(network: Network, variables: PyTree, pair: Pair) -> float:
    """mu of a group: the standard deviation of its kernels' entries (of all kernels if the network names none)."""
    kernels = leaf_paths(variables['params'])
    names = network.convs[pair.entrance + 1 : pair.exit + 1]
    chosen = [kernels[name] for name in names] or [leaf for leaf in kernels.values() if leaf.ndim == 4]
    return float(np.std(np.concatenate([np.asarray(leaf).reshape(-1) for leaf in chosen])))


# ---------------------------------------------------------------------------------------------------------------- terms


def unit_init(key: Array, entrance: tuple[int, ...], exit_: tuple[int, ...]) -> PyTree:
    """A unit from maps of shape `entrance` [B, h, w, c] to maps of shape `exit_`."""
    return {
        'conv': _parts.conv_init(key, (3, 3, entrance[3], exit_[3]), bias=False),
        'norm': _parts.batch_norm_init(exit_[3]),
    }


def stride_between(entrance: int, exit_: int) -> int:
    """The stride from `entrance` to `exit_` pixels; ValueError if there is none."""
    stride = -(-entrance // exit_)
    if -(-entrance // stride) != exit_:
        raise ValueError(f'kr cannot aggregate maps of {entrance} pixels into {exit_}; use another aggregate=...')
    return stride


def aggregated(params: PyTree, entrance: Array, size: int) -> Array:
    """F~ [B, size, size, c]: the unit's map, >= 0; the teacher gets no gradient."""
    x = jax.lax.stop_gradient(entrance.astype(jnp.float32))
    x = _parts.conv(params['conv'], x, stride_between(x.shape[1], size))
    return jax.nn.relu(_parts.batch_norm(params['norm'], x))


def distance(target: Array, approximation: Array) -> Array:
    """f32[B]: ||F - F~||_2 / sqrt(numel) of each row; its gradient is finite at 0."""
    return jnp.sqrt(_parts.mean_per_row((target - approximation) ** 2) + 1e-12)


def bridge_init(key: Array, student: tuple[int, ...], target: tuple[int, ...]) -> PyTree:
    """Parameters of the ID layer R between two map shapes; {} if the channels agree."""
    if student[3] == target[3]:
        return {}
    return {
        'conv': _parts.conv_init(key, (1, 1, student[3], target[3]), bias=False),
        'norm': _parts.batch_norm_init(target[3]),
    }


def bridged(params: PyTree, student: Array) -> Array:
    """R(F_s)."""
    if not params:
        return student
    return _parts.batch_norm(params['norm'], _parts.conv(params['conv'], student))


def imitation(bridge: PyTree, student: Array, target: Array) -> Array:
    """f32[B]: mean((R(F_s) - F~)^2) of each row, at the size of the smaller map; the units get no gradient."""
    student, target = _parts.same_size(jax.nn.relu(student), jax.lax.stop_gradient(target))
    return _parts.mean_per_row((bridged(bridge, student) - target) ** 2)


# --------------------------------------------------------------------------------------------------------------- method


def sparse_transform(
    sparse: str, strength: float, floor: float, threshold_lr: float, decay: float
) -> optax.GradientTransformation:
    """The gradient transformation of optimiser B for each value of `sparse`."""
    thresholds = {'strength': strength, 'floor': floor, 'threshold_lr': threshold_lr}
    return {
        'recode': lambda: recoding.recode(**thresholds),
        'drop': lambda: recoding.recode(drop=True, **thresholds),
        'penalty': lambda: recoding.penalise(**thresholds),
        'l1': lambda: recoding.l1(decay),
        'l2': lambda: recoding.l2(decay),
        'none': optax.identity,
    }[sparse]()


def inside(update: Update) -> Update:
    """An update of the posterior method, with its parameters and state moved under 'posterior'."""

    def loss(params, state, student, teacher, batch, clock, key):
        out = update.loss(params['posterior'], state['posterior'], student, teacher, batch, clock, key)
        return dataclasses.replace(out, state={**state, 'posterior': out.state})

    moves = tuple(
        f'method/posterior/{pattern.removeprefix("method/")}' if pattern.startswith('method/') else pattern
        for pattern in update.moves
    )
    return dataclasses.replace(update, loss=loss, moves=moves)


@ranges(
    aggregate={'low': 1, 'high': 1000},
    transport={'low': 0, 'high': 1e6},
    mu={'choices': MEASURES},
    prior_lr={'above': 0, 'high': 1000},
    sparse={'choices': SPARSE},
    strength={'low': 0, 'high': 1e6},
    floor={'low': 1e-6, 'high': 1},
    threshold_lr={'low': 0, 'high': 1000},
    decay={'low': 0, 'high': 10},
)
def make(
    *,
    aggregate: int = 3,
    transport: float = 1.0,
    mu: str = 'kernels',
    posterior: str = 'kd',
    prior_lr: float = 0.1,
    sparse: str = 'recode',
    strength: float = 0.3,
    floor: float = 0.1,
    threshold_lr: float = 0.01,
    decay: float = 1e-4,
) -> Method:
    """Builds the method.

    Args:
      aggregate: teacher convolutions per group: 3 for CIFAR, 4 for ImageNet.
      transport: gamma of Eq. 9.
      mu: weight of a group: 'kernels', the standard deviation of its kernels; 'residual', that of F - F~ in the batch;
        'one'.
      posterior: the method of the posterior knowledge, with its default keywords; a config also takes its weights.
      prior_lr: learning rate of B divided by that of A: 0.1 for CIFAR, 0.05 for ImageNet.
      sparse: 'recode', 'drop', 'penalty' (second derivatives), 'l1', 'l2', or 'none', the paper's Proposed-Dense.
      strength: lambda of 'recode', 'drop' and 'penalty', divided by a tensor's first threshold; 0 does not boost.
      floor: smallest fraction of a gradient's nonzero entries that 'recode', 'drop' and 'penalty' treat as dominant, in
        (0, 1].
      threshold_lr: learning rate of the thresholds of 'recode', 'drop' and 'penalty'; 0 keeps the first ones.
      decay: factor of 'l1' and 'l2'.

    Raises:
      ValueError: `posterior` is kr.
    """
    if posterior == 'kr':
        raise ValueError('kr: posterior is kr itself; use kd, nst, kdgan or another method')
    base = methods.get(posterior).make()
    sparsify = sparse_transform(sparse, strength, floor, threshold_lr, decay)
    views = base.num_views

    def pairs_of(student: Outputs, teacher: Outputs) -> tuple[Pair, ...]:
        heights = ([x.shape[1] for x in layers(outputs)] for outputs in (student, teacher))
        return pair_layers(*heights, aggregate if teacher.convs else 1)

    def init(key: Array, setup: Setup) -> tuple[PyTree, PyTree]:
        base_key, unit_key, bridge_key = jax.random.split(key, 3)
        params, state = base.init(base_key, setup)
        pairs = pairs_of(setup.student, setup.teacher)
        teacher, student = layers(setup.teacher), layers(setup.student)
        units, bridges, measures = {}, {}, {}
        for number, pair in enumerate(pairs):
            name = f'{number:02d}'
            entrance, exit_ = teacher[pair.entrance].shape, teacher[pair.exit].shape
            stride_between(entrance[1], exit_[1])
            units[name] = unit_init(jax.random.fold_in(unit_key, number), entrance, exit_)
            bridge = bridge_init(jax.random.fold_in(bridge_key, number), student[pair.student].shape, exit_)
            if bridge:
                bridges[name] = bridge
            known = mu == 'kernels' and setup.teacher_variables is not None
            measure = deviation(setup.teacher_network, setup.teacher_variables, pair) if known else 1.0
            measures[name] = jnp.full((), measure, jnp.float32)
        return (
            {'posterior': params, 'units': units, 'bridges': bridges},
            {'posterior': state, 'measures': measures},
        )

    def approximations(params: PyTree, student: Outputs, teacher: Outputs):
        """Yields (name, the student's map, F, F~) of each pair, for the first view of each point."""
        own, theirs = layers(student), layers(teacher)
        for number, pair in enumerate(pairs_of(student, teacher)):
            name = f'{number:02d}'
            target = jax.nn.relu(theirs[pair.exit][::views].astype(jnp.float32))
            unit = aggregated(params['units'][name], theirs[pair.entrance][::views], target.shape[1])
            yield name, own[pair.student][::views], target, unit

    def transport_loss(params, state, student, teacher, batch, clock, key):
        del clock, key
        extra = jnp.zeros_like(batch.weight)
        for name, _, target, unit in approximations(params, student, teacher):
            measure = state['measures'][name]
            if mu == 'residual':
                measure = jax.lax.stop_gradient(jnp.std(target - unit))
            extra = extra + transport * measure * distance(target, unit)
        return LossOut(extra, state, {'transport': jnp.mean(extra)})

    def prior_loss(params, state, student, teacher, batch, clock, key):
        del clock, key
        extra = jnp.zeros_like(batch.weight)
        for name, own, _, unit in approximations(params, student, teacher):
            extra = extra + imitation(params['bridges'].get(name, {}), own, unit)
        return LossOut(extra, state, {'prior': jnp.mean(extra)})

    posterior_loss = inside(Update(base.loss, (), '')).loss

    def loss(params, state, student, teacher, batch, clock, key):
        """Eq. 2 without the sparse term; the phases minimise its terms one after another."""
        outs = [part(params, state, student, teacher, batch, clock, key) for part in (posterior_loss, transport_loss)]
        outs.append(prior_loss(params, outs[0].state, student, teacher, batch, clock, key))
        metrics = {name: value for out in outs for name, value in out.metrics.items()}
        return LossOut(sum(out.extra for out in outs), outs[0].state, metrics)

    def phases(epochs: int, main: Optimiser, student: Network) -> tuple[Phase, ...]:
        found = base.phases(epochs, main, student) if base.phases else default_phases(base, epochs, main)
        return tuple(with_priors(phase, main) for phase in found)

    def with_priors(phase: Phase, main: Optimiser) -> Phase:
        updates = tuple(inside(update) for update in phase.updates)
        if not phase.record:  # a phase of the posterior method before the student's training
            return dataclasses.replace(phase, updates=updates)
        prior = Optimiser(optax.chain(sparsify, main.transform), lambda epoch: prior_lr * main.lr(epoch))
        alone = Weights(gamma=0.0, alpha=0.0, beta=1.0)
        added = (
            Update(transport_loss, ('method/units/*',), 'units', alone, keep=False),
            Update(prior_loss, ('student/*', 'method/bridges/*'), 'prior', alone, keep=False),
        )
        optimisers = {**phase.optimisers, 'units': main, 'prior': prior}
        return dataclasses.replace(phase, optimisers=optimisers, updates=(*updates, *added))

    return Method(
        loss=loss, init=init, num_views=views, views=base.views, phases=phases, needs_labels=base.needs_labels
    )
