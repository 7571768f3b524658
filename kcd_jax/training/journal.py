"""What a run records: condensations, epochs, evaluations, stage files and the final summary."""

from __future__ import annotations

import base64
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kcd_jax.contracts import Plan, TrainState
from kcd_jax.data import Split
from kcd_jax.runtime import distributed, environment, files, runlog, sharding
from kcd_jax.training import ledger, state
from kcd_jax.training.run import Run
from kcd_jax.training.trainer import EpochReport, Trainer, student_variables

MANY = 60  # condensations; beyond that, only every tenth is printed


@dataclasses.dataclass
class Journal:
    """The records of one run, part of every checkpoint.

    Attributes:
      run: what is trained.
      log: its files and lines.
      condensations: {'number', 'of', 'epoch', 'kept', 'augmented', 'readmitted'} of each so far.
      evaluations: {'epoch', 'accuracy', 'loss', ...} of each so far.
    """

    run: Run
    log: runlog.RunLog
    condensations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def epoch(self, current: TrainState, epoch: int, report: EpochReport, visits: Sequence[int]) -> None:
        """Records what an epoch of training did; `epoch` counts from 1, `visits` are by class, () without labels."""
        self.log.record(
            {
                'kind': 'train',
                'step': int(current.step),
                'epoch': epoch,
                'phase': report.phase.name,
                'lr': report.lr,
                'samples': report.samples,
                'kept': report.kept,
                **report.means,
                'time': {'seconds': report.seconds},
            }
        )
        if report.phase.record and visits:
            self.log.record({'kind': 'visits', 'step': int(current.step), 'epoch': epoch, 'by_class': visits})

    def evaluation(self, current: TrainState, epoch: int, report: EpochReport, result: Mapping[str, float]) -> None:
        """Records an evaluation after `epoch` epochs; `report` is of the last one."""
        self.evaluations.append({'epoch': epoch, **result})
        self.log.record({'kind': 'eval', 'step': int(current.step), 'epoch': epoch, **result})
        loss = f'loss {report.means["loss"]:.3f}, ' if 'loss' in report.means else ''
        self.log.say(
            f'epoch {epoch}/{len(self.run.epochs)}: {loss}{headline(result)}, learning rate '
            f'{report.lr:.3g}, {report.samples / max(report.seconds, 1e-9):,.0f} images/s'
        )

    def condensation(self, before: Plan, current: TrainState, epoch: int) -> None:
        """Records a condensation after `epoch` epochs and writes its stage file; `before` is the plan it replaced."""
        plan, num_points = jax.device_get(current.plan), self.run.num_points
        number = len(self.condensations) + 1
        total = len(self.run.condensations)
        entry = {
            'number': number,
            'of': total,
            'epoch': epoch,
            'kept': int(plan.num_keep),
            'augmented': int(np.count_nonzero(plan.epsilon[:num_points])),
            'readmitted': int(np.count_nonzero(_kept(plan) > _kept(before))),
        }
        self.condensations.append(entry)
        self.log.record({'kind': 'condensation', 'step': int(current.step), **entry})
        table = sharding.to_host(current.table, copy=False)
        self.log.write_arrays(
            f'knowledge/stage_{number}.npz',
            order=plan.order,
            num_keep=plan.num_keep,
            partner=plan.partner,
            epsilon=plan.epsilon,
            value=table.value,
            count=table.count,
            num_points=np.int32(num_points),
        )
        if total <= MANY or number % 10 == 0:
            self.log.say(
                f'condensation {number}/{total} after epoch {epoch}: kept {entry["kept"]:,} of {num_points:,}, '
                f'{entry["augmented"]:,} augmented, {entry["readmitted"]:,} re-admitted'
            )

    def points(self, current: TrainState, read: Mapping[str, Any], split: Split) -> dict[str, Any]:
        """Writes knowledge/points.npz, the final record of every training point.

        Args:
          current: the final state.
          read: of `Trainer.read`.
          split: the held-out images.

        Returns:
          {'class_accuracy': of each class, None for a class without held-out images, 'right': of `right_answers`}; each
          None if those have no labels, or the student predicts nothing.
        """
        data, table = self.run.data, sharding.to_host(current.table)
        count = len(data.train)
        arrays = {'value': table.value[:count], 'count': table.count[:count]}
        arrays |= {'labels': data.train.labels} if data.labelled else {}
        arrays |= {name: read[name] for name in ('entropy', 'teacher_entropy') if read[name] is not None}
        self.log.write_arrays('knowledge/points.npz', **arrays)
        if not (data.scored and self.run.predicts):
            return {'class_accuracy': None, 'right': None}
        logits, labels = read['logits'], split.labels
        return {
            'class_accuracy': class_accuracy(logits, labels, data.num_classes),
            'right': right_answers(logits, labels, split.ids),
        }


def class_accuracy(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """[K]: accuracy per class; None for a class without images."""
    hit = np.argmax(logits, axis=-1) == labels
    of_class = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, hit, minlength=num_classes)
    return [float(right / count) if count else None for right, count in zip(hits, of_class, strict=True)]


