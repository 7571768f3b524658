"""Settings: every kind of value, every bound, and the lines in which a value is refused."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax import methods, plugins, policies, settings
from kcd_jax.contracts import Weights
from kcd_jax.settings import Setting, check, nested, ranges, setting, settings_of, validate
from kcd_jax.training.recipe import Augment, Checkpoint, Optim, Recipe

FRACTION = Setting(0.5, 'a share', above=0, high=1)
COUNT = Setting(3, 'a number of points', low=1, high=10)


def refused(value, declared):
    with pytest.raises(ValueError) as caught:
        check('part.key', value, declared)
    line = str(caught.value)
    text = repr(value)
    shown = text if len(text) <= 100 else f'{text[:30]}...{text[-30:]}'
    assert line == f'part.key is {shown}; use {declared.range}' and '\n' not in line


def test_each_bound_holds_at_its_edge():
    assert check('key', 1.0, FRACTION) == 1.0 and check('key', 1e-12, FRACTION) == 1e-12
    refused(0.0, FRACTION)
    refused(math.nextafter(1.0, 2.0), FRACTION)
    assert check('key', 1, COUNT) == 1 and check('key', 10, COUNT) == 10
    refused(0, COUNT)
    refused(11, COUNT)
    momentum = Setting(0.9, 'a decay', low=0, below=1)
    assert check('key', 0.0, momentum) == 0.0
    refused(1.0, momentum)
    refused(-1e-9, momentum)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 10**400])
def test_what_is_not_finite_is_refused_in_every_kind_of_setting(value):
    refused(value, FRACTION)
    refused(value, Setting(0.5, 'without bounds'))
    refused(value, Setting(3, 'without bounds'))
    refused((0.5, value), Setting((0.5,), 'without bounds'))


@pytest.mark.parametrize('value', [10**400, 10**5000, (10**5000,), 'a' * 5000], ids=['int', 'huge', 'tuple', 'text'])
def test_a_long_value_is_not_written_whole(value):
    with pytest.raises(ValueError, match=f'use {COUNT.range}') as caught:
        check('part.key', value, COUNT)
    assert len(str(caught.value)) < 130
    with pytest.raises(ValueError, match='use Inner') as caught:
        Outer(inner=value)
    assert len(str(caught.value)) < 130


@pytest.mark.parametrize('value', [True, '1', None, [1], 1.0])
def test_an_integer_is_nothing_else(value):
    refused(value, COUNT)


@pytest.mark.parametrize('value', [True, '0.5', None, (0.5,)])
def test_a_float_is_a_number(value):
    refused(value, FRACTION)


def test_an_integer_becomes_the_float_that_it_is():
    found = check('key', 1, FRACTION)
    assert found == 1.0 and type(found) is float


@pytest.mark.parametrize('value', [1, 0, 'true', None])
def test_a_switch_is_true_or_false(value):
    refused(value, Setting(False, 'a switch'))
    assert check('key', True, Setting(False, 'a switch')) is True


def test_a_choice_is_one_of_its_values():
    choice = Setting('sgd', 'an optimiser', choices=('sgd', 'adam'))
    assert check('key', 'adam', choice) == 'adam'
    refused('adamw', choice)
    refused(5, choice)
    assert choice.range == 'one of sgd, adam'


def test_every_part_of_a_tuple_is_inside_the_range():
    drops = Setting((0.5,), 'fractions', above=0, high=1)
    found = check('key', [0.5, 1], drops)
    assert found == (0.5, 1.0) and all(type(part) is float for part in found) and check('key', (), drops) == ()
    for wrong in ((0.5, 0.0), (1.5,), ('a',), (True,), (None,), 0.5, '(0.5,)', {0.5}):
        refused(wrong, drops)


def test_a_range_is_told_in_words():
    assert FRACTION.range == 'a number above 0, at most 1'
    assert COUNT.range == 'an integer from 1 to 10'
    assert Setting(0.1, '', low=0).range == 'a number 0 or more'
    assert Setting(0.9, '', low=0, below=1).range == 'a number 0 or more below 1'
    assert Setting(1, '', low=1, high=1_000_000).range == 'an integer from 1 to 1,000,000'
    assert Setting(False, '').range == 'True or False' and Setting('', '').range == 'text'


# ------------------------------------------------------------------------------------------------------- in dataclasses


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float = setting(0.5, 'a share', above=0, high=1)

    def __post_init__(self) -> None:
        validate(self, 'inner.')


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = setting(3, 'a count', low=1)
    inner: Inner = dataclasses.field(default_factory=Inner)
    free: object = None

    def __post_init__(self) -> None:
        nested(self, 'inner', Inner)
        validate(self)


def test_a_dataclass_stores_values_in_the_settings_own_types():
    assert type(Inner(share=1).share) is float
    assert Outer(inner={'share': 1}).inner == Inner(1.0)
    with pytest.raises(ValueError, match=r'inner.share is 0.0; use a number above 0, at most 1'):
        Outer(inner={'share': 0.0})
    with pytest.raises(ValueError, match='unknown setting inner.shares; known: share'):
        Outer(inner={'shares': 0.5})
    with pytest.raises(ValueError, match='inner is 0.5; use Inner'):
        Outer(inner=0.5)


def test_settings_are_listed_by_their_dotted_keys():
    found = dict(settings_of(Outer))
    assert list(found) == ['count', 'inner.share'] and found['inner.share'].meaning == 'a share'
    assert next(settings_of(Outer, 'part.'))[0] == 'part.count'


SECTIONS = (Optim, Augment, Checkpoint, Recipe, Weights)


@pytest.mark.parametrize('cls', SECTIONS)
def test_every_shipped_setting_has_a_meaning_and_a_default_inside_its_range(cls):
    found = list(settings_of(cls))
    assert found
    for key, declared in found:
        assert declared.meaning and declared.range, key
        assert check(key, declared.default, declared) == declared.default, key
        if declared.type in (int, float):
            assert declared.low is not None or declared.above is not None, f'{key} has no lower bound'


SHIPPED = [(cls, field.name) for cls in SECTIONS for field in dataclasses.fields(cls) if 'setting' in field.metadata]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 0.5, 2**20, 10**400, -0.0]))
VALUES = st.one_of(NUMBERS, st.booleans(), st.text(max_size=8), st.none(), st.lists(NUMBERS, max_size=3).map(tuple))


@given(st.sampled_from(SHIPPED), VALUES)
def test_a_value_is_inside_the_range_or_refused_in_one_line(where, value):
    """Of every shipped setting: what is accepted has its type and lies inside its bounds."""
    cls, name = where
    declared = next(field for field in dataclasses.fields(cls) if field.name == name).metadata['setting']
    try:
        found = getattr(cls(**{name: value}), name)
    except ValueError as error:
        assert name in str(error) and '\n' not in str(error)
        return
    assert type(found) is declared.type
    for part in found if isinstance(found, tuple) else (found,):
        if isinstance(part, str):
            assert not declared.choices or part in declared.choices
            continue
        assert math.isfinite(part)
        assert declared.low is None or part >= declared.low
        assert declared.high is None or part <= declared.high
        assert declared.above is None or part > declared.above
        assert declared.below is None or part < declared.below
    if not isinstance(value, tuple):
        assert found == value


def test_a_setting_takes_no_unknown_bound():
    with pytest.raises(TypeError):
        settings.setting(1, 'a count', lowest=0)


# ------------------------------------------------------------------------------------------------ keywords of a make


@ranges(ratio={'above': 0, 'high': 1}, mode={'choices': ('', 'a')})
def make(*, ratio: float = 0.5, stages: int = 6, mode: str = '') -> tuple[float, int, str]:
    """A make like those of methods and policies."""
    return ratio, stages, mode


def test_keywords_in_their_ranges_come_in_the_type_of_the_default():
    assert make() == (0.5, 6, '')
    ratio, stages, mode = make(ratio=1, stages=2, mode='a')
    assert (ratio, stages, mode) == (1.0, 2, 'a') and isinstance(ratio, float)
    assert make.settings['ratio'].range == 'a number above 0, at most 1'


@pytest.mark.parametrize(
    ('keywords', 'message'),
    [
        ({'ratio': 0}, 'ratio is 0; use a number above 0, at most 1'),
        ({'ratio': float('nan')}, 'ratio is nan'),
        ({'ratio': True}, 'ratio is True'),
        ({'stages': 2.0}, 'stages is 2.0; use an integer'),
        ({'mode': 'b'}, "mode is 'b'; use one of '', a"),
    ],
)
def test_keywords_outside_their_ranges_are_refused(keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**keywords)


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match='ratios'):
        make(ratios=1)


@pytest.mark.parametrize('package', [methods, policies])
def test_no_keyword_of_a_method_or_policy_takes_what_is_no_number(package):
    for name in package.names():
        module = package.get(name)
        for keyword, default in plugins.hyper_parameters(module).items():
            if isinstance(default, int | float) and not isinstance(default, bool):
                for value in (float('nan'), float('inf'), -1, True, 'three', None):
                    with pytest.raises(ValueError, match=f'^{keyword} is '):
                        module.make(**{keyword: value})
