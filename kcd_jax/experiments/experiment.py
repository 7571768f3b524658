"""The runs that `config.compare` names x trials, each a `train.train` in its own folder; finished ones are reused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib
import shlex
import sys
from typing import Any

from ml_collections import ConfigDict

from kcd_jax import methods, plugins, policies
from kcd_jax.data import Dataset
from kcd_jax.runtime import console, distributed, environment, files, runlog, sharding
from kcd_jax.training.train import Result, check_run, load_data, run_name, train


def load_config(path: str) -> ConfigDict:
    """The config of 'FILE[:words]', as the command line's --config reads it (for notebooks and tests).

    Raises:
      ValueError: there is no such file, or an unknown word in it.

    >>> load_config('configs/digits_kd.py:policy=kcd,ratio=0.5').policy.ratio
    0.5
    """
    file, _, words = path.partition(':')
    if not pathlib.Path(file).is_file():
        raise ValueError(f'there is no config file {file}; the shipped ones are in configs/')
    add_config_root(file)
    spec = importlib.util.spec_from_file_location('config_file', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(words or None)


# What only an experiment of several runs has: it is no part of a run's own config.
_TOGETHER = ('variants', 'reference')


def add_config_root(file: str) -> None:
    """Makes the folder above a config file importable: config files import `configs.common`."""
    root = str(pathlib.Path(file).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)


def identity(config: ConfigDict) -> str:
    """Eight hex digits of the resolved config; the number of trials and what is compared do not count."""
    content = {key: value for key, value in config.to_dict().items() if key not in ('trials', 'compare', *_TOGETHER)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def default_workdir(config_path: str, config: ConfigDict) -> pathlib.Path:
    """runs/<config file>-<hash>: the same command finds its run again."""
    return pathlib.Path('runs') / f'{pathlib.Path(config_path.partition(":")[0]).stem}-{identity(config)}'


def alone(config: ConfigDict) -> ConfigDict:
    """`config` as that of one run: without what only an experiment has."""
    result = config.copy_and_resolve_references()
    with result.unlocked():
        result.compare, result.trials = (), 1
        for key in _TOGETHER:
            if key in result:
                del result[key]
    return result


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one compared run.

    'student' is no method and no policy, 'kd' the config's method with no policy, another method that method with no
    policy, and a policy the config's method with it. A policy takes the keywords that it shares with `config.policy`
    (ratio, stages, ...), so that what is compared has the same size at every stage.

    A name in `config.variants` is one of these runs, `run`, with the other parts given there put over it:
    {'crd+kd': {'run': 'crd', 'weights': {'alpha': 1.0}}}.

    Raises:
      ValueError: no run is called so, or a variant has a key that its run has not.
    """
    own = config.variants.to_dict() if 'variants' in config else {}
    if name not in own:
        return _run(config, name, sorted({*_runs(), *own}))
    parts = dict(own[name])
    result = _run(config, parts.pop('run', 'kd'), _runs())
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


def _run(config: ConfigDict, name: str, known: list[str]) -> ConfigDict:
    if name not in _runs():
        raise ValueError(plugins.unknown('run in compare', name, known))
    result = alone(config)
    with result.unlocked():
        if name in ('student', *methods.names()):
            result.policy = ConfigDict({'name': 'none', **plugins.hyper_parameters(policies.get('none'))})
        elif name != config.policy.name:
            keywords = plugins.hyper_parameters(policies.get(name))
            shared = {key: config.policy[key] for key in keywords if key in config.policy}
            result.policy = ConfigDict({'name': name, **keywords, **shared})
        method = 'none' if name == 'student' else name
        if method in methods.names() and method != 'kd':
            module = methods.get(method)
            of_pair = config.pair.to_dict()
            own = {**plugins.hyper_parameters(module), **of_pair['methods'].get(method, {})}
            result.method = ConfigDict({'name': method, **own})
            result.weights = ConfigDict(methods.weights(result.method, of_pair['weights']))
        if name == 'student':
            result.logits = 'plain'
    return result


