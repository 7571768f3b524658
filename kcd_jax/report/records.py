"""Finding and reading what runs leave: summary.json, metrics.jsonl and knowledge/stage_<t>.npz."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Folders of a run that hold no summaries and may be large.
_SKIPPED = {'checkpoints', 'knowledge', '__pycache__'}
_REQUIRED = ('method', 'policy', 'seed', 'accuracy')
SUMMARY = 'summary.json'
# Where `collect` notes which file a summary came from.
FILE = '_file'


def number(summary: Mapping[str, Any] | None, *keys: str) -> float | None:
    """The finite number at summary[key][key]...; None where it is missing, not a number, or not finite."""
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} is damaged ({error}); remove it or run that run again') from None
    missing = [key for key in _REQUIRED if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(
            f'{path} is no summary of a run ({", ".join(missing)} missing); remove it or run that run again'
        )
    return summary


def _walk(folder: Path, suffix: str) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith('.'))
        found += [Path(root) / name for name in sorted(files) if name.endswith(suffix)]
    return found


def _is_other_json(path: Path) -> bool:
    """Whether a JSON file of a results folder holds something else than a summary; unreadable ones do not count."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return not isinstance(content, dict) or 'accuracy' not in content


def summary_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The summaries' files under `paths`.

    A folder is searched for summary.json at any depth; one that has none (a results folder) for its other JSON files.

    Raises:
      ValueError: a path does not exist.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            named = [file for file in _walk(path, SUMMARY) if file.name == SUMMARY]
            files += named or [file for file in _walk(path, '.json') if not _is_other_json(file)]
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f'{path} does not exist; give folders of runs, or JSON files of results')
    return list(dict.fromkeys(files))


def collect(paths: Iterable[str | os.PathLike[str]], damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads the summaries of finished runs.

    Args:
      paths: folders (see `summary_files`) and JSON files.
      damaged: takes one line for each file that cannot be read; the others are still returned.

    Returns:
      The summaries in the order found, each with its file under '_file'. A copy of one already found (a run and its
      copy in the results folder) is left out.

    Raises:
      ValueError: a path does not exist; or, when `damaged` is None, any file is damaged (one line that names it).
    """
    summaries: list[dict[str, Any]] = []
    seen: set[str] = set()
    for path in summary_files(paths):
        try:
            summary = _read_summary(path)
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        content = json.dumps(summary, sort_keys=True)
        if content not in seen:
            seen.add(content)
            summaries.append({**summary, FILE: str(path)})
    return summaries


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of <run>/metrics.jsonl in order; [] where there is none. A cut last line is left out.

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
            # A run that was killed while it wrote leaves half a line at the end, nowhere else.
            if place < len(lines) - 1:
                raise ValueError(
                    f'{path}, line {place + 1} is damaged ({error}); resume the run or remove that line'
                ) from None
    return [record for record in records if isinstance(record, dict)]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What was known and planned at one condensation, cut to the run's real points.

    Attributes:
      number: the condensation, from 1.
      value: f32[num_points] in nats, the mean entropy over the visits.
      count: i32[num_points], visits.
      order: i32[num_points], the point at each rank, most valuable first.
      num_keep: points kept: the first of `order`.
      partner: i32[num_points] by point; itself where nothing is mixed in.
      epsilon: f32[num_points] by point, the partner's share of the pixels.
    """

    number: int
    value: np.ndarray
    count: np.ndarray
    order: np.ndarray
    num_keep: int
    partner: np.ndarray
    epsilon: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """bool[num_points]: the value label, whether a point is kept."""
        mask = np.zeros(len(self.value), bool)
        mask[self.order[: self.num_keep]] = True
        return mask


def _read_stage(path: Path, stage: int) -> Stage:
    try:
        with np.load(path, allow_pickle=False) as file:
            points = int(file['num_points'])
            order = np.asarray(file['order'])
            by_point = {name: np.asarray(file[name])[:points] for name in ('value', 'count', 'partner', 'epsilon')}
            num_keep = int(file['num_keep'])
    except Exception as error:  # np.load raises many kinds on a damaged archive
        raise ValueError(f'{path} is damaged ({error}); remove it or run that run again') from None
    # Padding rows never rank before a real point, so the real ones are what is left below num_points.
    order = order[order < points]
    if len(order) != points or not 0 <= num_keep <= points:
        found = f'{len(order)} ranks and {num_keep} kept of {points} points'
        raise ValueError(f'{path} is damaged ({found}); remove it or run that run again')
    return Stage(number=stage, order=order, num_keep=num_keep, **by_point)


def read_stages(run: str | os.PathLike[str], most: int | None = None) -> list[Stage]:
    """The condensations of a run, from <run>/knowledge/stage_<t>.npz, by number; [] where there are none.

    Args:
      run: the run's folder.
      most: read no more than so many, evenly spaced, the first and the last among them (1: the last).

    Raises:
      ValueError: a file is damaged.
    """
    found = []
    for path in (Path(run) / 'knowledge').glob('stage_*.npz'):
        match = re.fullmatch(r'stage_(\d+)\.npz', path.name)
        if match:
            found.append((int(match.group(1)), path))
    found.sort()
    if most is not None and len(found) > most:
        places = np.linspace(0, len(found) - 1, most) if most > 1 else [len(found) - 1]
        found = [found[round(place)] for place in places]
    return [_read_stage(path, stage) for stage, path in found]


def read_points(run: str | os.PathLike[str] | None) -> dict[str, np.ndarray]:
    """What <run>/knowledge/points.npz says of every point at the end of a run; {} where there is none.

    Raises:
      ValueError: the file is damaged.
    """
    path = Path(run or '') / 'knowledge' / 'points.npz'
    if run is None or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # np.load raises many kinds on a damaged archive
        raise ValueError(f'{path} is damaged ({error}); remove it or run that run again') from None


def run_folder(summary: Mapping[str, Any]) -> Path | None:
    """The folder of a collected summary when it is a run's own; None for a copy in a results folder."""
    path = Path(summary.get(FILE, ''))
    return path.parent if path.name == SUMMARY else None


def series(metrics: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of one number of the records of a kind; records without it are left out."""
    pairs = [(number(record, 'epoch'), number(record, name)) for record in metrics if record.get('kind') == kind]
    found = [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]
