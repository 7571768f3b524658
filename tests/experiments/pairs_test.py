"""The pairs of the papers' tables against our networks, methods and counter."""

from __future__ import annotations

import pytest

from kcd_jax import methods, networks, plugins
from kcd_jax.commands.networks import summarise
from kcd_jax.experiments import pairs

# The authors' tool counts more than convolutions and products, which shows in the light networks: how far our ratio is
# above the printed one (1.02: 2 %), and the tolerance of the others.
ABOVE = {'mobilenetv2': 0.144, 'shufflev1': 0.031, 'shufflev2': 0.036}
WITH_RATIO = [pair for pair, facts in pairs.PAIRS.items() if facts['ratio']]


def macs(name):
    return summarise(name, 100, 32).macs


@pytest.mark.parametrize('pair', WITH_RATIO)
def test_the_printed_ratio_of_costs(pair):
    teacher, student = pair.split('-')
    excess = macs(teacher) / macs(student) / pairs.PAIRS[pair]['ratio'] - 1
    assert excess == pytest.approx(ABOVE.get(student, 0.0), abs=0.002 if student in ABOVE else 0.01)


def test_twelve_pairs_have_a_printed_ratio():
    assert len(WITH_RATIO) == 12


def test_imagenet_ratio():
    teacher, student = (summarise(name, 1000, 224).macs for name in ('resnet18', 'shufflev2_x0_5'))
    assert teacher / student == pytest.approx(44.82, abs=0.005)


@pytest.mark.parametrize('pair', pairs.PAIRS)
def test_a_pair_names_networks_methods_and_their_keywords(pair):
    facts = pairs.PAIRS[pair]
    assert set(facts) == {'ratio', 'teacher', 'student', 'methods', 'weights'}
    assert set(pair.split('-')) <= set(networks.names())
    for method, keywords in facts['methods'].items():
        assert set(keywords) <= set(plugins.hyper_parameters(methods.get(method)))
    for method, weights in facts['weights'].items():
        assert set(weights) <= set(vars(methods.get(method).WEIGHTS))


def test_learning_rates():
    assert [pairs.lr_for(name) for name in ('mobilenetv2', 'shufflev1', 'shufflev2', 'vgg8')] == [0.01] * 3 + [0.05]
