"""The recipe: its defaults are the papers', its parts are checked together, its optimisers follow their schedules."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.training.recipe import Augment, Checkpoint, Optim, Recipe


def test_the_defaults_are_the_papers_recipe():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch, recipe.logits, recipe.dtype) == (240, 64, 'plain', 'float32')
    assert recipe.augment == Augment(crop=4, flip=True, area=())
    rate = recipe.optim.optimiser(240).lr
    falls = [epoch + 1 for epoch in range(1, 240) if rate(epoch) != rate(epoch - 1)]
    assert falls == [151, 181, 211] and rate(0) == 0.05 and rate(239) == pytest.approx(5e-5)


def test_a_recipe_comes_back_from_its_values_through_json():
    recipe = Recipe(epochs=7, optim={'drops': [0.5], 'lr': 1}, augment={'area': (0.08, 1)}, checkpoint={'keep': 3})
    assert recipe == Recipe(
        7, optim=Optim(drops=(0.5,), lr=1.0), augment=Augment(area=(0.08, 1.0)), checkpoint=Checkpoint(keep=3)
    )
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_copy_is_checked_too():
    recipe = Recipe()
    assert recipe.replace(epochs=3).epochs == 3 and recipe.epochs == 240
    with pytest.raises(ValueError, match='epochs is 0; use an integer from 1'):
        recipe.replace(epochs=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'epochs': 0}, 'epochs is 0; use an integer from 1'),
        ({'epochs': True}, 'epochs is True; use an integer'),
        ({'batch': 0}, 'batch is 0'),
        ({'logits': 'log'}, "logits is 'log'; use one of plain"),
        ({'dtype': 'float16'}, "dtype is 'float16'; use one of float32, bfloat16"),
        ({'eval_every': 0}, 'eval_every is 0'),
        ({'eval_batch': -1}, 'eval_batch is -1'),
        ({'chunk': -1}, 'chunk is -1'),
        ({'workers': -1}, 'workers is -1'),
        ({'survey': 'no'}, "survey is 'no'; use True or False"),
        ({'checkpoint': {'keep': 0}}, 'checkpoint.keep is 0'),
        ({'checkpoint': {'seconds': -1}}, 'checkpoint.seconds is -1'),
        ({'optim': {'lr': 0}}, 'optim.lr is 0.* use a number above 0'),
        ({'optim': {'lr': math.nan}}, 'optim.lr is nan'),
        ({'optim': {'momentum': 1.5}}, 'optim.momentum is 1.5'),
        ({'optim': {'momentum': 1.0, 'name': 'rmsprop'}}, 'optim.momentum is 1.0'),
        ({'optim': {'weight_decay': -1e-4}}, 'optim.weight_decay is -0.0001'),
        ({'optim': {'weight_decay': math.nan}}, 'optim.weight_decay is nan'),
        ({'optim': {'warmup': -1}}, 'optim.warmup is -1'),
        ({'optim': {'drops': (0.5, 1.5)}}, r'optim.drops is \(0.5, 1.5\)'),
        ({'optim': {'drops': ('a',)}}, 'optim.drops is'),
        ({'optim': {'factor': -1.0}}, 'optim.factor is -1.0'),
        ({'optim': {'name': 'lion'}}, "optim.name is 'lion'; use one of sgd, adam, adamw, rmsprop"),
        ({'optim': {'clip': -1.0}}, 'optim.clip is -1.0'),
        ({'optim': {'decay': 'none'}}, "optim.decay is 'none'; use one of all, kernels"),
        ({'label_smoothing': 1.0}, 'label_smoothing is 1.0'),
        ({'optim': {'schedule': 'linear'}}, "optim.schedule is 'linear'; use one of drops, cosine, constant"),
        ({'optim': {'nesterov': True, 'name': 'adam'}}, 'nesterov=True needs optim.name=sgd'),
        ({'optim': {'nesterov': True, 'momentum': 0}}, 'nesterov=True needs .* a momentum above 0'),
        ({'augment': {'crop': -1}}, 'augment.crop is -1'),
        ({'augment': {'area': (1e-12, 1.0)}}, 'augment.area is'),
        ({'augment': {'area': (0.5,)}}, r'use \(\) or two shares'),
        ({'augment': {'area': (0.9, 0.5)}}, r'use \(\) or two shares'),
    ],
)
def test_bad_values_are_refused_in_one_line_with_their_key(settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        Recipe(**settings)
    assert '\n' not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- optimisers


def rates(epochs=10, **settings):
    rate = Optim(**settings).optimiser(epochs).lr
    return [rate(epoch) for epoch in range(epochs)]


def test_drops_are_fractions_of_the_phase():
    assert rates(lr=1.0, drops=(0.5, 0.8), factor=0.5) == pytest.approx([1] * 5 + [0.5] * 3 + [0.25] * 2)


def test_the_other_schedules():
    assert rates(lr=0.3, schedule='constant') == [0.3] * 10
    cosine = rates(lr=1.0, schedule='cosine')
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(10)])
    warm = rates(lr=1.0, schedule='constant', warmup=4)
    assert warm[4:] == [1.0] * 6 and all(0 < a < b for a, b in itertools.pairwise(warm[:5]))


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'rmsprop'])
def test_an_optimiser_moves_against_the_gradient(name):
    transform = Optim(name=name, weight_decay=0.0).optimiser(5).transform
    params, gradient = {'w': jnp.ones(3)}, {'w': jnp.array([1.0, -2.0, 0.0])}
    updates, _ = transform.update(gradient, transform.init(params), params)
    np.testing.assert_array_equal(np.sign(updates['w']), [1.0, -1.0, 0.0])  # scaled by -lr in the step
