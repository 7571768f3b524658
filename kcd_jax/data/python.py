"""Data in Python: `python:MODULE:FUNCTION` is what FUNCTION() of the user's MODULE returns.

That is a pair (train, test) of objects with `__len__` and `__getitem__(i) -> {'image', 'label'}`, or a `Dataset`, as
`kcd_jax.data.from_arrays` and `from_objects` build them.
"""

from __future__ import annotations

import importlib

from kcd_jax.data._arrays import from_objects
from kcd_jax.data._dataset import Dataset, Request

OPTIONS = 'MODULE:FUNCTION'


def load(request: Request) -> Dataset:
    """What the function returns.

    Raises:
      ValueError: no such module or function, or it raises, or it returns something else.
    """
    name = request.name
    module, _, function = request.option.partition(':')
    if not module or not function:
        raise ValueError(f'data set {name!r} is not understood; use python:{OPTIONS}')
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{name}: {error}; is the folder of {module} in PYTHONPATH?') from error
    except Exception as error:  # whatever a user's module raises
        raise _of_user(name, error) from error
    try:
        made = make()
        if isinstance(made, Dataset):
            return made
        if not isinstance(made, tuple) or len(made) != 2:
            raise ValueError(f'{name} returned a {type(made).__name__}; return (train, test), or a Dataset')
        return from_objects(*made, name=name, loading=request.loading)
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a user's function or objects raise
        raise _of_user(name, error) from error


def _of_user(name: str, error: Exception) -> ValueError:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    return ValueError(f'{name} raised {reason}; KCD_JAX_TRACEBACK=1 shows where')
