"""Which runs belong together: experiments, and in them the rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kcd_jax.report import names
from kcd_jax.report.records import FILE, SUMMARY, number
from kcd_jax.report.statistics import Sample, describe

Summary = Mapping[str, Any]
# In a table the usual runs come in this order, the others after them as they were found.
_ORDER = ('teacher', 'student', 'kd', 'random', 'kcd')


def is_teacher(summary: Summary) -> bool:
    """Whether the summary is that of a teacher's own training."""
    file = Path(summary.get(FILE, ''))
    return summary.get('name') == 'teacher' or (file.name == SUMMARY and file.parent.name == 'teacher')


def variant_name(summary: Summary) -> str:
    """The name of a run that its experiment's config names itself (`config.variants`); '' of every other run."""
    name = str(summary.get('name', ''))
    return '' if name in ('teacher', 'student', 'kd', summary['method'], summary['policy']) else name


def run_name(summary: Summary) -> str:
    """What a run stands for in a comparison: 'student', 'kd' (the method on everything), its policy, or a variant."""
    if (summary['method'], summary['policy']) == ('none', 'none'):
        return 'student'
    return variant_name(summary) or ('kd' if summary['policy'] == 'none' else str(summary['policy']))


def teacher_network(summary: Summary) -> str | None:
    """The teacher's network; None for a student alone."""
    teacher = summary.get('teacher')
    return teacher.get('network') if isinstance(teacher, Mapping) else None


def total_macs(summary: Summary) -> float | None:
    """Multiply-accumulates of all passes of a run; None where they were not counted."""
    macs = (summary.get('cost') or {}).get('macs')
    return float(sum(macs.values())) if isinstance(macs, Mapping) and macs else None


def full_epochs(summary: Summary) -> float | None:
    """Epochs that were asked for; a run may have more (a method's first phase) or fewer (a short run)."""
    asked = number(summary, 'config', 'epochs')
    return number(summary, 'epochs') if asked is None else asked


def _setting(summary: Summary) -> tuple[Any, ...]:
    keys = ('dataset', 'student', 'num_points', 'batch', 'evaluated_on')
    return (*(summary.get(key) for key in keys), full_epochs(summary))


def refuse_twice(what: str, runs: Sequence[Summary]) -> None:
    """Raises ValueError when a seed occurs twice among the runs of a row."""
    seeds: dict[Any, Summary] = {}
    for run in runs:
        if run['seed'] in seeds:
            files = f'{seeds[run["seed"]].get(FILE, "one")} and {run.get(FILE, "another")}'
            raise ValueError(f'{what} has seed {run["seed"]} twice ({files}); give one of them')
        seeds[run['seed']] = run


def experiments(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """Splits summaries into what can be compared: one teacher network, student, dataset, length and batch each.

    A student trained alone joins every group of its setting; a teacher's own run, every group taught by its network.
    """
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    alone = []
    for summary in summaries:
        if is_teacher(summary):
            continue
        if teacher_network(summary) is None:
            alone.append(summary)
        else:
            groups.setdefault((*_setting(summary), teacher_network(summary)), []).append(summary)
    for summary in alone:
        joined = [group for key, group in groups.items() if key[:-1] == _setting(summary)]
        if not joined:
            joined = [groups.setdefault((*_setting(summary), None), [])]
        for group in joined:
            group.append(summary)
    for summary in filter(is_teacher, summaries):
        taught = [
            group
            for key, group in groups.items()
            if key[0] == summary.get('dataset') and key[-1] == summary.get('student')
        ]
        for group in taught:
            group.append(summary)
        if not groups:
            groups[(summary.get('dataset'), summary.get('student'))] = [summary]
    return list(groups.values())


@dataclasses.dataclass
class Group:
    """The runs of one row: they differ in the seed alone.

    Attributes:
      name: what they stand for (`run_name`).
      label: what the row is called.
      runs: their summaries; none where nothing has finished.
      method, policy: what they all have.
    """

    name: str
    label: str
    runs: list[Summary]
    method: str
    policy: str

    def by_seed(self, *keys: str) -> dict[int, float | None]:
        """{seed: number}."""
        return {run['seed']: number(run, *keys) for run in self.runs}

    def sample(self, *keys: str) -> Sample:
        """The number over the seeds."""
        return describe(self.by_seed(*keys).values())


def group_runs(summaries: Sequence[Summary]) -> list[Group]:
    """Rows of a table: the runs of one name, method, policy and options together, in the usual order.

    Raises:
      ValueError: a seed occurs twice in a row.
    """
    found: dict[tuple[Any, ...], list[Summary]] = {}
    for summary in summaries:
        if not is_teacher(summary):
            key = (
                run_name(summary),
                summary['method'],
                summary['policy'],
                tuple(sorted(names.variant(summary).items())),
            )
            found.setdefault(key, []).append(summary)
    for (name, *_), runs in found.items():
        refuse_twice(f'run {name!r}', runs)
    keys = list(found)
    plain = [
        names.display_name(method, policy) if name in ('student', 'kd', policy) else names.METHODS.get(name, name)
        for name, method, policy, _ in keys
    ]
    labels = names.distinguish(plain, [names.variant(found[key][0]) for key in keys])
    groups = [
        Group(key[0], label, sorted(found[key], key=lambda run: run['seed']), *key[1:3])
        for key, label in zip(keys, labels, strict=True)
    ]
    return in_order(groups)


def in_order(groups: Sequence[Group]) -> list[Group]:
    """The usual rows first (plain KD before other methods), the others after them as they were found."""

    def place(group: Group) -> tuple[int, bool]:
        usual = group.name in _ORDER
        return _ORDER.index(group.name) if usual else len(_ORDER), usual and group.method not in ('none', 'kd')

    return sorted(groups, key=place)


def base_of(group: Group, groups: Sequence[Group], reference: str = 'kd') -> Group | None:
    """The row that a row is compared with; None for the reference itself, and where it is missing.

    A selection is compared with its own method (KC-CRD with CRD), where the table has it; all else with the first
    row called `reference`, plain KD before other methods.
    """
    named = [other for other in groups if other.name == reference]
    own = [other for other in named if other.method == group.method]
    plain = [other for other in named if other.method == 'kd']
    base = next(iter((own if group.policy != 'none' else []) + plain + named), None)
    return None if base is group or group.name == 'teacher' else base


def describe_experiment(summaries: Sequence[Summary]) -> str:
    """'digits: resnet20 -> resnet8, 36 epochs': what all runs of a table share."""
    students = [summary for summary in summaries if not is_teacher(summary)] or list(summaries)
    first = students[0]
    teachers = sorted({teacher_network(summary) or '' for summary in students} - {''})
    pair = f'{teachers[0]} -> {first.get("student")}' if teachers else str(first.get('student'))
    epochs = full_epochs(first)
    return f'{first.get("dataset")}: {pair}' + (f', {epochs:.0f} epochs' if epochs is not None else '')
