"""Folders and summaries of runs, written without running anything."""

from __future__ import annotations

import json

import numpy as np

COST = {
    'student': 1.0,
    'kd': 1.0,
    'random': 0.8171,
    'kcd': 0.8171,
}


def make_summary(
    name, seed, accuracy, *, method='kd', policy=None, dataset='digits', student='resnet8', teacher='resnet20', **more
):
    """A summary.json as a run writes it."""
    policy = {'student': 'none', 'kd': 'none', 'teacher': 'none'}.get(name, name) if policy is None else policy
    method = 'none' if name in ('student', 'teacher') else method
    relative = COST.get(name, 1.0)
    taught = (
        None if method == 'none' else {'network': teacher, 'accuracy': 0.9312, 'source': 'trained', 'sha256': '0' * 64}
    )
    macs = {
        'teacher_forward': 0 if taught is None else 4000,
        'student_forward': 1000,
        'student_backward': 2000,
        'scoring_forward': 0,
        'method': 0,
    }
    summary = {
        'name': name,
        'method': method,
        'policy': policy,
        'seed': seed,
        'trial': seed,
        'dataset': dataset,
        'student': student,
        'commit': 'a1b2c3d',
        'command': 'python -m kcd_jax.main --config=configs/digits_kd.py',
        'versions': {'jax': '0.10.2'},
        'device': {'kind': 'cpu', 'count': 2},
        'run': {'seed': seed, 'data': {'dir': '<none>'}, 'policy': {'name': policy}},
        'teacher': taught,
        'num_points': 300,
        'num_classes': 10,
        'epochs': 6,
        'batch': 32,
        'accuracy': accuracy,
        'best_accuracy': accuracy + 0.01,
        'best_epoch': 5,
        'loss': 0.7,
        'agreement': 0.88,
        'teacher_kl': 0.2,
        'parameters': 78000,
        'evaluated_on': 'test',
        'cost': {
            'scheduled_samples': round(1800 * relative),
            'scheduled_full': 1800,
            'processed_samples': round(1728 * relative),
            'processed_full': 1728,
            'relative_scheduled': relative,
            'relative_processed': relative,
            'steps': 54,
            'macs': {part: round(count * relative) for part, count in macs.items()},
            'macs_full': sum(macs.values()),
        },
        'seconds': {
            'compile': 5.0,
            'train': 10.0 + seed,
            'score': 0.0,
            'condense': 0.1,
            'evaluate': 0.5,
            'total': 16.0 + seed,
        },
        'condensations': [],
    }
    return {**summary, **more}


def make_metrics(epochs=6, final=0.8):
    """The records of metrics.jsonl: accuracy rises in a straight line to `final`."""
    records = []
    for epoch in range(1, epochs + 1):
        records.append(
            {
                'kind': 'train',
                'step': 9 * epoch,
                'epoch': epoch,
                'phase': 'main',
                'lr': 0.05,
                'samples': 288,
                'loss': 2.0 / epoch,
                'ce': 1.0 / epoch,
                'kd': 1.0 / epoch,
                'extra': 0.0,
                'accuracy': 0.9 * final * epoch / epochs,
                'entropy': 1.5 / epoch,
                'time': {'seconds': 1.0},
            }
        )
        records.append(
            {
                'kind': 'eval',
                'step': 9 * epoch,
                'epoch': epoch,
                'accuracy': final * epoch / epochs,
                'loss': 1.0 / epoch,
                'agreement': 0.5,
                'teacher_kl': 0.3,
                'time': {'seconds': 0.1},
            }
        )
    return records


def make_stage(number, num_points=300, keep=0.9, seed=0):
    """The arrays of stage_<number>.npz, with padding rows at the end as a run has them."""
    rng = np.random.default_rng(seed)
    rows = -(-num_points // 512) * 512
    value = np.zeros(rows, np.float32)
    value[:num_points] = rng.gamma(2.0, 0.4, num_points) / number
    count = np.zeros(rows, np.int32)
    count[:num_points] = rng.integers(1, 4, num_points)
    order = np.concatenate([np.argsort(-value[:num_points], kind='stable'), np.arange(num_points, rows)]).astype(
        np.int32
    )
    num_keep = round(num_points * keep**number)
    partner = np.arange(rows, dtype=np.int32)
    epsilon = np.zeros(rows, np.float32)
    mixed = min(num_points - num_keep, num_keep)
    low, dropped = order[num_keep - mixed : num_keep], order[num_keep : num_keep + mixed]
    partner[low], epsilon[low] = dropped, 0.3 * np.arange(1, mixed + 1) / mixed
    return {
        'order': order,
        'num_keep': np.int32(num_keep),
        'partner': partner,
        'epsilon': epsilon,
        'value': value,
        'count': count,
        'num_points': np.int32(num_points),
    }


def write_run(folder, summary, stages=0):
    """Writes a run's folder; returns it."""
    folder.mkdir(parents=True)
    condensations = []
    if stages:
        (folder / 'knowledge').mkdir()
        for number in range(1, stages + 1):
            arrays = make_stage(number, seed=number)
            np.savez(folder / 'knowledge' / f'stage_{number}.npz', **arrays)
            kept = int(arrays['num_keep'])
            condensations.append(
                {
                    'number': number,
                    'of': stages,
                    'epoch': 2 * number - 1,
                    'kept': kept,
                    'augmented': 300 - kept,
                    'readmitted': 3,
                }
            )
    summary = {**summary, 'condensations': condensations}
    (folder / 'summary.json').write_text(json.dumps(summary))
    (folder / 'config.json').write_text(json.dumps(summary['run']))
    lines = make_metrics(final=summary['accuracy']) + [{'kind': 'condensation', **record} for record in condensations]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder
