"""From text to runs: the config grammar, `FILE:[quicktest,][TEACHER-STUDENT,][method=M,][policy=P,]key=value,...`.

A config file is data and ends with a call of `build`:

    from kcd_jax.experiments import config as grammar

    def get_config(arg=None):
        config = grammar.base()
        config.epochs = 120
        return grammar.build(config, arg, method='kd', policy='kcd')

`load` reads 'FILE:words', `override` applies `--config.KEY=VALUE`, and `run_of` turns the result into a `Run`. An
unknown word is an error that lists the known ones; an ambiguous word is an error that lists the possible keys.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

import kcd_jax
from kcd_jax import data, methods, networks, paths, plugins, policies
from kcd_jax.experiments import schema, words
from kcd_jax.experiments.pairs import PAIRS, lr_for
from kcd_jax.runtime import sharding
from kcd_jax.teachers.sources import teacher_of
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import unlabelled
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run


def base() -> ConfigDict:
    """The papers' CIFAR-100 recipe (240 epochs, batch 64, SGD 0.9, decay 5e-4, x0.1 at 150/180/210), one run."""
    # `pair`: settings of methods for these two networks, from pairs.py; filled in by `build`.
    parts = {'compare': (), 'variants': {}, 'pair': {'methods': {}, 'weights': {}}}
    return ConfigDict({**schema.defaults(), **parts})


# ------------------------------------------------------------------------------------------------------------- reading


def shipped() -> pathlib.Path:
    """The folder of the shipped configs: inside the installed package, or next to it in a checkout."""
    package = pathlib.Path(kcd_jax.__file__).resolve().parent
    inside = package / 'configs'
    return inside if inside.is_dir() else package.parent / 'configs'


def find_file(file: str) -> pathlib.Path:
    """The file of a path, or of the bare name of a shipped config, as digits_kd.

    Raises:
      ValueError: there is none; one line.
    """
    where = paths.expand(file)
    if where.is_file():
        return where
    known = sorted(path.stem for path in shipped().glob('*.py'))
    if file in known:
        return shipped() / f'{file}.py'
    raise ValueError(f'there is no config file {file}; the shipped ones, by their names: {", ".join(known)}')


def load(path: str) -> ConfigDict:
    """The config of 'FILE[:words]'; FILE is a path or the bare name of a shipped config.

    Raises:
      ValueError: there is no such file, it is not a config file, or a word is unknown; one line.

    >>> load('digits_kd:policy=kcd,ratio=0.5').policy.ratio
    0.5
    """
    file, _, words = path.partition(':')
    get_config = getattr(import_file(find_file(file)), 'get_config', None)
    if not callable(get_config):
        raise ValueError(f'config file {file} defines no get_config(arg); see configs/digits_kd.py')
    try:
        config = get_config(words or None)
    except (ValueError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f'config file {file}: {_reason(error)}') from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f'get_config of {file} returns a {type(config).__name__}; use kcd_jax.experiments.config.build'
        )
    return config


def import_file(file: pathlib.Path) -> Any:
    """The module of a config file or a sweep file; ValueError if it cannot be imported."""
    _name_configs(file.resolve().parent)
    loader = importlib.machinery.SourceFileLoader('config_file', str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('config_file', loader))
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f'{file} is not a Python file: line {error.lineno}: {error.msg}') from error
    except (Exception, SystemExit) as error:
        raise ValueError(f'{file} cannot be imported: {_reason(error)}') from error
    return module


def _name_configs(folder: pathlib.Path) -> None:
    """Lets config files import those next to them, and the shipped ones, as configs.NAME."""
    package = sys.modules.setdefault('configs', types.ModuleType('configs'))
    package.__path__ = list(dict.fromkeys([str(folder), str(shipped())]))


