"""`python -m kcd_jax cost`: the cost of a run before training; without a config, the papers' cost columns recomputed.

Nothing is trained or compiled: steps and networks are counted from their shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kcd_jax.commands import launch, train

if TYPE_CHECKING:
    from kcd_jax.experiments.experiment import Experiment

_EPILOG = """examples:
  python -m kcd_jax cost                                               the tables of UNIX and KCD, and their errors
  python -m kcd_jax cost --config=configs/digits_kd.py:policy=unix     the cost of that run, pass by pass
  --config and --config.KEY=VALUE are those of python -m kcd_jax train

exit codes: 0 done, 2 bad input"""


def lines_of(found: Experiment) -> Iterator[str]:
    """The cost of every run of an experiment, pass by pass."""
    from kcd_jax.training import ledger

    for cell in found.cells:
        run = cell.run
        yield f'{cell.label}: {cell.line}'
        yield ledger.samples_line(ledger.sample_counts(run))
        yield from ledger.lines(ledger.expected(run))
        counts = [(run.student_network.name, ledger.network_macs(run.student_network, run.data.image_shape))]
        if run.teacher_network is not None:
            counts.insert(0, (run.teacher_network.name, ledger.run_teacher_macs(run)))
        for name, forward in counts:
            count = 'an unknown number of' if forward is None else f'{forward:,}'
            yield f'one image forward through {name}: {count} MACs'
        yield ''


def parser() -> argparse.ArgumentParser:
    """The flags, without `--config.KEY=VALUE`."""
    made = launch.Parser(prog='python -m kcd_jax cost', description=__doc__.partition(': ')[2], epilog=_EPILOG)
    made.add_argument('--config', metavar='FILE[:words]', help='config file of the runs (default: the papers)')
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    try:
        rest, settings = train.split_settings(argv)
        arguments = parser().parse_args(rest)
    except ValueError as error:
        return launch.complain(error)

    def body() -> int:
        from kcd_jax.experiments import experiment, paper_costs

        if arguments.config or settings:
            found = experiment.of_config(train.read_config(arguments.config, settings))
            for line in lines_of(found):
                print(line, flush=True)
            return 0
        for line in paper_costs.lines():
            print(line, flush=True)
        return 0

    return launch.run(body)
