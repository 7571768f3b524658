"""The canaries pass here, detect wrong results, and are cached per version and machine."""

from __future__ import annotations

import jax
import jaxlib
import numpy as np
import pytest

from kcd_jax.runtime import canaries


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'canaries'


@pytest.mark.parametrize('program', canaries.PROGRAMS)
def test_this_jaxlib_computes_the_known_answers(program):
    found, wanted = program()
    np.testing.assert_array_equal(found, wanted)
    assert np.unique(wanted).size > 20, 'an answer that cannot be wrong shows nothing'


def test_the_last_row_of_the_known_miscompile_differs_from_the_others():
    """jaxlib 0.10.2 returns the result of row 32,640 for it."""
    _, wanted = canaries.matrix_product_by_row()
    assert wanted[-1] != wanted[32640] and (wanted[-1], wanted[32640]) == (138**2, 100)


def test_one_wrong_number_is_named():
    def off_by_one():
        wanted = np.arange(5, dtype=np.float32)
        return wanted + (wanted == 3), wanted

    def of_another_shape():
        return np.zeros(2), np.ones(3)

    assert canaries.failures((off_by_one, of_another_shape)) == [
        'off by one gives 4 instead of 3',
        'of another shape gives 0 instead of 1',
    ]


def test_passing_checks_are_cached(monkeypatch, cache):
    canaries.check()
    [record] = cache.iterdir()
    assert record.name.startswith(f'jaxlib-{jaxlib.__version__}-cpu-')
    monkeypatch.setattr(canaries, 'failures', lambda: pytest.fail('the programs ran again'))
    canaries.check()


@pytest.mark.parametrize('change', ['flags', 'machine'])
def test_another_setting_is_checked_again(monkeypatch, cache, change):
    canaries.check()
    if change == 'flags':
        monkeypatch.setenv('XLA_FLAGS', '--xla_something=1')
    else:
        monkeypatch.setattr(canaries.platform, 'node', lambda: 'another')
    canaries.check()
    assert len(list(cache.iterdir())) == 2


def test_a_wrong_answer_is_one_line_and_is_not_remembered(monkeypatch, cache):
    monkeypatch.setattr(canaries, 'failures', lambda: ['sort with ties gives 1 instead of 2'])
    for _ in range(2):
        with pytest.raises(ValueError, match='computes wrong values on this cpu: sort with ties .*install') as caught:
            canaries.check()
    assert '\n' not in str(caught.value) and jaxlib.__version__ in str(caught.value) and not cache.exists()


@pytest.mark.parametrize(
    ('version', 'backend', 'refused'),
    [('0.10.2', 'cpu', True), ('0.10.2', 'gpu', False), ('0.11.0', 'tpu', True), ('0.11.1', 'gpu', True),
     ('0.11.1', 'cpu', False), ('0.10.1', 'cpu', False), ('0.11.2', 'cpu', False)],
)  # fmt: skip
def test_known_bad_releases_are_refused_by_name(monkeypatch, version, backend, refused):
    monkeypatch.setattr(jaxlib, '__version__', version)
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(canaries, 'failures', lambda: [])
    if refused:
        with pytest.raises(ValueError, match=rf'jaxlib {version} .*jax#\d+.*; install jax and jaxlib'):
            canaries.check()
    else:
        canaries.check()


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'file' / 'below'))
    monkeypatch.setattr(canaries, 'failures', lambda: [])
    canaries.check()
