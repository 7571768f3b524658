"""Models of other frameworks as student and teacher of whole runs: trained, resumed, described, saved and loaded."""

from __future__ import annotations

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kcd_jax
from kcd_jax import data, methods, networks, policies
from kcd_jax.contracts import Method
from kcd_jax.runtime import sharding
from kcd_jax.teachers import Teacher
from kcd_jax.training import loop, teacher_cache, trainer
from kcd_jax.training.run import Run
from kcd_jax.trees import leaf_paths
from tests.networks import foreign_test as foreign

pytestmark = pytest.mark.fast_compile

RECIPE = {'epochs': 2, 'batch': 16, 'optim': {'lr': 0.05}, 'augment': {'crop': 1}, 'teaching': {'allow_weak': True}}


@pytest.fixture(scope='module')
def points():
    random = np.random.default_rng(0)
    labels = np.arange(64) % 3
    images = random.integers(0, 120, (64, *foreign.SHAPE)).astype(np.uint8)
    images[np.arange(64), :, :, labels] += 100
    return data.from_arrays(images[:48], labels[:48], test=(images[48:], labels[48:]), classes=('r', 'g', 'b'))


# The frameworks' own tests are quick; whole runs of some of them are left to the slow tier.
RUNS = [
    pytest.param(kind, marks=pytest.mark.slow if kind in ('equinox', 'functions') else ()) for kind in foreign.KINDS
]


@pytest.mark.parametrize('kind', RUNS)
def test_a_student_is_trained_and_loaded_again(kind, points, tmp_path):
    student = foreign.KINDS[kind]()
    run = Run(student, points, recipe=RECIPE, policy=policies.get('random').make(ratio=0.7, stages=2))
    result = run.train(tmp_path)
    before = leaf_paths(student.init(jax.random.key(0), foreign.SHAPE))
    after = leaf_paths(result.model.variables)
    assert before.keys() == after.keys()
    # The counter of the training passes is part of the state that is saved.
    assert 'dropout/passes' not in after or after['dropout/passes'] == sum(run.steps) > 0
    images = np.asarray(points.test.images)
    with pytest.raises(ValueError, match=f'holds a {student.name}, which is not an installed network; give'):
        kcd_jax.load(tmp_path)
    loaded = kcd_jax.load(tmp_path, network=student)
    np.testing.assert_array_equal(loaded(images), result.model(images))
    assert loaded.classes == ('r', 'g', 'b') and loaded.card['network'] == student.name
    found = float(np.mean(np.argmax(loaded(images), 1) == points.test.labels))
    assert found == pytest.approx(result.accuracy)


def test_a_run_goes_on_where_it_was_cut_bit_for_bit(points, tmp_path):
    """The key and the counter of dropout are part of the state."""
    run = Run(foreign.KINDS['nnx'](), points, recipe=RECIPE)
    whole = run.train(tmp_path / 'whole').model.variables
    original, calls = trainer.Trainer.train_epoch, []

    def stopping(self, current, epoch, between, progress):
        calls.append(epoch)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, current, epoch, between, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, 'train_epoch', stopping)
        with pytest.raises(loop.Preempted):
            run.train(tmp_path / 'cut')
    again = run.train(tmp_path / 'cut').model.variables
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_seeds_start_alike_only_from_present_weights(points):
    model = foreign.KINDS['nnx']()
    anew = networks.from_nnx(foreign.NnxNet)
    first, second = (network.init(jax.random.key(1), foreign.SHAPE)['params'] for network in (model, anew))
    other, another = (network.init(jax.random.key(2), foreign.SHAPE)['params'] for network in (model, anew))
    jax.tree.map(np.testing.assert_array_equal, first, other)
    assert not np.array_equal(second['head']['kernel'], another['head']['kernel'])
    assert jax.tree.structure(first) == jax.tree.structure(second)
    eqx, net = foreign.make_equinox()
    drawn = networks.from_equinox(eqx.nn.make_with_state(net))
    first, second = (drawn.init(jax.random.key(seed), foreign.SHAPE)['params'] for seed in (1, 2))
    assert not np.array_equal(first['head']['weight'], second['head']['weight'])
    for network in (anew, drawn):
        variables = jax.eval_shape(lambda network=network: network.init(jax.random.key(1), foreign.SHAPE))
        image = jax.ShapeDtypeStruct((4, *foreign.SHAPE), jnp.float32)
        outputs, _ = jax.eval_shape(lambda v, x, network=network: network.apply(v, x, True), variables, image)
        assert outputs.logits.shape == (4, 3)


