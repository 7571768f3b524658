"""The contract of every method. A new file in methods/ is tested with its defaults, without an edit here."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import methods, plugins
from kcd_jax.checks import method as checks
from kcd_jax.methods import _parts, sp

pytestmark = pytest.mark.fast_compile


def module_of(name):
    return importlib.import_module(f'kcd_jax.methods.{name}')


@pytest.fixture(scope='module')
def cases():
    return {}


@pytest.fixture(params=[*methods.names(), '_template'])
def case(request, cases):
    if request.param not in cases:
        cases[request.param] = checks.Case(module_of(request.param))
    return cases[request.param]


@pytest.mark.parametrize('check', checks.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds(case, check):
    check(case)


@pytest.mark.slow
def test_bfloat16_outputs_give_finite_values_close_to_float32(case):
    def narrow(outputs):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)

    _, out, grads = case.run(narrow(case.student), narrow(case.teacher))
    case.traces -= 1  # another dtype is another program
    assert checks.finite((out, grads))
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), narrow(outputs)) for outputs in (case.student, case.teacher)]
    # The same numbers, widened before: only the network's own rounding is left out.
    np.testing.assert_allclose(out.extra, case.run(*wide)[1].extra, rtol=1e-4, atol=1e-6)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'fitnets' \(did you mean 'fitnet'\?\); known: .*vid"):
        methods.get('fitnets')
    assert '_template' not in methods.names() and '_parts' not in methods.names()


def test_a_new_file_is_found_by_its_name(tmp_path, monkeypatch):
    shutil.copy(module_of('_template').__file__, tmp_path / 'nearest_words.py')
    monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path)])
    try:
        assert 'nearest_words' in methods.names()
        module = methods.get('nearest_words')
        assert module.__file__ == str(tmp_path / 'nearest_words.py')
        assert plugins.hyper_parameters(module) == {'scale': 1.0}
        case = checks.Case(module)
        checks.contract(case)
        checks.phases(case)
    finally:
        sys.modules.pop('kcd_jax.methods.nearest_words', None)
        vars(methods).pop('nearest_words', None)


@pytest.mark.parametrize(
    ('rows', 'group', 'size'), [(64, 64, 64), (128, 64, 64), (48, 64, 48), (96, 64, 48), (1, 64, 1)]
)
def test_groups_are_equal_and_at_most_as_large_as_asked(rows, group, size):
    assert _parts.group_size(rows, group) == size


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match='a batch of 97 does not split into equal groups of 2 to 64'):
        _parts.group_size(97, 64)


def test_relations_do_not_depend_on_the_number_of_devices():
    features = jax.random.normal(jax.random.key(0), (2, 16, 6))
    loss = jax.jit(functools.partial(sp.similarity_loss, group=4))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    split = jax.device_put(features, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data')))
    # Each device sums its own rows in the same order; only a fused program may round otherwise.
    np.testing.assert_allclose(loss(split[0], split[1]), loss(features[0], features[1]), rtol=1e-6)
