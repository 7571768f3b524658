"""Grids: experiments as data, config words by row and pairs of networks by column; see `configs/ablations.py`.

A row is a string of words of the config grammar (`compare=NAME` is a named run of the file), `Reuse` of another row, or
a `Budgeted` policy with a keyword solved for a relative cost. `build` turns a grid into an `Experiment`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from kcd_jax import plugins
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments.experiment import Cell, Experiment, Reuse
from kcd_jax.report import papers
from kcd_jax.training import ledger
from kcd_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """A policy with one keyword that is solved for a budget.

    Attributes:
      words: of the policy, e.g. 'policy=kcd'.
      key: the keyword.
      low: its smallest value.
      high: its largest value; None: the batch.
      step: between two values.
      expected: whether epoch sizes depend on the data, so that only the expected cost is known.
      least: the smallest budget that it can meet; it has no row at smaller ones.
    """

    words: str
    key: str
    low: float
    high: float | None
    step: float
    expected: bool = False
    least: float = 0.0

    def values(self, batch: int) -> list[float]:
        """All values, ascending; integers if the step is 1."""
        top = batch if self.high is None else self.high
        count = round((top - self.low) / self.step) + 1
        digits = 0 if self.step == 1 else 6
        values = [round(self.low + n * self.step, digits) for n in range(count)]
        return [int(value) for value in values] if self.step == 1 else values


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of a table.

    Attributes:
      title: one line.
      config: the config file and the words of all rows, e.g. 'configs/digits_kd.py:batch=30'.
      rows: {label: words or Reuse}.
      pairs: TEACHER-STUDENT by column; '' is the file's own. A pair in a row's words overrides it.
      more: {pair: {label: additional words}}.
      equal: {label: policy}, solved for each budget so that all rows of a budget cost the same; labels become
        'LABEL, 60 %'.
      budgets: relative costs.
      references: labels of the rows that the others are compared with, seed by seed; a label of `equal` means the row
        of the same budget.
      paper: the printed table (report/paper_tables) that the grid reproduces.
      omitted: {label: reason} of rows of that table that cannot be run.
      devices: host devices per process on a CPU; 0: one per core. A sweep for one device is refused on several, since
        its budgets and numbers are those of one.
    """

    title: str
    config: str
    rows: Mapping[str, str | Reuse]
    pairs: tuple[str, ...] = ('',)
    more: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    equal: Mapping[str, Budgeted] = dataclasses.field(default_factory=dict)
    budgets: tuple[float, ...] = ()
    references: tuple[str, ...] = ('KD',)
    paper: str = ''
    omitted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    devices: int = 0


def of_paper(
    name: str,
    config: str,
    *,
    more: Mapping[str, str] | None = None,
    omitted: Mapping[str, str] | None = None,
) -> Grid:
    """The grid of a paper's table, with its rows that can be run and a pair per column.

    Args:
      name: of the table in report/paper_tables.
      config: 'FILE:words'.
      more: {label: additional words}.
      omitted: {label: reason why it cannot be run}.
    """
    table, omitted = papers.find(name), omitted or {}
    columns: dict[str, int] = {}
    for place, column in enumerate(table.columns):
        if column.student:
            columns.setdefault(f'{column.teacher}-{column.student}', place)
    rows: dict[str, str | Reuse] = {}
    by_pair: dict[str, dict[str, str]] = {pair: {} for pair in columns}
    for row in table.rows:
        if row.kind not in ('run', 'student') or row.label in omitted:
            continue
        usual = papers.usual(row.method, row.policy)  # the papers' own values are the defaults
        words = [f'method={row.method}', f'policy={row.policy}']
        words += _words(row.settings, usual)
        if row.student and columns:
            words.append(f'{table.columns[0].teacher}-{row.student}')
        rows[row.label] = ','.join(words)
        for pair, place in columns.items():
            own = _words(row.by_column[place], {}) if row.by_column else []
            further = [*own, *filter(None, [(more or {}).get(row.label, '')])]
            if further:
                by_pair[pair][row.label] = ','.join(further)
    return Grid(table.title, config, rows, tuple(columns), by_pair, paper=name, omitted=omitted)


def _words(settings: Mapping[str, str], usual: Mapping[str, str]) -> list[str]:
    """'KEY=VALUE' words of a run's settings, by config key, without default values."""
    return [f'{key.removeprefix("recipe.")}={value}' for key, value in settings.items() if usual.get(key) != value]


# ------------------------------------------------------------------------------------------------------------ building


def read(file: str) -> tuple[Mapping[str, Grid], pathlib.Path]:
    """({name: grid}, the root folder of its config files) of a sweep file, a path or a shipped name."""
    path = grammar.find_file(file)
    found = getattr(grammar.import_file(path), 'SWEEPS', None)
    if not isinstance(found, Mapping) or not all(isinstance(grid, Grid) for grid in found.values()):
        raise ValueError(f'{file} defines no SWEEPS = {{name: Grid}}; see the shipped ablations')
    return found, path.resolve().parent.parent