def _reason(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def override(config: ConfigDict, settings: Iterable[tuple[str, str]]) -> ConfigDict:
    """Applies the (KEY, VALUE) pairs of `--config.KEY=VALUE`, in place.

    Raises:
      ValueError: an unknown key, a value of another type, or a key that only the words after the file can set.
    """
    for key, text in settings:
        if key in ('method', 'method.name', 'policy', 'policy.name'):
            kind = key.partition('.')[0]
            raise ValueError(f'--config.{key}: a {kind} is chosen in the words, --config=FILE:{kind}={text}')
        words.set_key(config, key, text)
    return config


# ------------------------------------------------------------------------------------------------------------- grammar


def build(
    config: ConfigDict,
    arg: str | None,
    *,
    method: str = 'kd',
    policy: str = 'none',
    keywords: Mapping[str, Mapping[str, Any]] | None = None,
    quicktest: Mapping[str, Any] | None = None,
    lr: Callable[[str], float] = lr_for,
) -> ConfigDict:
    """The config of a file for the words after its colon.

    The file's `policy` is used if the words name neither a method nor a policy, and its `method` if they name no
    method. With a method but no policy in the words, the policy is none.

    Args:
      config: the file's own settings.
      arg: the words, or None.
      method: default of the file.
      policy: default of the file.
      keywords: {policy: its keywords that the file sets}.
      quicktest: {dotted key: value} that shrink a run to under 30 s on two cores, without skipping a code path.
      lr: (name of a network) -> initial learning rate.

    Raises:
      ValueError: a word or key is unknown or ambiguous; the message lists the choices.
    """
    pair, settings, quick = '', {}, False
    for word in words.split_words(arg or ''):
        key, equals, text = word.partition('=')
        if word == 'quicktest':
            quick = True
        elif equals:
            if not text.strip() and key.strip() in ('method', 'policy', 'dataset'):
                raise ValueError(f'config word {word!r} has no value; write {key.strip()}=NAME')
            settings[key.strip()] = text.strip()
        elif _is_pair(word):
            pair = word
        elif word in networks.names():
            config.student.name, config.optim.lr = word, lr(word)
        elif '-' in word:
            for name in word.split('-', 1):
                if name not in networks.names():
                    raise ValueError(plugins.unknown('network', name, networks.names()))
        else:
            known = ['quicktest', 'TEACHER-STUDENT', 'key=value', *networks.names()]
            raise ValueError(plugins.unknown('config word', word, known))
    if pair:
        config.teacher.name, _, config.student.name = pair.partition('-')
        config.optim.lr, config.teacher.lr = lr(config.student.name), lr(config.teacher.name)

    known_pair = PAIRS.get(f'{config.teacher.name}-{config.student.name}', {})
    config.pair = ConfigDict({key: dict(known_pair.get(key, {})) for key in ('methods', 'weights')})
    named_method, named_policy = settings.pop('method', ''), settings.pop('policy', '')
    method = named_method or method
    policy = named_policy or ('none' if named_method else policy)
    # A method that uses the weights of another one must know it before words about weights are applied.
    whose = getattr(methods.get(method), 'WEIGHTS_OF', '')
    named = [settings[key] for key in (whose, f'method.{whose}') if key in settings]
    choose(
        config, 'method', method, **{**config.pair['methods'].get(method, {}), **({whose: named[-1]} if named else {})}
    )
    choose(config, 'policy', policy, **(keywords or {}).get(policy, {}))
    if named_method or named_policy:
        config.compare, config.trials = (), 1
    if quick:
        for key, value in (quicktest or {}).items():
            section, _, last = key.partition('.')
            if section != 'policy' or last in config.policy:
                words.set_key(config, key, value)
    for key, value in settings.items():
        words.set_key(config, words.place(config, key), value)
    return config


def choose(config: ConfigDict, kind: str, name: str, **values: Any) -> None:
    """Sets config.method or config.policy to a name and all its keywords, with their defaults unless given."""
    known = plugins.hyper_parameters(schema.module_of(kind, name))
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(plugins.unknown(f'keyword of {kind} {name}', unknown[0], sorted(known)))
    config[kind] = ConfigDict({'name': name, **known, **values})
    if kind == 'method':
        config.weights = ConfigDict(methods.weights(config.method, config.pair['weights'].to_dict()))


def _is_pair(word: str) -> bool:
    teacher, dash, student = word.partition('-')
    return bool(dash) and teacher in networks.names() and student in networks.names()


# ------------------------------------------------------------------------------------------------------- compared runs


def alone(config: ConfigDict) -> ConfigDict:
    """The config of one run, without the keys of a comparison."""
    result = config.copy_and_resolve_references()
    with result.unlocked():
        result.compare, result.trials, result.variants = (), 1, ConfigDict()
    return result


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one compared run.

    'student' has neither method nor policy; 'kd' is the config's method without a policy; another method is that method
    without a policy; a policy is the config's method with that policy. A policy takes the keywords that it shares with
    `config.policy` (ratio, stages, ...), so that the compared runs have equal sizes at every stage.

    A name in `config.variants` is one of these runs with parts of the config changed:
    {'crd+kd': {'run': 'crd', 'weights': {'alpha': 1.0}}}.

    Raises:
      ValueError: no run has this name, or a variant has a key that its run does not have.
    """
    own = config.variants.to_dict()
    if name not in own:
        return _compared(config, name, sorted({*_runs(), *own}))
    parts = dict(own[name])
    result = _compared(config, parts.pop('run', 'kd'), _runs())
    whose = getattr(methods.get(result.method.name), 'WEIGHTS_OF', '')
    if whose in parts.get('method', {}):
        section = {**result.method.to_dict(), **parts['method']}
        parts['weights'] = {**methods.weights(section, config.pair.to_dict()['weights']), **parts.get('weights', {})}
    try:
        result.lock().update(parts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'variant {name!r}: {error.args[0]}') from error
    return result


def _runs() -> list[str]:
    return sorted({'student', *methods.names(), *policies.names()})


def _compared(config: ConfigDict, name: str, known: list[str]) -> ConfigDict:
    if name not in _runs():
        raise ValueError(plugins.unknown('run in compare', name, known))
    result = alone(config)
    with result.unlocked():
        if name in ('student', *methods.names()):
            choose(result, 'policy', 'none')
        elif name != config.policy.name:
            shared = plugins.hyper_parameters(policies.get(name)).keys() & config.policy.keys()
            choose(result, 'policy', name, **{key: config.policy[key] for key in shared})
        method = 'none' if name == 'student' else name
        if method in methods.names() and method != 'kd':
            choose(result, 'method', method, **config.pair.to_dict()['methods'].get(method, {}))
        if name == 'student':
            result.logits = 'plain'
    return result


# ---------------------------------------------------------------------------------------------------------------- runs


def load_data(config: ConfigDict, num_points: int | None = None) -> data.Dataset:
    """The data set of a config, cached so that the runs of an experiment share it.

    Args:
      config: of one run.
      num_points: instead of the config's own, for the teacher.
    """
    section = config.data
    loading = data.Loading(data.STREAM[section.stream], sharding.device_memory(), tuple(config.augment.area))
    points = section.num_points if num_points is None else num_points
    return _load(section.name, section.dir or None, section.validation, section.seed, points, loading)


@functools.lru_cache(maxsize=4)
def _load(
    name: str, folder: str | None, validation: float, seed: int, num_points: int, loading: data.Loading
) -> data.Dataset:
    return data.load(name, folder, validation=validation, seed=seed, num_points=num_points, loading=loading)


@functools.lru_cache(maxsize=64)
def _shapes(name: str, validation: float, seed: int, num_points: int) -> data.Dataset:
    return data.shapes_of(name, validation=validation, seed=seed, num_points=num_points)


def shapes(config: ConfigDict, num_points: int | None = None) -> data.Dataset:
    """`load_data` without pixels: counts, classes and image sizes only."""
    section = config.data
    points = section.num_points if num_points is None else num_points
    return _shapes(section.name, section.validation, section.seed, points)


Loader = Callable[..., data.Dataset]


def recipe_of(config: ConfigDict) -> Recipe:
    """The recipe of a config."""
    parts = {field.name: config[field.name] for field in dataclasses.fields(Recipe) if field.name != 'workers'}
    parts = {key: value.to_dict() if isinstance(value, ConfigDict) else value for key, value in parts.items()}
    return Recipe(**parts, workers=config.data.workers)


def run_of(config: ConfigDict, load: Loader = load_data, *, teacher_optim: Mapping[str, Any] | None = None) -> Run:
    """The run that a config describes.

    Args:
      config: of one run, without `compare` and `trials`, which `experiment.of_config` handles.
      load: how the data is loaded; `shapes` reads no data and is enough for costs.
      teacher_optim: optimiser of a teacher that is trained first, except its lr; None: the student's.

    Raises:
      ValueError: a value is out of range, a file is missing, a name is unknown, or there are several runs; one line.
    """
    schema.check_config(config.to_dict())
    if config.compare or config.trials > 1:
        what = f'compares {", ".join(map(str, config.compare))}' if config.compare else f'has {config.trials} trials'
        raise ValueError(f'the config {what}; name one run, e.g. FILE:method=kd,policy=none, or use the command train')
    recipe, dataset = recipe_of(config), load(config)
    method, policy = (_made(config[kind], kind) for kind in ('method', 'policy'))
    weights = config.weights.to_dict()
    if not dataset.labelled and weights['gamma'] == _own_gamma(config):
        del weights['gamma']  # the method's default, not the user's choice: the run sets it to 0
    if method.phases is None and not any(weights.get(part) for part in ('gamma', 'alpha', 'beta')):
        raise ValueError('weights.gamma, weights.alpha and weights.beta are all 0: nothing would be trained')
    teacher: Teacher | Run | None = None
    if method.needs or policy.needs or policy.teacher_scores or config.weights.alpha > 0:
        teacher = _teacher(config, recipe, dataset, load, teacher_optim)
    return Run(
        student=config.student.name,
        data=dataset,
        teacher=teacher,
        method=method,
        policy=policy,
        weights=weights,
        recipe=recipe,
        seed=config.seed,
    )


def _own_gamma(config: ConfigDict) -> float:
    """gamma of the config's method where nobody sets it."""
    return methods.weights(config.method, config.pair['weights'].to_dict())['gamma']


def needs_labels(config: ConfigDict, load: Loader = load_data) -> str:
    """Why a run cannot be trained on its data, in words: it reads labels that the data does not have; else ''."""
    dataset = load(config)
    what = unlabelled.lacking(_made(config.method, 'method'), _made(config.policy, 'policy'))
    return f'{what}, and {dataset.name} has none' if what and not dataset.labelled else ''


def _made(section: ConfigDict, kind: str) -> Any:
    keywords = {key: value for key, value in section.items() if key != 'name'}
    return schema.module_of(kind, section.name).make(**keywords)


def _teacher(
    config: ConfigDict, recipe: Recipe, dataset: data.Dataset, load: Loader, optim: Mapping[str, Any] | None
) -> Teacher | Run:
    """The teacher from its file, or the run that trains it: the student's plain recipe, with the teacher's settings."""
    section = config.teacher
    if section.checkpoint:
        return teacher_of(
            section.checkpoint,
            section.name,
            num_classes=dataset.num_classes or None,
            image_shape=dataset.image_shape,
            normalization=section.normalization or None,
            dtype=recipe.dtype,
        )
    optim = {**(dataclasses.asdict(recipe.optim) if optim is None else optim), 'lr': section.lr}
    return Run(
        student=section.name,
        data=load(config, section.num_points),
        method=methods.get('none').make(),
        policy=policies.get('none').make(),
        recipe=recipe.plain().replace(
            epochs=section.epochs,
            batch=section.batch,
            optim=optim,
            survey=False,
        ),
        seed=section.seed,
        name='teacher',
    )
