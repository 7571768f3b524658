"""The ledger of a run: its parts against programs of their own, a textbook count, and the papers' formula."""

from __future__ import annotations

import collections
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import data, knowledge, networks, policies
from kcd_jax.contracts import Network
from kcd_jax.experiments import config as grammar
from kcd_jax.training import ledger, macs
from kcd_jax.training.run import Run
from tests.digits import one_device, run_for
from tests.training import layer_macs

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH, POINTS, SIDE = 20, 300, 16
# One image through the tests' networks: a stem of stride 2, three 3x3 layers (the second of stride 2), the classifier.
TINY = {'tiny': 4, 'tiny_teacher': 24}


def by_hand(name: str, classes: int = 10) -> dict[str, int]:
    """{layer: multiply-accumulates} of one image."""
    width, half, quarter = TINY[name], (SIDE // 2) ** 2, (SIDE // 4) ** 2
    layer = 9 * width * width
    return {
        'conv1': 9 * 3 * width * half,
        'layer1': layer * half,
        'layer2': layer * quarter,
        'layer3': layer * quarter,
        'fc': width * classes,
    }


def made_up(points: int, classes: int, side: int) -> data.Dataset:
    """Noise."""
    rng = np.random.default_rng(0)

    def split(count):
        images = np.broadcast_to(rng.integers(0, 256, (1, side, side, 3), np.uint8), (count, side, side, 3))
        return data.Split(images, rng.integers(0, classes, count, np.int32))

    pixels = data.Normalization((0.5,) * 3, (0.25,) * 3)
    names = tuple(map(str, range(classes)))
    return data.Dataset('made-up', split(points), split(20), names, classes, (side, side, 3), pixels, 'made-up images')


@pytest.fixture(scope='module')
def digits():
    return made_up(POINTS, 10, SIDE)


@pytest.fixture
def resolved(tiny_networks, digits):
    """The run of words after the digits config's colon."""

    def resolve(words: str) -> Run:
        stages = 'stages=3,' if 'kcd' in words or 'policy=random' in words else ''
        config = grammar.load(f'{ROOT}/configs/digits_kd.py:tiny_teacher-tiny,epochs=6,{stages}{words}')
        return grammar.run_of(config, lambda *_: digits)

    return resolve


def images(rows):
    return jax.ShapeDtypeStruct((rows, SIDE, SIDE, 3), jnp.float32)


def variables(network):
    return jax.eval_shape(lambda key: network.init(key, (SIDE, SIDE, 3)), jax.random.PRNGKey(0))


def alone(network, rows):
    """Multiply-accumulates of a forward pass traced by itself."""
    return macs.count(lambda v, x: network.apply(v, x, True)[0].logits, variables(network), images(rows))


def with_gradient(network, rows):
    def loss(params, rest, x):
        return jnp.sum(network.apply({'params': params, **rest}, x, True)[0].logits)

    both = variables(network)
    rest = {name: tree for name, tree in both.items() if name != 'params'}
    return macs.count(jax.value_and_grad(loss), both['params'], rest, images(rows))


def test_macs_match_the_textbook_count(tiny_networks):
    for name in TINY:
        network = networks.get(name)(10)
        assert (
            alone(network, 7)
            == 7 * sum(by_hand(name).values())
            == 7 * layer_macs.forward_macs(network, (SIDE, SIDE, 3))
        )


@pytest.mark.parametrize('name', ['wrn_16_2', 'shufflev1', 'mobilenetv2'])
def test_the_jaxpr_and_the_layers_agree_on_shipped_networks(name):
    network = networks.get(name)(100)
    found = layer_macs.forward_macs(network, (32, 32, 3))
    assert found == {'wrn_16_2': 101_118_464, 'shufflev1': 38_691_456, 'mobilenetv2': 6_523_648}[name]


def test_the_parts_of_plain_distillation(resolved):
    run = resolved('method=kd,policy=none')
    (phase,) = run.phases
    step = ledger.step_cost(run, phase)
    student, teacher = by_hand('tiny'), by_hand('tiny_teacher')
    assert step.macs == {
        'teacher_forward': BATCH * sum(teacher.values()),
        'student_forward': BATCH * sum(student.values()),
        # Two products for each of the forward's, but no gradient of the image.
        'student_backward': BATCH * (2 * sum(student.values()) - student['conv1']),
        'scoring_forward': 0,
        'method': 0,
    }
    assert step.total == macs.by_scope(ledger.trace(run, phase)).total()
    assert step.samples == dict.fromkeys(ledger.PASSES, BATCH) | {'scoring_forward': 0}


WITH_ALL_PASSES = ['method=kd,policy=unix', 'method=at,policy=unix,k=12,alpha=1', 'method=sskd,policy=none']


@pytest.mark.parametrize('words', WITH_ALL_PASSES)
def test_the_parts_are_those_of_programs_of_their_own(resolved, words):
    run = resolved(words)
    phase = run.phases[-1]
    step = ledger.step_cost(run, phase)
    moved = step.samples['student_backward']
    expected = {
        'teacher_forward': alone(run.teacher_network, step.samples['teacher_forward']),
        'student_forward': alone(run.student_network, step.samples['student_forward']),
        'student_backward': with_gradient(run.student_network, moved) - alone(run.student_network, moved),
        'scoring_forward': alone(run.student_network, step.samples['scoring_forward']),
    }
    assert {part: step.macs[part] for part in ledger.PASSES} == expected
    whole = macs.by_scope(ledger.trace(run, phase)).total()
    assert whole == sum(expected.values()) + step.macs['method']


def test_samples_of_methods_with_views_and_several_updates(resolved):
    run = resolved('method=sskd,policy=none')
    head, main = (ledger.step_cost(run, phase).samples for phase in run.phases)
    views = {'teacher_forward': 4 * BATCH, 'student_forward': 4 * BATCH, 'scoring_forward': 0}
    assert head == {**views, 'student_backward': 0} and main == {**views, 'student_backward': 4 * BATCH}
    run = resolved('method=kdgan,policy=none')
    step = ledger.step_cost(run, run.phases[0])
    # The discriminator's update and the student's share one forward; the discriminator is the method's own part.
    assert step.samples['student_forward'] == BATCH and step.macs['method'] > 0


def test_a_policy_of_the_whole_set_costs_its_steps(resolved):
    run = resolved('method=kd,policy=kcd')
    found = ledger.expected(run)
    assert found.steps == sum(run.steps) < 6 * (POINTS // BATCH)
    assert found.relative == pytest.approx(found.steps / (6 * (POINTS // BATCH)), abs=1e-12)
    assert found.relative == pytest.approx(ledger.sample_counts(run)['relative_processed'], abs=1e-12)
    assert found.samples['teacher_forward'] == ledger.sample_counts(run)['processed_samples']


@pytest.mark.parametrize('words', ['policy=unix', 'policy=unix,k=8', 'policy=unix,k=12,score=random', 'policy=short'])
def test_the_relative_cost_is_the_papers_formula_with_the_counted_backward(resolved, words):
    run = resolved(f'method=kd,{words}')
    found = ledger.expected(run)
    student, teacher = (sum(by_hand(name).values()) for name in TINY)
    backward = 2 - by_hand('tiny')['conv1'] / student
    share = knowledge.computation(run.rows, BATCH, teacher / student, scoring=run.policy.scores, backward=backward)
    assert found.relative == pytest.approx(share * len(run.steps) / 6, abs=1e-12)


def test_the_methods_own_part_on_everything_is_not_taken_in_proportion(resolved):
    """SP compares every row with every other: the whole batch costs more than in proportion to the rows."""
    run = resolved('method=sp,policy=unix,k=10')
    ours, whole = ledger.expected(run).macs['method'], ledger.full(run)['method']
    assert 0 < 2 * ours < whole
    run = resolved('method=sp,policy=none')
    assert ledger.expected(run).macs == ledger.full(run)


def test_lines_show_every_part(resolved):
    run = resolved('method=kd,policy=unix')
    text = '\n'.join(ledger.lines(ledger.expected(run)))
    assert all(part in text for part in ledger.PARTS) and '% of the method on every point' in text


def test_equal_names_of_different_networks_do_not_share_a_cost(tiny_networks, digits):
    """Parameters of equal shapes say nothing of strides: what was built in Python is traced for each run."""
    small = networks.get('tiny')(10)

    def twice(variables, image, train):
        return small.apply(variables, jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2), train)

    large = dataclasses.replace(small, apply=twice)
    costs = [ledger.step_cost(run, run.phases[0]).macs for run in (Run(student, digits) for student in (small, large))]
    assert costs[1]['student_forward'] > 3 * costs[0]['student_forward']


@pytest.mark.parametrize(
    ('policy', 'keywords', 'scheduled', 'processed'),
    [
        ('kcd', {'preset': 'paper'}, (9_811_200, 81.76), (9_801_920, 81.71)),
        ('kcd', {'preset': 'reference'}, (10_500_000, 87.50), (10_496_000, 87.49)),
        ('none', {}, (12_000_000, 100.0), (11_996_160, 100.0)),
        ('random', {}, (9_811_200, 81.76), (9_801_920, 81.71)),
    ],
)
def test_the_samples_of_240_epochs_of_cifar_100(tiny_networks, policy, keywords, scheduled, processed):
    """KCD Eq. 16 with the resolutions of docs/METHODS.md 5.4; nothing is trained."""
    teacher = Run('tiny_teacher', made_up(100, 100, 8))
    run = Run('tiny', made_up(50_000, 100, 8), teacher, policy=policies.get(policy).make(**keywords))
    counts = ledger.sample_counts(run)
    assert (counts['scheduled_samples'], counts['scheduled_full']) == (scheduled[0], 12_000_000)
    assert (counts['processed_samples'], counts['processed_full']) == (processed[0], 11_996_160)
    assert round(100 * counts['relative_scheduled'], 2) == scheduled[1]
    assert round(100 * counts['relative_processed'], 2) == processed[1]
    assert f'{scheduled[0]:,} of 12,000,000 points ({scheduled[1]:.2f} %)' in ledger.samples_line(counts)


# ------------------------------------------------------------------------------------- against an instrumented run


class Calls:
    """Counts, while a program runs, the rows that pass through a network; it knows nothing of the ledger."""

    def __init__(self):
        self.rows = collections.Counter()

    def watched(self, network: Network, name: str) -> Network:
        """The network, with every forward and backward pass reported from inside the compiled program."""

        def report(direction: str, rows: int, x):
            def heard(_):
                self.rows[name, direction, rows] += rows

            jax.debug.callback(heard, x.reshape(-1)[0])

        @jax.custom_vjp
        def watch(x):
            report('forward', x.shape[0], x)
            return x

        def backward(_, grad):
            report('backward', grad.shape[0], grad)
            return (grad,)

        watch.defvjp(lambda x: (watch(x), None), backward)

        def apply(variables, image, train):
            outputs, model_state = network.apply(variables, image, train)
            return outputs.replace(logits=watch(outputs.logits)), model_state

        return dataclasses.replace(network, apply=apply)


@pytest.mark.parametrize(
    'words',
    [
        pytest.param('unix,k=12', marks=pytest.mark.slow),
        pytest.param('kcd,stages=3', marks=pytest.mark.slow),
        pytest.param('infobatch', marks=pytest.mark.slow),
    ],
)
def test_ledger_matches_an_independent_count(tiny_networks, monkeypatch, tmp_path, words):
    calls, step_spec = Calls(), Run.step_spec

    def watched(run, *constrain):
        spec = step_spec(run, *constrain)
        if spec.teacher is None:  # the teacher's own training
            return spec
        return dataclasses.replace(
            spec, student=calls.watched(spec.student, 'student'), teacher=calls.watched(spec.teacher, 'teacher')
        )

    monkeypatch.setattr(Run, 'step_spec', watched)
    policy, _, keywords = words.partition(',')
    run = run_for(f'{keywords},teaching.in_step=True'.lstrip(','), policy=policy)
    summary = run.train(tmp_path / 'run', mesh=one_device()).summary
    jax.effects_barrier()

    k = run.policy.keywords.get('k', BATCH)
    passes = {
        'teacher_forward': calls.rows['teacher', 'forward', k],
        'student_forward': calls.rows['student', 'forward', k],
        'student_backward': calls.rows['student', 'backward', k],
        'scoring_forward': calls.rows['student', 'forward', BATCH] if k < BATCH else 0,
    }
    found, (student, teacher) = summary['cost'], (by_hand(name) for name in TINY)
    assert found['samples'] == passes and passes['student_backward'] > 0
    assert found['macs'] == {
        'teacher_forward': passes['teacher_forward'] * sum(teacher.values()),
        'student_forward': passes['student_forward'] * sum(student.values()),
        'student_backward': passes['student_backward'] * (2 * sum(student.values()) - student['conv1']),
        'scoring_forward': passes['scoring_forward'] * sum(student.values()),
        'method': 0,
    }
    assert found['processed_samples'] == passes['teacher_forward'] == found['steps'] * k
    full = 6 * POINTS * (sum(teacher.values()) + 3 * sum(student.values()) - student['conv1'])
    assert found['macs_full'] == full and found['relative_macs'] == sum(found['macs'].values()) / full
    ratio = sum(teacher.values()) / sum(student.values())
    share = knowledge.computation(k, BATCH, ratio, scoring=k < BATCH) * found['relative_processed'] * BATCH / k
    assert found['computation']['assumed_backward'] == pytest.approx(share, abs=1e-12)
    assert found['computation']['counted_backward'] == found['relative_macs']
    seconds = summary['seconds']
    assert (seconds['score'] > 0) == (k < BATCH) and seconds['train'] >= 0
    parts = sum(seconds[part] for part in ('compile', 'train', 'score', 'condense', 'evaluate'))
    assert parts <= seconds['total']