def find(grids: Mapping[str, Grid], name: str) -> Grid:
    """The grid with a name; ValueError lists the known names."""
    if name not in grids:
        raise ValueError(plugins.unknown('sweep', name, sorted(grids)))
    return grids[name]


def with_words(grid: Grid, words: str) -> Grid:
    """The grid with further config words for all of its cells."""
    return dataclasses.replace(grid, config=_joined(grid.config, words)) if words else grid


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cell of a grid as config words; `budget` is what its policy is solved for, if it is `Budgeted`."""

    label: str
    pair: str
    words: str
    group: str = ''
    reuse: Reuse | None = None
    budgeted: Budgeted | None = None
    budget: float = 0.0


def expand(grid: Grid, pairs: Sequence[str] = ()) -> list[Entry]:
    """The cells of a grid in the order of its table, pair by pair, without duplicate runs.

    Args:
      grid: to expand.
      pairs: columns to include; empty: all.

    Raises:
      ValueError: the grid does not have one of the pairs.
    """
    for pair in pairs:
        if pair not in grid.pairs:
            raise ValueError(plugins.unknown('pair of this sweep', pair, [p for p in grid.pairs if p]))
    once: dict[tuple[str, ...], Entry] = {}
    for pair in pairs or grid.pairs:
        for entry in _rows(grid, pair):
            reuse = entry.reuse
            if reuse is not None:
                if reuse.column == pair != '':
                    continue  # not a transfer between pairs
                entry = dataclasses.replace(entry, reuse=dataclasses.replace(reuse, column=reuse.column or pair))
            own = entry.label if entry.group or reuse else ''
            once.setdefault((entry.words, own, entry.pair if reuse else ''), entry)
    return list(once.values())


def _rows(grid: Grid, pair: str) -> Iterator[Entry]:
    def joined(words: str, label: str) -> str:
        # Without a teacher, one run serves all pairs with the same student, and is listed with the first.
        column = pair.partition('-')[2] if 'method=none' in words else pair
        return _joined(grid.config, column, words, grid.more.get(pair, {}).get(label, ''))

    for label, row in grid.rows.items():
        if isinstance(row, Reuse):
            yield Entry(label, pair, joined('policy=none', label), reuse=row)
        else:
            yield Entry(label, pair, joined(row, label))
    for budget in grid.budgets:
        group = f'{100 * budget:g} %'
        for label, policy in grid.equal.items():
            if budget < policy.least:
                continue
            yield Entry(f'{label}, {group}', pair, joined(policy.words, label), group, None, policy, budget)


def _joined(config: str, *words: str) -> str:
    file, _, own = config.partition(':')
    return f'{file}:{",".join(word for word in (own, *words) if word)}'


def build(
    name: str,
    grid: Grid,
    root: pathlib.Path,
    *,
    pairs: Sequence[str] = (),
    trials: int = 1,
    seed: int = 0,
    device_count: int = 1,
    load: grammar.Loader = grammar.load_data,
) -> Experiment:
    """The experiment of a grid.

    Args:
      name: of the grid.
      grid: to build.
      root: folder of the config files.
      pairs: columns to include; empty: all.
      trials: number of seeds.
      seed: the first of them.
      device_count: devices that a batch is split over; solved numbers of rows are multiples of it.
      load: how the data is loaded; `config.shapes` reads no data.

    Raises:
      ValueError: the grid does not have one of the pairs, it is for one device and there are more, or a cell is
        invalid; one line that names the cell.
    """
    if grid.devices == 1 < device_count:
        raise ValueError(
            f'this sweep is for one device, {device_count} were found; set CUDA_VISIBLE_DEVICES=0, or on a CPU leave '
            'out --devices'
        )
    cells: list[Cell] = []
    for entry in expand(grid, pairs):
        words = entry.words
        place = f'{entry.label} on {entry.pair}' if entry.pair else entry.label
        try:
            if entry.budgeted is not None:
                words = _joined(words, _solved(entry, root, device_count, load))
            run = run_of(words, root, load)
            cells.append(Cell(entry.label, run, entry.pair, entry.group, entry.reuse, words))
        except ValueError as error:
            raise ValueError(f'{place}: {error}') from error
    if not cells:
        raise ValueError(why_empty(name, grid))
    known = {(cell.label, cell.column) for cell in cells}
    for cell in cells:
        source = cell.reuse
        if source is not None and (source.label, source.column) not in known:
            raise ValueError(f'{cell.name} needs {source.label} on {source.column}, which --pairs excludes; add it')
    omitted = tuple(f'{label}: {reason}' for label, reason in grid.omitted.items())
    return Experiment(
        name, grid.title, tuple(cells), tuple(range(seed, seed + trials)), grid.references, grid.paper, omitted
    )


def why_empty(name: str, grid: Grid) -> str:
    """One line on a grid of which no row can be run."""
    reasons = '; '.join(f'{label}: {reason}' for label, reason in grid.omitted.items())
    return f'no row of {name} can be run' + (f': {reasons}' if reasons else '')


def run_of(words: str, root: pathlib.Path, load: grammar.Loader = grammar.load_data) -> Run:
    """The run of a cell: the one that `compare` names, otherwise that of the words.

    A named run may have another optimiser; a teacher that is trained first keeps the file's.
    """
    config = grammar.load(str(root / words))
    one = grammar.alone(config)
    if 'compare=' in words:  # a config file may compare runs of its own
        if len(config.compare) != 1:
            raise ValueError(f'{words} names {len(config.compare)} runs; name one')
        if re.search(r'[:,](method|policy)=', words):
            raise ValueError(f'{words} names the run {config.compare[0]} and a method or policy; give one of them')
        one = grammar.variant(config, config.compare[0])
    return grammar.run_of(one, load, teacher_optim=config.optim.to_dict())


def _solved(entry: Entry, root: pathlib.Path, device_count: int, load: grammar.Loader) -> str:
    """'KEY=VALUE' with which the entry's run costs its budget."""
    policy = entry.budgeted

    def relative(value: float) -> float | None:
        try:
            run = run_of(_joined(entry.words, f'{policy.key}={value}'), root, load)
            if min(run.sizes) < run.recipe.batch:
                return None
            return _expected_share(run) if policy.expected else cost_of(run).relative
        except ValueError:
            return None

    values = policy.values(grammar.load(str(root / entry.words)).batch)
    if policy.high is None:  # rows per step, which are split over the devices
        values = [rows for rows in values if rows % device_count == 0]
    value, _ = solve(relative, values, entry.budget, f'{policy.words} with its {policy.key}')
    return f'{policy.key}={value}'


