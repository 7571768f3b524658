"""The config grammar and the base recipes: `FILE:[quicktest,][TEACHER-STUDENT,][method=M,][policy=P,]key=value,...`.

A config file holds an experiment as data and calls `build`. Keys that are words of a method or a policy go there, as
`ratio=0.3`; dotted keys reach anything, as `optim.lr=0.01`. An unknown word is an error that names the known ones.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import pairs
from kcd_jax import methods, networks, plugins, policies


def base() -> ConfigDict:
    """The papers' CIFAR-100 recipe (240 epochs, batch 64, SGD 0.9, decay 5e-4, x0.1 at 150/180/210)."""
    return ConfigDict(
        {
            'seed': 0,
            'trials': 1,
            'compare': (),  # names of runs: student, kd, another method, a policy, a variant; empty: just this run
            'variants': {},  # {name: {'run': one of these, and parts of the config that it has otherwise}}
            'reference': 'kd',  # the run that the table compares the others with
            # validation: a fraction of the training points, drawn by data.seed, evaluated instead of the test points;
            # num_points: train on the first so many of a fixed permutation (0: all).
            # stream: read points by index while training, 'true' or 'false'; 'auto': when they do not fit in memory;
            # workers: processes that read them (0: threads, one a core).
            'data': {
                'name': 'cifar100',
                'dir': '',
                'validation': 0.0,
                'seed': 0,
                'num_points': 0,
                'stream': 'auto',
                'workers': 0,
            },
            # crop: pixels of padding of a random crop; area: bounds of a random resized crop's share, (0.08, 1.0) for
            # ImageNet; () for none.
            'augment': {'crop': 4, 'flip': True, 'area': ()},
            'student': {'name': 'wrn_16_2'},
            # What configs/pairs.py says of the methods for these two networks.
            'pair': {'methods': {}, 'weights': {}},
            'teacher': {
                'name': 'wrn_40_2',
                'checkpoint': '',  # .safetensors, .pth or a run's folder; empty: it is trained first
                'normalization': '',  # of a .pth file, by name; empty: what its network's public ones have
                'epochs': 240,
                'batch': 64,
                'lr': 0.05,
                'num_points': 0,  # 0: all training points, whatever the student gets
                'seed': 1000,
            },
            'optim': {
                'lr': 0.05,
                'momentum': 0.9,
                'weight_decay': 5e-4,
                'nesterov': False,
                'drops': (0.625, 0.75, 0.875),
                'factor': 0.1,
            },  # drops: fractions of the epochs
            'epochs': 240,
            'batch': 64,
            'logits': 'plain',  # or 'standardised', for the KD term
            'dtype': 'float32',  # or 'bfloat16' for the compute; entropy and table stay float32
            'deterministic': False,
            'chunk': 0,  # steps a program; 0: 1 on the CPU, 100 elsewhere
            'eval_every': 1,
            'eval_batch': 500,
            'survey': True,  # at the end, one look of both networks at every training point, for the figures
            'checkpoint': {'seconds': 60.0, 'keep': 2},
        }
    )


def choose(config: ConfigDict, kind: str, name: str, **values: Any) -> None:
    """Sets config.method or config.policy to a file's name and all its keywords with their defaults."""
    module = (methods if kind == 'method' else policies).get(name)
    keywords = plugins.hyper_parameters(module)
    unknown = sorted(set(values) - set(keywords))
    if unknown:
        raise ValueError(plugins.unknown(f'keyword of {kind} {name}', unknown[0], sorted(keywords)))
    config[kind] = ConfigDict({'name': name, **keywords, **values})
    if kind == 'method':
        config.weights = ConfigDict(methods.weights(config.method, config.pair['weights'].to_dict()))


def apply_pair(config: ConfigDict, pair: str, lr: Callable[[str], float]) -> None:
    """Sets the two networks and what depends on their families: the learning rates."""
    teacher, _, student = pair.partition('-')
    config.teacher.name, config.student.name = teacher, student
    config.optim.lr, config.teacher.lr = lr(student), lr(teacher)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_pair(word: str) -> bool:
    teacher, dash, student = word.partition('-')
    return bool(dash) and teacher in networks.names() and student in networks.names()


