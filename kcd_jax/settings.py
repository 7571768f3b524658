"""Settings with their ranges: dataclass fields that know what values they take and say so in one line.

A field made by `setting` carries its meaning and its range. `validate` checks every such field of an object; the
command line's help and the configuration reference are made from the same fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a value may be.

    Attributes:
      default: the default; its type is the type of the setting (an int is also a valid float, a bool never a number).
      meaning: one line for the reference page.
      low: smallest value, inclusive.
      high: largest value, inclusive.
      above: exclusive lower bound.
      below: exclusive upper bound.
      choices: the values of a setting that is a choice.
    """

    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()

    @property
    def type(self) -> type:
        """The type of the values."""
        return type(self.default)

    @property
    def range(self) -> str:
        """The values it takes, in words: 'a number above 0', 'an integer from 1 to 100', 'one of a, b'."""
        if self.choices:
            return 'one of ' + ', '.join(str(choice) or "''" for choice in self.choices)
        kind = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'text', tuple: 'a tuple of numbers'}
        bounds = []
        if self.low is not None:
            bounds.append(f'from {_number(self.low)}' if self.high is not None else f'{_number(self.low)} or more')
        if self.above is not None:
            bounds.append(f'above {_number(self.above)}{"," if self.high is not None else ""}')
        if self.high is not None:
            bounds.append(f'to {_number(self.high)}' if self.low is not None else f'at most {_number(self.high)}')
        if self.below is not None:
            bounds.append(f'below {_number(self.below)}')
        return ' '.join([kind.get(self.type, self.type.__name__), *bounds])


def setting(default: Any, meaning: str, **bounds: Any) -> Any:
    """A dataclass field with a range; `bounds` are the further fields of `Setting`."""
    return dataclasses.field(default=default, metadata={'setting': Setting(default, meaning, **bounds)})


def settings_of(cls: Any, prefix: str = '') -> Iterator[tuple[str, Setting]]:
    """(dotted key, setting) of every field made by `setting`, nested dataclasses included, in order."""
    for field in dataclasses.fields(cls):
        if 'setting' in field.metadata:
            yield f'{prefix}{field.name}', field.metadata['setting']
        elif field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory):
            yield from settings_of(field.default_factory, f'{prefix}{field.name}.')


def check(key: str, value: Any, setting: Setting) -> Any:
    """The value in the setting's own type.

    Args:
      key: the dotted name of the setting, for the message.
      value: what was given.
      setting: what it may be.

    Raises:
      ValueError: another type, not finite, or outside the range: the key, the value and the range in one line.
    """
    refused = ValueError(f'{key} is {shown(value)}; use {setting.range}')
    if setting.type is tuple:
        if isinstance(value, list):
            value = tuple(value)
        if not isinstance(value, tuple) or not all(_is_number(x) and _inside(x, setting) for x in value):
            raise refused
        return tuple(float(x) for x in value)
    if setting.type is float and _is_number(value) and _inside(value, setting):
        value = float(value)
    if type(value) is not setting.type:
        raise refused
    if setting.choices:
        if value not in setting.choices:
            raise refused
    elif setting.type in (int, float) and not _inside(value, setting):
        raise refused
    return value


def ranges(**bounds: Mapping[str, Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorates the `make` of a method or a policy: each keyword is checked before `make` runs.

    A keyword takes finite values of its default's type. The command line's help reads the same ranges.

        @ranges(ratio={'above': 0, 'high': 1})
        def make(*, ratio: float = 0.7, stages: int = 6) -> Policy:

    Args:
      **bounds: {keyword: fields of `Setting` (low, high, above, below, choices)}; not every keyword needs one.

    Raises:
      ValueError: (from the decorated function) the keyword, its value and its range.
    """

    def decorate(make: Callable[..., T]) -> Callable[..., T]:
        parameters = inspect.signature(make).parameters.values()
        declared = {p.name: Setting(p.default, '', **bounds.get(p.name, {})) for p in parameters}

        @functools.wraps(make)
        def checked(**keywords: Any) -> T:
            return make(
                **{
                    key: check(key, value, declared[key]) if key in declared else value
                    for key, value in keywords.items()
                }
            )

        checked.settings = declared
        return checked

    return decorate


def validate(instance: Any, prefix: str = '') -> None:
    """Checks every field of a frozen dataclass that `setting` made, and stores it in the setting's own type.

    Args:
      instance: the dataclass, still in its `__post_init__`.
      prefix: what precedes the field's name in its dotted key, e.g. 'optim.'.

    Raises:
      ValueError: the first value outside its range.
    """
    for field in dataclasses.fields(instance):
        if 'setting' in field.metadata:
            value = check(f'{prefix}{field.name}', getattr(instance, field.name), field.metadata['setting'])
            object.__setattr__(instance, field.name, value)


def nested(instance: Any, name: str, cls: type) -> None:
    """Turns a mapping given for a nested dataclass into one; ValueError for an unknown key."""
    value = getattr(instance, name)
    if isinstance(value, cls):
        return
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} is {shown(value)}; use {cls.__name__}(...) or a mapping of its fields')
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f'unknown setting {name}.{unknown[0]}; known: {", ".join(known)}')
    object.__setattr__(instance, name, cls(**value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(value: float, setting: Setting) -> bool:
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        finite = False
    return (
        finite
        and (setting.low is None or value >= setting.low)
        and (setting.high is None or value <= setting.high)
        and (setting.above is None or value > setting.above)
        and (setting.below is None or value < setting.below)
    )


def shown(value: Any) -> str:
    """The value as Python writes it, a long one by its two ends."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f'too long to write ({type(value).__name__})'
    return text if len(text) <= 100 else f'{text[:30]}...{text[-30:]}'


def _number(value: float) -> str:
    return f'{value:,}' if isinstance(value, int) else f'{value:g}'