def right_answers(logits: np.ndarray, labels: np.ndarray, ids: np.ndarray | None) -> dict[str, Any]:
    """Which held-out images are classified right, for statistics over test points.

    Args:
      logits: f32[M, K].
      labels: i32[M].
      ids: str[M], or None. If all points are shown several times, one draw after the other, their ids repeat.

    Returns:
      {'points': number of different points P, 'images': M, 'bits': one bit per image, `numpy.packbits` in base64};
      image i shows point i % P.

    >>> right_answers(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), None)
    {'points': 3, 'images': 3, 'bits': 'wA=='}
    """
    points = len(labels) if ids is None else len(set(ids.tolist()))
    if ids is not None and not np.array_equal(ids, np.resize(ids[:points], len(ids))):
        points = len(labels)
    right = np.argmax(logits, axis=-1) == labels
    return {'points': points, 'images': len(labels), 'bits': base64.b64encode(np.packbits(right)).decode()}


def measure(result: Mapping[str, Any]) -> str:
    """What an evaluation is judged by: its accuracy, or, without labels, agreement with the teacher or the cosine.

    '' before the last epoch of embeddings that are judged at the end alone.
    """
    return next((name for name in ('accuracy', 'agreement', 'cosine') if result.get(name) is not None), '')


def headline(result: Mapping[str, Any]) -> str:
    """'accuracy 93.80 %', 'agreement 95.04 %', 'cosine 0.871' or 'measured after the last epoch'."""
    name = measure(result)
    if not name:
        return 'measured after the last epoch'
    return f'{name} {100 * result[name]:.2f} %' if name in ('accuracy', 'agreement') else f'{name} {result[name]:.3f}'


def lost_stage(workdir: pathlib.Path, condensations: Sequence[Mapping[str, Any]]) -> str:
    """The first stage file of a checkpoint's condensations that cannot be read, or ''."""
    paths = (workdir / 'knowledge' / f'stage_{entry["number"]}.npz' for entry in condensations)
    return next((f'{path.parent.name}/{path.name}' for path in paths if not files.is_whole_npz(path)), '')


def summary(
    journal: Journal,
    trainer: Trainer,
    current: TrainState,
    *,
    description: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    held_out: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
      journal, trainer, current: of the finished run.
      description: of the run as it was asked for (`Run.describe`).
      teacher: the teacher's card with its accuracy, or None.
      held_out: of `Journal.points`; None for what was not found out.
      seconds: wall clock of the whole run, resumed parts included.
    """
    run, last = journal.run, journal.evaluations[-1]
    cost = ledger.summary(trainer.tally, run)
    judged = measure(last)
    best = max(journal.evaluations, key=lambda entry: entry.get(judged, -1.0))
    return {
        'name': run.name,
        'method': run.method.name or 'custom',
        'policy': run.policy.name or 'custom',
        'seed': run.seed,
        'dataset': run.data.name,
        'student': run.student_network.name,
        'num_points': run.num_points,
        'num_classes': run.data.num_classes,
        'epochs': len(run.epochs),
        'batch': run.recipe.batch,
        'parameters': state.parameter_count(student_variables(current)),
        'evaluated_on': 'validation' if run.data.validation else 'test',
        'measure': judged,
        'value': 'entropy' if run.predicts else 'loss',  # what is recorded of a point, unless the policy says otherwise
        'accuracy': last.get('accuracy'),
        'top5_accuracy': last.get('top5_accuracy'),
        'raw_accuracy': last.get('raw_accuracy'),  # of the student without the average of Recipe.ema
        'loss': last.get('loss'),
        'agreement': last.get('agreement'),
        'teacher_kl': last.get('teacher_kl'),
        'cosine': last.get('cosine'),
        'knn_accuracy': last.get('knn_accuracy'),  # of embeddings; their accuracy is that of a linear probe
        'best_accuracy': best.get('accuracy'),
        'best_epoch': best['epoch'],
        **held_out,
        'teacher': teacher,
        'cost': cost,
        'computed': ledger.computed(cost, distributed.summed(trainer.teacher_rows), trainer.taught_in_step),
        'seconds': {**trainer.seconds, 'total': seconds},
        'condensations': journal.condensations,
        'run': description,
        'command': environment.command(sys.argv),
        **environment.describe(),
    }


def card(content: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The card of a student's file (`teacher.save`), from the summary of its run."""
    kept = (
        'dataset accuracy best_accuracy evaluated_on num_classes seed epochs method policy command commit run'.split()
    )
    teacher, cost = content['teacher'], content['cost']
    return {
        'network': run.student_network.name,
        'image_shape': list(run.data.image_shape),
        'class_names': list(run.data.class_names),
        'teacher': teacher and {key: teacher.get(key) for key in ('network', 'accuracy')},
        'cost': {'macs': sum(cost['macs'].values()), 'relative_macs': cost['relative_macs']},
        **{key: content[key] for key in kept},
    }


def _kept(plan: Plan) -> np.ndarray:
    """bool[N] by point: whether it is trained on."""
    order, num_keep = jax.device_get((plan.order, plan.num_keep))
    kept = np.zeros(len(order), bool)
    kept[order[:num_keep]] = True
    return kept