def run(config: ConfigDict, workdir: str | pathlib.Path, *, only_check: bool = False) -> list[Result]:
    """Runs what `config` asks for and prints its table.

    Args:
      config: with `compare` (names of runs; empty: just this run) and `trials` (seeds config.seed, + 1, ...).
      workdir: holds <name>/trial_<i>/ and teacher/; finished runs there are reused.
      only_check: check every compared run and stop.

    Returns:
      The finished runs, trial by trial.
    """
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh()
    names = tuple(config.compare)
    variants = {name: variant(config, name) for name in names}
    if not names:
        single = alone(config)
        variants = {run_name(single): single}
    if config.trials < 1:
        raise ValueError(f'trials is {config.trials}; use at least 1')

    with distributed.together():
        for name, chosen in variants.items():  # all of them before the first one trains: a late mistake costs hours
            lines = check_run(chosen, mesh)
            if only_check:
                console.say('\n'.join((f'--- {name}', *lines)))
    if only_check:
        return []

    results = []
    for trial in range(config.trials):
        for name, chosen in variants.items():
            seeded = chosen.copy_and_resolve_references()
            seeded.seed = config.seed + trial
            folder = workdir / name / f'trial_{trial}'
            called = name if name in config.get('variants', ()) else ''
            result = train(seeded, folder, teacher_dir=workdir / 'teacher', mesh=mesh, name=called)
            results.append(Result(name, folder, result.summary))
    finish(workdir, results, load_data(config), config.get('reference', 'kd'))
    return results


def public(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without the places of this machine."""

    def cleaned(config: dict[str, Any]) -> dict[str, Any]:
        source = pathlib.PurePath(config['teacher']['checkpoint']).name
        return {
            **config,
            'data': {**config['data'], 'dir': ''},
            'teacher': {**config['teacher'], 'checkpoint': source},
        }

    result = {**summary, 'config': cleaned(summary['config'])}
    result['command'] = environment.command(shlex.split(summary['command']))
    if (summary.get('teacher') or {}).get('config'):
        result['teacher'] = {**summary['teacher'], 'config': cleaned(summary['teacher']['config'])}
    return result


def publish(workdir: pathlib.Path, results: str | pathlib.Path) -> list[pathlib.Path]:
    """Copies the summaries under `workdir` to <results>/<run>_<seed>.json, without the places of this machine."""
    paths: list[pathlib.Path] = []
    if not distributed.is_first():
        return paths
    for path in sorted(pathlib.Path(workdir).rglob(runlog.SUMMARY)):
        summary = public(files.read_json(path))
        paths.append(pathlib.Path(results) / f'{summary["name"]}_{summary["seed"]}.json')
        files.write_text(paths[-1], files.dumps(summary, indent=1) + '\n')
    return paths


def finish(workdir: pathlib.Path, results: list[Result], dataset: Dataset, reference: str = 'kd') -> None:
    """Prints the table over the runs, and writes report.html for each of them and for all together.

    Args:
      workdir, results, dataset: of the experiment. reference: the run that the others are compared with.
    """
    if not distributed.is_first():
        return
    from kcd_jax.report import report, tables

    found = tables.experiment_tables(tables.collect([workdir]), reference)
    console.say('\n\n'.join(table.to_text() for table in found))
    pictures = {'images': dataset.train.images, 'labels': dataset.train.labels, 'class_names': dataset.class_names}
    try:
        for result in results:
            if not (result.workdir / report.NAME).exists():
                report.write(result.workdir, **pictures)
        console.say(f'report: {report.write(workdir, **pictures, reference=reference)}')
    except OSError as error:
        raise OSError(
            f'the runs are finished, but their report under {workdir} cannot be written ({error.strerror or error}); '
            'make room and start the same command again'
        ) from error
