"""The contract of every policy. A new file in policies/ is tested with its defaults, without an edit here."""

from __future__ import annotations

import importlib

import pytest

from kcd_jax import policies
from kcd_jax.checks import policy as checks

pytestmark = pytest.mark.fast_compile

# Options beyond the defaults, (policy, keywords); the defaults of every policy are added to it.
VARIANTS = [
    ('kcd', {'preset': 'reference'}),
    ('kcd', {'preset': 'reference', 'augment': 'random', 'epsilon': 'constant'}),
    ('kcd', {'ratio': 0.3}),
    ('kcd', {'ratio': 1.0}),
    ('kcd', {'first': 'none', 'dropped': 'window', 'augment': 'high', 'epsilon': 'constant'}),
    ('kcd', {'ranking': 'random', 'augment': 'random', 'records': 'last', 'alpha': 0.0}),
    ('kcd', {'augment': 'none', 'value': 'loss'}),
    ('random', {'drawn': 'epoch'}),
    ('balanced', {'classes': 'even', 'ratio': 0.3}),
    ('learnability', {'score': 'entropy', 'ratio': 0.3}),
    ('moderate', {'ratio': 1.0}),
    ('rounds', {'ratio': 0.3, 'sizes': 'constant', 'doubt': 0.2, 'classes': 'proportional'}),
    ('seta', {'groups': 4, 'window': 0.5, 'ratio': 0.5}),
    ('unix', {'score': 'random', 'mix': 'none', 'k': 9}),
    ('unix', {'score': 'margin', 'mix': 'constant', 'beta': 0.2}),
    ('_template', {}),
]


# `reuse` cannot be built from its defaults (it needs the folder of a run); others_test.py tests it.
NEEDS_A_RUN = {'reuse'}


def all_policies():
    return [(name, {}) for name in policies.names() if name not in NEEDS_A_RUN] + VARIANTS


def identify(case):
    return f'{case[0]}-{"-".join(map(str, case[1].values()))}' if case[1] else case[0]


@pytest.fixture(params=all_policies(), ids=identify, scope='module')
def case(request):
    name, keywords = request.param
    return checks.Case(importlib.import_module(f'kcd_jax.policies.{name}'), keywords)


@pytest.mark.parametrize('check', checks.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds(case, check):
    check(case)