@pytest.mark.parametrize(
    ('method', 'without', 'line'),
    [
        (
            'fitnet',
            'taps',
            r'method fitnet reads the feats of the student, and LinenNet returns none; name them: taps=',
        ),
        (
            'rkd',
            'embed',
            r"method rkd reads the embed of the student, and LinenNet returns none; name them: embed='pool'",
        ),
        ('reviewkd', '', r'method reviewkd reads the preacts of the teacher, and LinenNet returns none; .* preacts='),
        ('at', 'one', r'method at reads the feats of the student, and LinenNet returns 1 of them; .* the stem'),
    ],
)
def test_a_method_says_which_tap_it_wants(method, without, line, points):
    taps = {'taps': (), 'one': ('block1',)}.get(without, ('block1', 'block2'))
    embed = None if without in ('embed', 'taps') else foreign.mean_of_last
    network = networks.from_linen(foreign.LinenNet(), taps=taps, embed=embed)
    teacher = Teacher.from_network(network, foreign.SHAPE)
    run = Run(network, points, teacher=teacher, method=methods.get(method).make(), recipe=RECIPE)
    with pytest.raises(ValueError, match=line):
        run.validate()
    Run(network, points, teacher=teacher, recipe=RECIPE).validate()  # kd needs none


@pytest.mark.parametrize('method', ['at', 'fitnet', 'reviewkd', 'crd', 'sp'])
def test_methods_on_maps_and_embeddings_take_them(method, points):
    student = networks.from_linen(
        foreign.LinenTokens(), taps=('patches', 'attention'), preacts=('attention',), embed=lambda taps: taps[-1][:, 0]
    )
    teacher = networks.from_linen(
        foreign.LinenNet(), taps=('block1', 'block2'), preacts=('block2',), embed=foreign.mean_of_last
    )
    run = Run(
        student,
        points,
        teacher=Teacher.from_network(teacher, foreign.SHAPE),
        method=methods.get(method).make(**({'tap': 1} if method == 'fitnet' else {})),
        recipe=RECIPE,
    )
    run.validate()
    shapes = [feat.shape for feat in run.setup.student.feats]
    assert shapes == [(16, 2, 2, 8)] * 2 and run.setup.student.embed.shape == (16, 8)
    assert len(run.check()) > 5


def test_a_description_holds_the_name_and_needs_the_network():
    digits = data.load('digits', num_points=32)
    network = networks.from_nnx(foreign.NnxNet)
    run = Run('resnet8x0_25', digits).replace(student=network)
    description = json.loads(json.dumps(run.describe()))
    assert description['student'] == 'NnxNet'
    with pytest.raises(ValueError, match=r'NnxNet of this run is not an installed network.*from_description.*student='):
        Run.from_description(description)
    assert Run.from_description(description, student=network).describe() == description
    with pytest.raises(ValueError, match='the student of this run is NnxNet, not LinenNet'):
        Run.from_description(description, student=foreign.KINDS['linen']())


def test_cached_answers_are_of_the_same_operations(points):
    """Name and weights do not tell what a model that was built in Python does with them."""
    model = foreign.NnxNet(nnx.Rngs(0))

    def identity(**other):
        teacher = Teacher.from_network(networks.from_nnx(model, taps=('blocks/0', 'blocks/1'), **other), foreign.SHAPE)
        run = Run('resnet8x0_25', points, teacher=teacher, recipe=RECIPE)
        return teacher.identity, teacher_cache.identity(run, sharding.make_mesh(), 8, [], True)

    first, again = (identity(embed=foreign.mean_of_last) for _ in range(2))
    other = identity(embed=lambda taps: jnp.max(taps[-1], (1, 2)))
    assert first == again and first[0] == other[0] and first[1] != other[1]


@pytest.mark.parametrize('ensemble', [False, True])
def test_cached_answers_are_of_the_arrays_that_the_code_holds(points, ensemble):
    """Weights that a jitted function closes over are in no variables."""

    def key(scale):
        kernel = scale * jnp.ones((int(np.prod(foreign.SHAPE)), 3))
        dense = jax.jit(lambda x: x.reshape(len(x), -1) @ kernel)
        network = networks.from_functions(lambda key, shape: {}, lambda params, x: dense(x), name='held')
        teacher = Teacher.from_network(network, foreign.SHAPE, classes=points.class_names)
        teacher = Teacher.ensemble([teacher, teacher]) if ensemble else teacher
        run = Run('resnet8x0_25', points, teacher=teacher, recipe=RECIPE)
        return teacher_cache.identity(run, sharding.make_mesh(), 8, [], False)

    assert key(1.0) == key(1.0) != key(2.0)


def test_cached_answers_are_of_the_same_views(points):
    def views(shift):
        both = Method(lambda *arrays: {}, num_views=2, views=lambda x: jnp.concatenate([x, x + shift]))
        return teacher_cache.views_of(Run('resnet8x0_25', points, method=both, recipe=RECIPE))

    assert views(1.0) == views(1.0) != views(2.0)


def test_a_teacher_that_is_trained_first_may_be_foreign(points, tmp_path):
    teacher = Run(foreign.KINDS['linen'](), points, recipe=RECIPE, seed=3)
    result = Run('resnet8x0_25', points, teacher=teacher, recipe=RECIPE).train(tmp_path)
    assert result.summary['teacher']['network'] == 'LinenNet'