def _expected_share(run: Run) -> float:
    """The relative cost of a run with expected epoch sizes: an epoch loses half a batch on average."""
    points, batch = run.num_points, run.recipe.batch
    sizes = [size if size == points else size - (batch - 1) / 2 for size in run.sizes]
    return sum(sizes) / (points // batch * batch * run.recipe.epochs)


def solve(
    cost: Callable[[float], float | None], values: Sequence[float], budget: float, what: str
) -> tuple[float, float]:
    """The value with the cost nearest to the budget, by bisection.

    Args:
      cost: of a value, relative to training on all points; monotone over `values`. None if a run is impossible because
        a batch has too few points, which counts as cheaper than the budget.
      values: ascending.
      budget: the wanted relative cost.
      what: the keyword, for the error message.

    Returns:
      (value, its cost), the cheaper one of two equally near values.

    Raises:
      ValueError: the budget is out of the range of the costs.
    """
    seen: dict[float, float | None] = {}

    def at(value: float) -> float:
        if value not in seen:
            seen[value] = cost(value)
        found = seen[value]
        return -1.0 if found is None else found

    ordered = list(values) if at(values[0]) <= at(values[-1]) else list(reversed(values))
    low, high = 0, len(ordered) - 1
    while low < high:  # the first value that costs the budget or more
        middle = (low + high) // 2
        low, high = (low, middle) if at(ordered[middle]) >= budget else (middle + 1, high)
    possible = [value for value in ordered[max(low - 1, 0) : low + 1] if at(value) >= 0]
    costs = [at(value) for value in possible]
    if not costs or not min(costs) <= budget <= max(costs):
        below = bool(costs) and min(costs) > budget
        reach = f'{min(costs) if below else max(costs, default=0.0):.2%}'
        side = 'least' if below else 'most'
        raise ValueError(f'{what} cannot cost {budget:.2%} of training on all points; at {side} it costs {reach}')
    return min(zip(possible, costs, strict=True), key=lambda pair: (abs(pair[1] - budget), pair[1]))


# ---------------------------------------------------------------------------------------------------------------- cost


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
      samples: number of training samples.
      macs: multiply-accumulates of teacher and student.
      relative: `macs` relative to the same method on all points.
      assumed: UNIX's Computation: `relative` if a backward pass costs as much as a forward pass.
    """

    samples: int
    macs: int
    relative: float
    assumed: float


def cost_of(run: Run) -> Cost:
    """The cost of a run from the sizes of its epochs and the networks' multiply-accumulates per image.

    The ledger traces a whole step, which takes seconds; this traces each network once and ignores the method's own
    layers.
    """
    shape = run.data.image_shape
    forward, both = (ledger.network_macs(run.student_network, shape, backward) for backward in (False, True))
    of_teacher = 0 if run.teacher_network is None else ledger.network_macs(run.teacher_network, shape)
    teacher = of_teacher if run.needs else 0  # a policy may read its scores alone
    counts, views = ledger.sample_counts(run), run.method.num_views
    scored = run.recipe.batch * counts['steps'] if run.policy.scores else 0
    samples, full = counts['processed_samples'], counts['processed_full']
    judged = run.num_points * of_teacher if run.scores_points else 0

    def total(per_image: int, samples: int, scored: int = 0) -> int:
        return samples * per_image * views + scored * forward + judged

    counted, assumed = teacher + both, teacher + 2 * forward
    return Cost(
        samples,
        total(counted, samples + counts['samples_before'], scored),
        total(counted, samples, scored) / (full * counted * views),
        total(assumed, samples, scored) / (full * assumed * views),
    )
