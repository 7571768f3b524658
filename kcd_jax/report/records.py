"""The files that runs leave: summary.json, metrics.jsonl, knowledge/stage_<t>.npz and knowledge/points.npz.

`read_metrics`, `read_stages` and `read_points` raise ValueError for a damaged file. A report reads through
`Files`, which notes what is damaged or missing and continues without it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Folders of a run without summaries; they may be large.
_SKIPPED = {'checkpoints', 'knowledge', '__pycache__'}
_REQUIRED = ('method', 'policy', 'seed', 'accuracy')
SUMMARY = 'summary.json'
# Key under which `collect` stores a summary's file.
FILE = '_file'


def number(summary: Mapping[str, Any] | None, *keys: str) -> float | None:
    """The finite number at summary[key][key]...; None where it is missing, not a number, or not finite."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _damaged(path: Path, what: object) -> ValueError:
    return ValueError(f'{path} is damaged ({what}); remove it or run that run again')


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from None


def _read_summary(path: Path, required: bool) -> dict[str, Any] | None:
    """A summary; None if another JSON file was read and `required` is False."""
    summary = _read_json(path)
    if not required and (not isinstance(summary, dict) or 'accuracy' not in summary):
        return None
    missing = [key for key in _REQUIRED if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(
            f'{path} is not the summary of a run ({", ".join(missing)} missing); remove it or run that run again'
        )
    return summary


def _json_files(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith('.'))
        found += [Path(root) / name for name in sorted(files) if name.endswith('.json')]
    return found


def collect(paths: Iterable[str | os.PathLike[str]], damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads the summaries of finished runs.

    A folder is searched for summary.json at any depth; if there is none (a results folder), for other JSON files.

    Args:
      paths: folders and JSON files.
      damaged: receives one line for each file that cannot be read; the others are still returned.

    Returns:
      The summaries in the order found, each with its file under '_file'. Copies of a summary (a run and its copy in the
      results folder) are left out.

    Raises:
      ValueError: a path does not exist, or `damaged` is None and a file is damaged.
    """
    files: dict[Path, bool] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f'{path} does not exist; give folders of runs, or JSON files of results')
        found = _json_files(path) if path.is_dir() else [path]
        named = [file for file in found if file.name == SUMMARY or file == path]
        files |= dict.fromkeys(named or found, bool(named))
    summaries: dict[str, dict[str, Any]] = {}
    for path, required in files.items():
        try:
            summary = _read_summary(path, required)
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
        else:
            if summary is not None:
                summaries.setdefault(json.dumps(summary, sort_keys=True), {**summary, FILE: str(path)})
    return list(summaries.values())


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of <run>/metrics.jsonl in order; [] if there is no such file. A truncated last line is left out.

    Raises:
      ValueError: a line before the last cannot be read.
    """
    path = Path(run) / 'metrics.jsonl'
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding='utf-8', errors='replace').split('\n') if line.strip()]
    records = []
    for place, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            # A run killed while writing leaves half a line at the end, nowhere else.
            if place < len(lines) - 1:
                raise ValueError(
                    f'{path}, line {place + 1} is damaged ({error}); resume the run or remove that line'
                ) from None
    return [record for record in records if isinstance(record, dict)]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The values and the ranking at one condensation, without padding rows.

    Attributes:
      number: of the condensation, from 1.
      value: f32[num_points] in nats, the mean entropy over the visits.
      count: i32[num_points], visits.
      order: i32[num_points], the point at each rank, most valuable first.
      num_keep: number of points kept: the first of `order`.
    """

    number: int
    value: np.ndarray
    count: np.ndarray
    order: np.ndarray
    num_keep: int

    @property
    def kept(self) -> np.ndarray:
        """bool[num_points]: the value label, whether a point is kept."""
        mask = np.zeros(len(self.value), bool)
        mask[self.order[: self.num_keep]] = True
        return mask


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # np.load raises many kinds on a damaged archive
        raise _damaged(path, error) from None


def _read_stage(path: Path, stage: int) -> Stage:
    found = _arrays(path)
    missing = {'num_points', 'num_keep', 'order', 'value', 'count'} - set(found)
    if missing:
        raise _damaged(path, f'{", ".join(sorted(missing))} missing')
    points, num_keep = int(found['num_points']), int(found['num_keep'])
    # Padding rows rank after every real point, so dropping them keeps the order of the real ones.
    order = found['order'][found['order'] < points]
    value, count = found['value'][:points], found['count'][:points]
    if {len(order), len(value), len(count)} != {points} or not 0 <= num_keep <= points:
        raise _damaged(path, f'{len(order)} ranks and {num_keep} kept of {points} points')
    return Stage(stage, value, count, order, num_keep)


def _stage_files(run: str | os.PathLike[str]) -> dict[int, Path]:
    matches = ((re.fullmatch(r'stage_(\d+)\.npz', path.name), path) for path in Path(run).glob('knowledge/stage_*.npz'))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def read_stages(run: str | os.PathLike[str], most: int | None = None) -> list[Stage]:
    """The condensations of a run by number, from <run>/knowledge/stage_<t>.npz; [] if there are none.

    Args:
      run: the run's folder.
      most: read at most this many, evenly spaced, including the first and the last (1: the last).

    Raises:
      ValueError: a file is damaged.
    """
    found = list(_stage_files(run).items())
    if most is not None and len(found) > most:
        places = np.linspace(0, len(found) - 1, most) if most > 1 else [len(found) - 1]
        found = [found[round(place)] for place in places]
    return [_read_stage(path, stage) for stage, path in found]


def read_points(run: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of <run>/knowledge/points.npz, one row per point at the end of a run; {} if there is no such file.

    Raises:
      ValueError: the file is damaged.
    """
    path = Path(run) / 'knowledge' / 'points.npz'
    found = _arrays(path) if path.is_file() else {}
    lengths = {array.shape for array in found.values()}
    if len(lengths) > 1 or not all(len(shape) == 1 for shape in lengths):
        shapes = ', '.join(f'{name} {list(array.shape)}' for name, array in found.items())
        raise _damaged(path, f'its arrays do not fit together: {shapes}')
    return found