@pytest.mark.parametrize(
    ('build', 'line'),
    [
        (
            lambda: networks.from_nnx(foreign.NnxNet, taps=('block[0]',)),
            r"no module 'block/0' that is called; nearest: blocks/0",
        ),
        (lambda: networks.from_linen(foreign.NnxNet), r'use a flax linen module'),
        (lambda: networks.from_nnx(3), r'use an nnx module, or a function of nnx.Rngs'),
        (lambda: networks.from_linen(foreign.LinenNet(), taps='block1'), r"taps is 'block1'; use a tuple"),
        (
            lambda: networks.from_linen(foreign.LinenNet(), embed=3),
            r'embed is 3; use the path of a module or a function',
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, line):
    with pytest.raises(ValueError, match=line) as error:
        build()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('keywords', 'line'),
    [
        ({'taps': ('block3', 'block1')}, r"LinenNet has no module 'block3' that is called; nearest: block"),
        ({'taps': ('head', 'block1')}, r'the tap head of LinenNet gives \[2, 3\]; feature maps are \[B, h, w, c\]'),
        ({'classes': 5}, r'LinenNet has 3 outputs, not the 5 of classes='),
        (
            {'taps': ('block1',), 'embed': lambda taps: jnp.zeros((2, 3, 4))},
            r'the embedding of LinenNet is \[2, 3, 4\]',
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_traced(keywords, line):
    network = networks.from_linen(foreign.LinenNet(), **keywords)

    def traced():
        variables = network.init(jax.random.key(0), foreign.SHAPE)
        return network.apply(variables, jnp.zeros((2, *foreign.SHAPE)), False)

    with pytest.raises(ValueError, match=line):
        jax.eval_shape(traced)


@pytest.mark.parametrize(
    ('returned', 'line'),
    [
        (lambda logits: logits[:1], 'plain returns 1 rows for 2 images'),
        (lambda logits: logits.astype(jnp.int32), 'plain returns int32; it must return logits, which are floats'),
    ],
)
def test_other_rows_and_integers_are_refused_when_they_are_traced(returned, line):
    network = networks.from_functions(
        lambda key, shape: {}, lambda params, image: returned(image[:, 0, 0]), name='plain'
    )
    with pytest.raises(ValueError, match=line):
        network.apply(network.init(jax.random.key(0), foreign.SHAPE), jnp.zeros((2, *foreign.SHAPE)), False)


def plain(returned):
    """A linear model whose logits [B, 3] go through a function."""

    def init(key, shape):
        return {'kernel': jax.random.normal(key, (3, 3))}

    return networks.from_functions(init, lambda p, x: returned(x.mean((1, 2)) @ p['kernel']), name='plain')


@pytest.mark.parametrize(
    ('student', 'teacher', 'line'),
    [
        (jax.nn.softmax, None, 'the student plain, asked about held-out images: every row .* give logits'),
        (jnp.sin, jax.nn.softmax, 'the teacher plain, asked about held-out images: every row .* give logits'),
        (jnp.sin, lambda x: x * jnp.nan, 'the teacher plain answers held-out images with numbers that are not finite'),
    ],
)
def test_probabilities_and_no_numbers_are_refused_before_the_first_step(points, tmp_path, student, teacher, line):
    teacher = teacher and Teacher.from_network(plain(teacher), foreign.SHAPE, classes=points.class_names)
    with pytest.raises(ValueError, match=line):
        Run(plain(student), points, teacher, recipe=RECIPE).train(tmp_path)


def test_images_of_another_size_than_the_models_are_refused_in_one_line():
    def init(key, shape):
        return {'kernel': jnp.zeros((8 * 8 * 3, 3))}

    network = networks.from_functions(init, lambda p, x: x.reshape(len(x), -1) @ p['kernel'], name='flat')
    with pytest.raises(ValueError, match=r'flat fails on images of \[16, 16, 3\]: TypeError: dot_general') as error:
        network.apply(network.init(jax.random.key(0), (16, 16, 3)), jnp.zeros((2, 16, 16, 3)), False)
    assert '\n' not in str(error.value)


def test_a_keras_model_without_weights_is_refused():
    keras = pytest.importorskip('keras')
    with pytest.raises(ValueError, match=r'empty has no weights yet; call model.build\(\(None, H, W, 3\)\) first'):
        networks.from_keras(keras.Sequential([keras.layers.Dense(3)], name='empty'))


def test_names_of_the_packages_networks_are_not_given_twice():
    with pytest.raises(ValueError, match='resnet8 is the name of another network'):
        networks.from_linen(foreign.LinenNet(), name='resnet8')


def test_tokens_become_maps():
    reading = networks._foreign.Reading('net', None, (), (), None)
    tokens = jnp.arange(2 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 3)
    np.testing.assert_array_equal(reading.as_map('x', tokens), tokens[:, 1:].reshape(2, 2, 2, 3))
    np.testing.assert_array_equal(reading.as_map('x', tokens[:, :4]), tokens[:, :4].reshape(2, 2, 2, 3))
    with pytest.raises(ValueError, match='the tap x of net gives 7 tokens, which are no square map'):
        reading.as_map('x', jnp.zeros((2, 7, 3)))
