"""Every program of a run, lowered for accelerators: no 64-bit type and no way to the host in it.

JAX's own random bits are the exception: it numbers them by 64-bit integers, elementwise, in every program of every
user, which XLA rewrites to 32 bits where a device has none. What XLA need not support is a 64-bit sort.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import data, methods, policies
from kcd_jax.runtime import sharding
from kcd_jax.training import evaluate, step
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from kcd_jax.training.trainer import Trainer, student_variables

pytestmark = pytest.mark.fast_compile

PLATFORMS = ('tpu', 'cuda')
COUNTER = 'iota_2x32_shape'  # the primitive by which JAX numbers its random bits
WIDE = re.compile(r'(?:^|x|<)(?:i64|ui64|f64|complex<f64>)(?:>|$)')
HOST = ('callback', 'infeed', 'outfeed', 'send', 'recv', 'host')

# Students of methods that the usual one does not suit.
STUDENTS = {'fsp': 'tiny_teacher', 'one': 'tiny_one'}


def offences(lowered: jax.stages.Lowered) -> set[str]:
    """What a lowered program holds of 64-bit types and of ops that talk to the host."""
    found: set[str] = set()

    def visit(op) -> None:
        for region in op.regions:
            for block in region:
                found.update(f'argument {a.type}' for a in block.arguments if WIDE.search(str(a.type)))
                for inner in block:
                    visit(inner.operation)
        if COUNTER not in str(op.location):
            found.update(f'{op.name} -> {r.type}' for r in op.results if WIDE.search(str(r.type)))
        target = str(op.attributes['call_target_name']) if 'call_target_name' in op.attributes else ''
        if any(word in f'{op.name} {target}'.lower() for word in HOST):
            found.add(f'{op.name} {target}')

    visit(lowered.compiler_ir('stablehlo').operation)
    return found


def check(function, *arguments) -> None:
    """Asserts that `function` lowers for every accelerator without an offence."""
    assert not offences(jax.jit(function).trace(*arguments).lower(lowering_platforms=PLATFORMS))


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=200)


def trainer_for(digits, method: str, policy: str, **keywords) -> Trainer:
    """A run on the tests' tiny networks, on four devices."""
    recipe = Recipe(epochs=6, batch=16)
    teacher = Run(student='tiny_teacher', data=digits, recipe=recipe)
    run = Run(
        student=STUDENTS.get(method, 'tiny'),
        data=digits,
        teacher=None if method == 'none' else teacher,
        method=methods.get(method).make(),
        policy=policies.get(policy).make(**keywords),
        recipe=recipe,
    )
    run.validate(4)
    variables = None
    if run.teacher_network is not None:
        variables = run.teacher_network.init(jax.random.PRNGKey(1), digits.image_shape)
    return Trainer(run, variables, sharding.make_mesh())


def check_steps(trainer: Trainer, lengths: tuple[int, ...] = (1,)) -> None:
    """A single step of every phase, or scans of several, and the teacher's pass before them."""
    current = trainer.initial_state()
    order = trainer._order(current.key, current.plan, jnp.int32(0))
    points, variables, taught = trainer.feed.points, trainer.teacher_variables, None
    if trainer._answers is not None:
        asking, batch = trainer._answers.teacher_pass, trainer.run.recipe.batch
        index = jnp.arange(asking._points, dtype=jnp.int32)
        share, key = jnp.zeros(len(index)), step.view_key(current.key, 0, -1)
        check(asking._compute, variables, points.images, points.images, index, index, index, share, key)
        rows = np.zeros((batch, asking.num_views, asking.width), np.float32)
        variables, taught = {}, trainer._answers._placed(rows, 0)
    for phase in trainer.run.phases:
        for length in lengths:
            function = functools.partial(step.run_chunk, spec=trainer._spec, phase=phase, length=length)
            check(function, current, order, trainer._rates(phase, 0), points, variables, taught)


def test_the_checks_find_what_they_look_for():
    def wide(x):
        with jax.enable_x64(True):
            return jax.lax.sort(x.astype(jnp.uint64)).astype(jnp.uint32)

    def host(x):
        return jax.pure_callback(lambda x: x, x, x)

    for function, platform in ((wide, 'cuda'), (host, 'cpu')):  # a callback does not even lower for another platform
        assert offences(jax.jit(function).trace(jnp.zeros(4, jnp.uint32)).lower(lowering_platforms=(platform,)))
    assert not offences(jax.jit(jnp.sin).trace(jnp.zeros(4)).lower(lowering_platforms=('tpu',)))


@pytest.mark.parametrize('policy', [name for name in policies.names() if name not in ('reuse', 'kcd')])
def test_steps_and_plans_of_every_policy(tiny_networks, digits, policy):
    trainer = trainer_for(digits, 'kd', policy, **({'k': 12} if policy == 'unix' else {}))
    check_steps(trainer)
    check_plans(trainer)


@pytest.mark.parametrize('augment', ['low', 'high', 'random', 'none'])
@pytest.mark.parametrize('ranking', ['value', 'random'])
def test_plans_of_kcd(tiny_networks, digits, augment, ranking):
    trainer = trainer_for(digits, 'kd', 'kcd', stages=3, augment=augment, ranking=ranking)
    check_plans(trainer)
    if augment == 'low' and ranking == 'value':
        check_steps(trainer, lengths=(1, 3))


def check_plans(trainer: Trainer) -> None:
    """The plans of every condensation."""
    current, policy, epochs = trainer.initial_state(), trainer.run.policy, 6
    table = sharding.replicate(trainer.mesh, current.table)
    for epoch in range(epochs):
        if policy.when(epoch, epochs):
            function = functools.partial(_replan, policy, epoch, epochs)
            check(function, current.key, table, current.plan, current.policy_state)


def _replan(policy, epoch, epochs, key, table, plan, state):
    more = {'labels': jnp.zeros(plan.epsilon.shape, jnp.int32)} if policy.reads_labels else {}
    if policy.teacher_scores:
        more['teacher'] = {name: jnp.zeros(plan.epsilon.shape) for name in policy.teacher_scores}
    return policy.replan(key, table, plan, state, epoch, epochs, **more)


@pytest.mark.slow
@pytest.mark.parametrize('method', [name for name in methods.names() if name != 'kd'])
def test_steps_of_every_method(tiny_networks, digits, method):
    check_steps(trainer_for(digits, method, 'none'))


def test_order_and_evaluation(tiny_networks, digits):
    trainer = trainer_for(digits, 'kd', 'none')
    current, run = trainer.initial_state(), trainer.run
    check(step.epoch_order, current.key, current.plan, jnp.int32(0))
    check(trainer._by_class, current.table.count, trainer._labels)
    images, labels, valid = next(iter(trainer.evaluator.batches))
    taught = jnp.zeros((len(labels), digits.num_classes))
    function = functools.partial(evaluate.eval_step, network=run.student_network)
    check(function, student_variables(current), images, labels, valid, taught)