def run_folder(summary: Mapping[str, Any]) -> Path | None:
    """The folder of a collected summary if it is a run's own; None for a copy in a results folder."""
    path = Path(summary.get(FILE, ''))
    return path.parent if path.name == SUMMARY else None


class Files:
    """The files of runs, each read once. Damaged and missing ones are noted in `problems`, and read as empty.

    Attributes:
      problems: one line for each file.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._read: dict[tuple[Any, ...], Any] = {}

    def _get(self, run: Mapping[str, Any], read: Callable[..., Any], *args: Any) -> Any:
        """What `read` returns of the run's folder; None if the run has no folder or the file is damaged."""
        key = (read.__name__, run_folder(run), *args)
        if key not in self._read:
            try:
                self._read[key] = read(*key[1:]) if key[1] else None
            except ValueError as error:
                self._read[key] = None
                self._note(str(error))
        return self._read[key]

    def _note(self, line: str) -> None:
        if line not in self.problems:
            self.problems.append(line)

    def metrics(self, run: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The records of a run's metrics.jsonl; see `read_metrics`."""
        records = self._get(run, read_metrics)
        if records == []:
            self._note(f'{run_folder(run) / "metrics.jsonl"} is missing or empty; its curves are left out')
        return records or []

    def stages(self, run: Mapping[str, Any], most: int | None = None) -> list[Stage]:
        """The condensations of a run; see `read_stages`."""
        stages = self._get(run, read_stages, most)
        if stages is not None:
            recorded = {record.get('number') for record in run.get('condensations') or []} - {None}
            for number_of in sorted(recorded - set(_stage_files(run_folder(run)))):
                self._note(f'{run_folder(run) / "knowledge" / f"stage_{number_of}.npz"} is missing; it is left out')
        return stages or []

    def points(self, run: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a run's points.npz; see `read_points`."""
        arrays = self._get(run, read_points)
        if arrays == {} and run.get('class_accuracy'):  # the survey that measured it also writes the file
            self._note(f'{run_folder(run) / "knowledge" / "points.npz"} is missing; its figures are left out')
        return arrays or {}


def series(metrics: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of one number in the records of a kind; records without it are left out."""
    pairs = [(number(record, 'epoch'), number(record, name)) for record in metrics if record.get('kind') == kind]
    found = [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def to_csv(records: Sequence[Mapping[str, Any]], write: Callable[[Any], Any] = lambda value: value) -> str:
    """CSV of mappings with equal keys, with a header; None is an empty cell.

    Args:
      records: at least one.
      write: turns a value into what is written.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows({key: write(value) for key, value in record.items()} for record in records)
    return out.getvalue()
