"""`python -m kcd_jax train --config=FILE[:words]`: trains what a config describes, and prints its table."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from kcd_jax import paths
from kcd_jax.commands import launch

_EPILOG = """words and settings:
  FILE: a path, or the name of a shipped config, as digits_kd
  --config=FILE:[quicktest,][TEACHER-STUDENT,][method=M,][policy=P,]key=value,...
  --config.KEY=VALUE                 a setting by its full key, e.g. --config.optim.lr=0.01
  --config.policy.reuse=RUN          train on the final set of the run in the folder RUN
  every key, its range and meaning: docs/configuration.md (printed by --reference)

examples:
  python -m kcd_jax train --config=digits_kd
  python -m kcd_jax train --config=configs/cifar100_kd.py:resnet56-resnet20,method=crd,policy=kcd,ratio=0.5 --check
  python -m kcd_jax train --config='configs/digits_kd.py:compare=(student,kd,kcd),trials=5' --results=results/mine

exit codes: 0 done, 2 bad input, 3 diverged, 10 data must be prepared, 69 another process lost, 74 disk full,
  75 stopped by SIGTERM (saved), 130 by Ctrl-C. The same command resumes where it stopped."""


def parser() -> argparse.ArgumentParser:
    """The flags, without `--config.KEY=VALUE`."""
    made = launch.Parser(prog='python -m kcd_jax train', description=__doc__.partition(': ')[2], epilog=_EPILOG)
    made.add_argument('--config', metavar='FILE[:words]', help='config file and what to change in it')
    made.add_argument('--workdir', help='folder of the runs (default: runs/<config file>-<hash of the settings>)')
    made.add_argument('--results', help='also copy the summaries of the finished runs there, one JSON file each')
    made.add_argument('--check', action='store_true', help='check everything that is known before the first step; stop')
    made.add_argument('--needs_prepare', action='store_true', help='exit with 10 if the data must be prepared; stop')
    made.add_argument('--reference', action='store_true', help='print the reference of all settings; stop')
    made.add_argument('--devices', type=int, default=0, help='host devices on a CPU (default: one per core)')
    made.add_argument('--coordinator', default='', help='several processes: HOST:PORT of the first, or auto')
    made.add_argument('--processes', type=int, help='with HOST:PORT: how many processes there are')
    made.add_argument('--process', type=int, help='with HOST:PORT: the number of this one, from 0')
    return made


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(the other arguments, the (KEY, VALUE) pairs of `--config.KEY=VALUE` or `--config.KEY VALUE`)."""
    rest, settings = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument.startswith('--config.'):
            key, equals, value = argument.removeprefix('--config.').partition('=')
            if not equals:
                value = next(arguments, None)
                if value is None:
                    raise ValueError(f'--config.{key} needs a value: --config.{key}=VALUE')
            settings.append((key, value))
        else:
            rest.append(argument)
    return rest, settings


def read_config(path: str | None, settings: Sequence[tuple[str, str]]) -> Any:
    """The config of `--config=FILE[:words]` with the settings of `--config.KEY=VALUE`.

    Raises:
      ValueError: one of them is invalid; one line.
    """
    from kcd_jax.experiments import config as grammar

    if not path:
        raise ValueError('no --config; try --config=digits_kd')
    reuse = 'policy.reuse'  # short for the words policy=reuse and the key policy.run
    if any(key == reuse for key, _ in settings):
        path += ('' if path.endswith((':', ',')) else ',' if ':' in path else ':') + 'policy=reuse'
        settings = [('policy.run' if key == reuse else key, value) for key, value in settings]
    return grammar.override(grammar.load(path), settings)


def default_workdir(path: str, config: Any) -> pathlib.Path:
    """runs/<config file>-<hash>; the hash does not depend on the compared runs and the number of seeds."""
    several = ('trials', 'compare', 'variants', 'reference')
    content = {key: value for key, value in config.to_dict().items() if key not in several}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return pathlib.Path('runs') / f'{pathlib.Path(path.partition(":")[0]).stem}-{digest}'


def _folders(arguments: argparse.Namespace, config: Any) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folders of --workdir and --results; ValueError for one that cannot be a folder."""

    workdir = paths.output_folder(arguments.workdir or default_workdir(arguments.config, config), '--workdir')
    return workdir, paths.output_folder(arguments.results, '--results') if arguments.results else None


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    try:
        rest, settings = split_settings(argv)
        arguments = parser().parse_args(rest)
    except ValueError as error:
        return launch.complain(error)
    return launch.run(lambda: train(arguments, settings))


def train(arguments: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> int:
    """Runs the command with parsed arguments; returns the exit code."""
    from kcd_jax.experiments import config as grammar
    from kcd_jax.experiments import experiment as experiments
    from kcd_jax.experiments import runner as runners
    from kcd_jax.experiments import schema
    from kcd_jax.runtime import canaries, console, distributed, exitcodes, sharding
    from kcd_jax.training import wall_time

    if arguments.reference:
        print(schema.reference_page(), end='')
        return exitcodes.OK
    config = read_config(arguments.config, settings)
    schema.check_config(config.to_dict())
    if arguments.needs_prepare:
        from kcd_jax import data

        needed = data.needs_tensorflow(config.data.name, config.data.dir or None)
        return exitcodes.NEEDS_PREPARATION if needed else exitcodes.OK
    folders = functools.partial(_folders, arguments, config)
    if not arguments.coordinator:  # several processes must be connected first, so that all end if one is refused
        folders()
    launch.prepare_jax(arguments.devices, config.deterministic)
    distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    canaries.check()
    mesh = sharding.make_mesh()

    with distributed.together():
        workdir, results = folders()
        grammar.load_data(config)
    experiment = experiments.of_config(config)
    for line in experiment.omitted:
        console.say(line)
    with distributed.together():  # check all runs before the first one trains: a late error costs hours
        for cell in experiment.cells:
            lines = cell.run.check(mesh.size)
            if arguments.check:
                lines.append(wall_time.line(cell.run, mesh))
                console.say('\n'.join((f'--- {cell.label}: {cell.line}', *lines)))
    if arguments.check:
        return exitcodes.OK

    runner = runners.Runner(experiment, runners.in_workdir(experiment, workdir))
    code = runner.work(mesh)
    if distributed.is_first():
        runners.finish(runner, workdir)
        if results is not None:
            experiments.publish(workdir, results)
    return code
