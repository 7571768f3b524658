"""The runs of a sweep: a task for each cell and seed, with its config, its folders and what it will cost."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict
from tqdm import tqdm

from kcd_jax.experiments import bridge, budget, cells
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments.cells import Cell, Sweep
from kcd_jax.runtime import runlog
from kcd_jax.training import ledger


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of a cell is expected to take: samples, multiply-accumulates, and these relative to everything."""

    samples: float
    macs: float
    relative: float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One run: a cell with a seed. `folder` is the run's, `result` the JSON file that says that it is done."""

    cell: Cell
    seed: int
    config: ConfigDict
    folder: pathlib.Path
    teacher: pathlib.Path
    result: pathlib.Path
    cost: Cost | None

    @property
    def title(self) -> str:
        """For lines: 'KC-KD on vgg13-vgg8, seed 2'."""
        return f'{name_of(self.cell)}, seed {self.seed}'


def name_of(cell: Cell) -> str:
    """'KC-KD on vgg13-vgg8'."""
    return f'{cell.label} on {cell.pair}' if cell.pair else cell.label


def read_sweeps(file: str) -> tuple[Mapping[str, Sweep], pathlib.Path]:
    """({name: sweep}, the folder that their config files are relative to) of a file such as configs/ablations.py."""
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(f'there is no file of sweeps {file}; the shipped one is configs/ablations.py')
    module = grammar._import(path)
    return module.SWEEPS, path.resolve().parent.parent


class Pricing:
    """Expected costs of configs; every mistake in a config is found on the way."""

    def __init__(self, device_count: int):
        self.device_count = device_count

    def __call__(self, config: ConfigDict) -> Cost:
        """What a run takes. ValueError: one line on what is wrong with the config, or with its data."""
        run = bridge.run_of(config)
        book = ledger.expected(run)
        return Cost(ledger.sample_counts(run)['processed_samples'], book.total, book.relative)

    def smooth(self, config: ConfigDict) -> float:
        """The relative cost of a run whose sizes are expectations: each epoch loses half a batch on average."""
        run = bridge.run_of(config)
        points, batch = run.setup.num_points, config.batch
        sizes = [size if size == points else size - (batch - 1) / 2 for size in run.sizes]
        return sum(sizes) / (points // batch * batch * config.epochs)

    def solve(self, cell: Cell, root: pathlib.Path) -> Cell:
        """The cell with its knob turned to where its run costs what its budget allows."""
        if cell.knob is None:
            return cell
        knob = cell.knob

        def relative(value: float) -> float | None:
            config = cells.config_of(cells.with_words(cell, f'{knob.key}={value}'), root)
            try:
                return self.smooth(config) if knob.expected else self(config).relative
            except ValueError:
                return None

        values = knob.values(cells.config_of(cell, root).batch)
        if knob.high is None:  # rows of a step: the devices share them
            values = [rows for rows in values if rows % self.device_count == 0]
        value, _ = budget.solve(relative, values, cell.budget, f'{knob.words} with its {knob.key}')
        return cells.with_words(cell, f'{knob.key}={value}')


@contextlib.contextmanager
def told_of(cell: Cell) -> Iterator[None]:
    """Names the cell in a user's mistake."""
    try:
        yield
    except runlog.Busy:
        raise
    except ValueError as error:
        raise ValueError(f'{name_of(cell)}: {error}') from error


def make_tasks(
    name: str, sweep: Sweep, root: pathlib.Path, arguments: argparse.Namespace, device_count: int
) -> list[Task]:
    """Every run of a sweep, seed by seed; nothing is trained, and every config is checked.

    Raises:
      ValueError: a pair that is not the sweep's, or whatever is wrong with a cell, in one line.
    """
    pairs = tuple(pair for pair in arguments.pairs.split(',') if pair)
    found = cells.expand(sweep, pairs)
    if not found:
        raise ValueError(f'no row of {name} can be run: its student is not among the networks of kcd_jax')
    workdir, results = pathlib.Path(arguments.workdir), pathlib.Path(arguments.results) / name
    price = Pricing(device_count)
    costs: list[Cost | None] = []
    solved: list[Cell] = []
    # Some seconds for each pair and method: a whole table of them takes minutes.
    for cell in tqdm(found, 'what each cell costs', unit='cell', delay=3, leave=False, disable=None):
        with told_of(cell):
            cell = price.solve(cell, root)
            # A cell that starts from another run is checked when that run is there.
            costs.append(None if cell.sources else price(cells.config_of(cell, root)))
            solved.append(cell)
    tasks = []
    for seed in range(arguments.trials):
        folders: dict[tuple[str, str], pathlib.Path] = {}
        for cell, cost in zip(solved, costs, strict=True):
            for label, pair in cell.sources:
                if (label, pair) not in folders:
                    raise ValueError(f'{name_of(cell)} starts from {label} on {pair}; --pairs lacks it')
            config = cells.config_of(cell, root, folders)
            config.seed = seed
            teacher = workdir / 'teachers' / f'{config.teacher.name}'
            folder = workdir / cells.folder_name(config) / f'seed_{seed}'
            folders[cell.label, cell.pair] = folder
            result = results / f'{cell.slug}_{seed}.json'
            tasks.append(Task(cell, seed, config, folder, teacher / f'seed_{config.teacher.seed}', result, cost))
    return tasks
