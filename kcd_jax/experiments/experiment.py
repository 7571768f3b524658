"""The runs that `config.compare` names x trials, each a `train.train` in its own folder; finished ones are reused."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shlex
from typing import Any

from ml_collections import ConfigDict

from kcd_jax.data import Dataset
from kcd_jax.experiments import bridge
from kcd_jax.experiments import config as grammar
from kcd_jax.runtime import console, distributed, environment, files, runlog, sharding
from kcd_jax.training.loop import Result

load_config, alone, variant = grammar.load, grammar.alone, grammar.variant
# What only an experiment of several runs has: it is no part of a run's own config.
_TOGETHER = ('variants', 'reference')


def identity(config: ConfigDict) -> str:
    """Eight hex digits of the resolved config; the number of trials and what is compared do not count."""
    content = {key: value for key, value in config.to_dict().items() if key not in ('trials', 'compare', *_TOGETHER)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def default_workdir(config_path: str, config: ConfigDict) -> pathlib.Path:
    """runs/<config file>-<hash>: the same command finds its run again."""
    return pathlib.Path('runs') / f'{pathlib.Path(config_path.partition(":")[0]).stem}-{identity(config)}'


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
        variants = {bridge.run_of(single).name: single}
    if config.trials < 1:
        raise ValueError(f'trials is {config.trials}; use at least 1')

    with distributed.together():
        for name, chosen in variants.items():  # all of them before the first one trains: a late mistake costs hours
            lines = bridge.run_of(chosen).check(mesh.size)
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
            result = bridge.run_of(seeded, called).train(folder, teacher_dir=workdir / 'teacher', mesh=mesh)
            results.append(Result(name, folder, result.summary))
    finish(workdir, results, bridge.dataset_of(config), config.get('reference', 'kd'))
    return results


def public(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without the places of this machine."""

    def cleaned(run: dict[str, Any]) -> dict[str, Any]:
        result = {**run, 'data': {**run['data'], 'dir': ''}}
        taught = run.get('teacher')
        if taught and 'run' in taught:
            result['teacher'] = {'run': cleaned(taught['run'])}
        elif taught:
            result['teacher'] = {**taught, 'checkpoint': pathlib.PurePath(taught['checkpoint']).name}
        return result

    result = {**summary, 'run': cleaned(summary['run'])}
    result['command'] = environment.command(shlex.split(summary['command']))
    if (summary.get('teacher') or {}).get('run'):
        result['teacher'] = {**summary['teacher'], 'run': cleaned(summary['teacher']['run'])}
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
    from kcd_jax.report import page, tables

    found = tables.tables(tables.collect([workdir]), reference)
    console.say('\n\n'.join(table.to_text() for table in found))
    pictures = {'images': dataset.train.images, 'labels': dataset.train.labels, 'class_names': dataset.class_names}
    try:
        for result in results:
            if not (result.workdir / page.NAME).exists():
                page.write(result.workdir, **pictures)
        console.say(f'report: {page.write(workdir, **pictures, reference=reference)}')
    except OSError as error:
        raise OSError(
            f'the runs are finished, but their report under {workdir} cannot be written ({error.strerror or error}); '
            'make room and start the same command again'
        ) from error
