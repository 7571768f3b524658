"""kcd_jax: knowledge distillation in JAX and Flax that spends its compute on the points that still teach.

    import kcd_jax

    digits = kcd_jax.data.load('digits')
    teacher = kcd_jax.Run(student='resnet14', data=digits, recipe=kcd_jax.Recipe(epochs=20, batch=32), seed=1000)
    run = kcd_jax.Run(student='resnet8', teacher=teacher, data=digits, policy=kcd_jax.policies.get('kcd').make())
    run.check()                        # what it will cost; ValueError for what cannot work
    result = run.train('runs/mine')    # or resumes
    model = kcd_jax.load('runs/mine')

Everything is imported when it is first used.
"""

from __future__ import annotations

import importlib as _importlib
from typing import Any as _Any

__version__ = '0.1.0'

_MODULES = ('data', 'export', 'knowledge', 'methods', 'networks', 'policies', 'teachers')
_OBJECTS = {
    'Condenser': 'knowledge',
    'Model': 'teachers.model',
    'Recipe': 'training.recipe',
    'Run': 'training.run',
    'Teacher': 'teachers.teacher',
    'check_plugin': 'checks',
    'load': 'teachers.model',
}
__all__ = ['__version__', *_MODULES, *_OBJECTS]


def __getattr__(name: str) -> _Any:
    if name in _MODULES:
        return _importlib.import_module(f'{__name__}.{name}')
    if name in _OBJECTS:
        return getattr(_importlib.import_module(f'{__name__}.{_OBJECTS[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith('__')} | {*__all__})