def build(
    config: ConfigDict,
    arg: str | None,
    *,
    method: str = 'kd',
    policy: str = 'kcd',
    keywords: dict[str, dict] | None = None,
    quicktest: dict | None = None,
    lr: Callable[[str], float] = pairs.lr_for,
) -> ConfigDict:
    """The config of a file for the words after its colon.

    Args:
      config: the file's own settings. arg: the words, or None.
      method, policy: the file's defaults.
      keywords: {policy: those of its keywords that the file's recipe sets}.
      lr: initial learning rate of a network, by its name.
      quicktest: {dotted key: value} that shrink it to under 30 s a run on two cores, every code path kept.

    Raises:
      ValueError: an unknown word or key, naming the known ones.
    """
    words = split_words(arg or '')
    pair, settings, quick = None, {}, False
    for word in words:
        key, equals, text = word.partition('=')
        if word == 'quicktest':
            quick = True
        elif equals:
            settings[key] = _value(text)
        elif _is_pair(word):
            pair = word
        elif word in networks.names():
            config.student.name, config.optim.lr = word, lr(word)
        elif '-' in word:
            for name in word.split('-', 1):
                if name not in networks.names():
                    raise ValueError(plugins.unknown('network', name, networks.names()))
        else:
            raise ValueError(
                plugins.unknown('config word', word, ['quicktest', 'TEACHER-STUDENT', 'key=value', *networks.names()])
            )
    if pair:
        apply_pair(config, pair, lr)

    known = pairs.PAIRS.get(f'{config.teacher.name}-{config.student.name}', {})
    config.pair = ConfigDict({key: dict(known.get(key, {})) for key in ('methods', 'weights')})
    named = {'method', 'policy'} & set(settings)
    method, policy = settings.pop('method', method), settings.pop('policy', policy)
    # A method that takes another one's weights has to know it before words about weights are read.
    whose = getattr(methods.get(method), 'WEIGHTS_OF', '')
    named_other = [settings[key] for key in (whose, f'method.{whose}') if key in settings]
    other = {whose: named_other[-1]} if named_other else {}
    choose(config, 'method', method, **{**config.pair['methods'].get(method, {}), **other})
    choose(config, 'policy', policy, **(keywords or {}).get(policy, {}))
    if named:
        config.compare, config.trials = (), 1
    if quick:
        for key, value in (quicktest or {}).items():
            section, _, last = key.partition('.')
            if section != 'policy' or last in config.policy:
                _set(config, key, value)
    for key, value in settings.items():
        _set(config, _place(config, key), value)
    return config


def split_words(arg: str) -> list[str]:
    """Splits at the commas outside brackets, so that `compare=(kd,kcd)` and `drops=(0.6,0.75)` are one word."""
    words, depth, word = [], 0, ''
    for char in arg:
        depth += char in '([{'
        depth -= char in ')]}'
        if char == ',' and depth == 0:
            words.append(word.strip())
            word = ''
        else:
            word += char
    return [w for w in (*words, word.strip()) if w]


def _place(config: ConfigDict, key: str) -> str:
    """The dotted place of a key: itself, or where its last word stands in the policy, the method, the weights, ..."""
    if key == 'dataset':
        return 'data.name'
    if '.' in key or (key in config and not isinstance(config[key], ConfigDict)):
        return key
    for section in ('policy', 'method', 'weights', 'optim', 'data', 'teacher'):
        if key in config[section] and key != 'name':
            return f'{section}.{key}'
    known = sorted({*config, *config.policy, *config.method, *config.weights, *config.optim, *config.data} - {'name'})
    raise ValueError(plugins.unknown('config key', key, known))


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *path, last = key.split('.')
    node = config
    for depth, part in enumerate((*path, last)):
        if not isinstance(node, ConfigDict) or part not in node:
            known = sorted(node) if isinstance(node, ConfigDict) else []
            raise ValueError(plugins.unknown('config key', '.'.join((*path, last)[: depth + 1]), known))
        if depth < len(path):
            node = node[part]
    if isinstance(node[last], tuple) and isinstance(value, str):
        value = tuple(word.strip() for word in value.strip('()[]').split(',') if word.strip())
    if isinstance(node[last], str) and isinstance(value, bool):
        value = str(value).lower()  # data.stream=True
    try:
        node[last] = tuple(value) if isinstance(value, list) else value
    except (TypeError, ValueError) as error:
        raise ValueError(f'config key {key!r} takes a {type(node[last]).__name__}, not {value!r}') from error
