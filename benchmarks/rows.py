"""The measurements, one function a group of rows. Each yields its rows as soon as they are known."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import Row, knowledge_speed, methods, scale, streaming, timing
from benchmarks import networks_speed as network_speed
from benchmarks.own import CONFIG, own_run
from kcd_jax import knowledge
from kcd_jax import networks as known_networks
from kcd_jax.contracts import ValueTable
from kcd_jax.runtime import sharding
from kcd_jax.training import macs

PAIRS = (
    'resnet20-resnet8',
    'resnet56-resnet20',
    'wrn_40_2-wrn_16_2',
    'resnet32x4-shufflev2',
    'vgg13-mobilenetv2',
)
BATCH = 64
KD, KCD, UNIX = (f'method=kd,policy={policy}' for policy in ('none', 'kcd', 'unix'))


def _gemm() -> np.ndarray:
    """2 * 1024^3 floating point operations in NumPy."""
    return _MATRIX @ _MATRIX


_MATRIX = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)


def step(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """The training step beside PyTorch's, for the five pairs."""
    with_torch = importlib.util.find_spec('torch') is not None
    defaults, layouts = [], []
    for pair in PAIRS[:2] if quick else PAIRS:
        teacher, student = pair.split('-')
        with own_run(f'{pair},{KCD}', 20 * BATCH, scratch) as run:
            functions: dict[str, Callable[[], Any]] = {'ours': run.step}
            if with_torch:
                import torch

                from benchmarks.torch_loop import TorchStep

                torch.set_num_threads(len(os.sched_getaffinity(0)))
                functions['torch'] = TorchStep(teacher, student, BATCH, False)
                functions['channels_last'] = TorchStep(teacher, student, BATCH, True)
                mine = sum(x.size for x in jax.tree.leaves(run.state.params['student']))
                if functions['torch'].parameters()[1] != mine:
                    raise ValueError(f'{student} has {mine} parameters here and another number in the yardstick')
            ms = timing.alternate({**functions, 'gemm': _gemm}, 3 if quick else 7)
        gflops = 2 * 1024**3 / ms['gemm'] / 1e6
        if not with_torch:
            measured = f'{ms["ours"]:.0f} ms (no torch to compare)'
            yield Row(f'step, {pair}', measured, details={**ms, 'gflops': gflops})
            continue
        defaults.append(ms['torch'] / ms['ours'])
        layouts.append(ms['channels_last'] / ms['ours'])
        measured = f'{ms["ours"]:.0f} ms; torch {ms["torch"]:.0f}, c. last {ms["channels_last"]:.0f}'
        yield Row(
            f'step, {pair} (GEMM {gflops:.0f} GFLOP/s)',
            measured,
            '0.9 times its speed',
            met=defaults[-1] >= 0.9,
            details={**ms, 'gflops': gflops},
        )
    if defaults:
        mean, mean_layout = (math.exp(statistics.mean(map(math.log, ratios))) for ratios in (defaults, layouts))
        measured = f'{mean:.2f} times; {mean_layout:.2f} of channels_last'
        details = {'defaults': mean, 'channels_last': mean_layout, 'pairs': len(defaults)}
        yield Row(
            f'step against PyTorch, geometric mean of {len(defaults)} pairs',
            measured,
            '1.1 times its speed',
            '1.2; level with c. last',
            mean >= 1.1,
            details,
        )


def condense(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """From the value table to the plan, in jit on the default device."""
    del scratch
    sizes = {50_000: ('50 thousand', 5), 1_280_000: ('1.28 million', 100), 14_000_000: ('14 million', 1100)}
    for num_points, (text, target) in list(sizes.items())[: 2 if quick else 3]:
        ms = knowledge_speed.condensation_ms(num_points, 3 if quick else 5)
        yield Row(
            f'condensation in jit, {text} points',
            f'{ms:.1f} ms',
            f'{target} ms',
            f'{target / 2:g} ms',
            ms <= target,
            {'ms': ms},
        )


def record(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """The share of recording and condensing in a run's training time, for the cheapest pair: the largest share."""
    num_points, epochs = 50_000, 240
    mesh = sharding.make_mesh()
    split, whole = sharding.batch(mesh), sharding.replicated(mesh)

    def entropy_and_record(table: ValueTable, index: jax.Array, logits: jax.Array) -> ValueTable:
        return knowledge.record(table, index, knowledge.prediction_entropy(logits))

    compiled = jax.jit(entropy_and_record, donate_argnums=0, out_shardings=split)
    rng = np.random.default_rng(0)
    table = sharding.put(ValueTable.create(num_points), split)
    index = sharding.put(rng.integers(0, num_points, BATCH, np.int32), split)
    logits = sharding.put(rng.normal(size=(BATCH, 100)).astype(np.float32), split)

    def one() -> jax.Array:
        nonlocal table
        table = compiled(table, index, logits)
        return table.value

    with own_run(f'{PAIRS[0]},{KCD}', num_points, scratch) as run:
        policy = run.loop.run.policy
        full = sharding.put(run.state.table, whole)
        replans = [epoch for epoch in range(epochs) if policy.when(epoch, epochs)]

        def replan() -> Any:
            state = run.state
            return policy.replan(state.key, full, state.plan, state.policy_state, replans[-1], epochs)

        ms = timing.alternate({'step': run.step, 'record': one, 'condense': replan}, 5 if quick else 15)
    steps = sum(size // BATCH for size in policy.keep_counts(num_points, epochs))
    share = (steps * ms['record'] + len(replans) * ms['condense']) / (steps * ms['step'])
    yield Row(
        f'recording + condensing, share of training, {PAIRS[0]}',
        f'{100 * share:.2f} % ({ms["record"]:.2f} + {ms["condense"]:.0f} ms)',
        'under 1 %',
        'under 0.3 %',
        share < 0.01,
        ms,
    )


def wall(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """An epoch of KCD at 0.7 N over one of KD at N, beside its cost in samples; and the programs compiled for both."""
    num_points, repeats = (20 * BATCH, 3) if quick else (100 * BATCH, 5)
    num_keep = num_points * 7 // 10
    ratios = []
    with contextlib.ExitStack() as stack:
        kd, kcd = (stack.enter_context(own_run(f'{PAIRS[0]},{words}', num_points, scratch)) for words in (KD, KCD))
        kd.epoch(2 * BATCH)
        kcd.epoch(2 * BATCH)
        for _ in range(repeats):
            whole = timing.seconds(lambda: kd.epoch(num_points))
            ratios.append(timing.seconds(lambda: kcd.epoch(num_keep)) / whole)
        programs = len(kcd.loop.programs)
    cost, found = (num_keep // BATCH) / (num_points // BATCH), statistics.median(ratios)
    yield Row(
        f'wall clock of KCD over KD against its C = {100 * cost:.0f} %',
        f'{100 * found:.1f} % ({100 * (found / cost - 1):+.1f} %)',
        'within 3 %',
        'within 1 %',
        abs(found / cost - 1) <= 0.03,
        {'ratios': ratios, 'cost': cost},
    )
    limit = 1 if kcd.loop.feed.chunk == 1 else 2
    yield Row(
        'compilations of the step over epochs of three sizes',
        str(programs),
        '1 a phase (+1 for the remainder)',
        'the same',
        programs <= limit,
    )


def score(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """A step of UNIX with its scoring pass over one without it, beside what the ledger says of the two."""
    for pair in (PAIRS[0],) if quick else (PAIRS[0], PAIRS[2]):
        with contextlib.ExitStack() as stack:
            words = {'scored': UNIX, 'unscored': f'{UNIX},score=random'}
            runs = {
                name: stack.enter_context(own_run(f'{pair},{of_policy}', 4 * BATCH, scratch))
                for name, of_policy in words.items()
            }
            ms = timing.alternate({name: run.step for name, run in runs.items()}, 5 if quick else 15)
        macs = {name: run.loop.step_costs[run.phase.name].total for name, run in runs.items()}
        counted, timed = (amounts['scored'] / amounts['unscored'] for amounts in (macs, ms))
        yield Row(
            f"UNIX's scoring pass, {pair}: the ledger's step x {counted:.3f}",
            f'x {timed:.3f} ({100 * (timed / counted - 1):+.1f} %)',
            'within 10 %',
            met=abs(timed / counted - 1) <= 0.1,
            details={**ms, **{f'macs_{name}': amount for name, amount in macs.items()}},
        )


def start(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """From the start of the program to the end of its first step, with an empty and a filled compilation cache."""
    words = f'{PAIRS[0] if quick else PAIRS[2]},{KCD}'
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(scratch / 'xla')}
    root = str(CONFIG.parent.parent)
    environment['PYTHONPATH'] = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    for kind, target, ambitious in (('cold', 15, 10), ('warm', 6, 4)):
        command = [sys.executable, '-m', 'benchmarks.first_step', str(time.time()), words, str(scratch / kind)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f'the first step failed: {done.stderr.strip().splitlines()[-1]}')
        seconds = float(done.stdout.split()[-1])
        yield Row(
            f'start to first step, {words.split(",")[0]}, compilation cache {kind}',
            f'{seconds:.1f} s',
            f'{target} s',
            f'{ambitious} s',
            seconds <= target,
            {'seconds': seconds},
        )


def networks(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Images a second of every CIFAR network, forward and in a training step of its own, and its work in each second.

    The resnets' multiply-accumulates a second are the yardstick of the light networks: no less than a quarter of them.
    """
    del scratch
    mesh = sharding.make_mesh()
    yardstick = None
    for name in network_speed.CIFAR[:2] if quick else network_speed.CIFAR:
        found = network_speed.measure(
            name, seconds=0.5 if quick else 1.0, sharding=sharding.batch(mesh), replicated=sharding.replicated(mesh)
        )
        network = known_networks.get(name)(100)
        variables = jax.eval_shape(lambda key, init=network.init: init(key, (32, 32, 3)), jax.random.PRNGKey(0))
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        found_macs = macs.count(lambda v, x, apply=network.apply: apply(v, x, False)[0].logits, variables, image)
        work = found_macs * found.train / 1e9
        yardstick = yardstick or work
        yield Row(
            f'network {name}',
            f'{found.forward:,.0f} / {found.train:,.0f} images/s',
            f'{yardstick / 4:.2f} G MAC/s (has {work:.2f})',
            met=work >= yardstick / 4,
            details={**dataclasses.asdict(found), 'macs': macs},
        )


def gpu(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """A whole run on one H200, from the time of its steps."""
    for pair, target, ambitious in ((PAIRS[2], 10, 4), ('resnet32x4-resnet8x4', 15, 6)):
        name = f'{pair}, 240 epochs of CIFAR-100 on one H200'
        if jax.default_backend() != 'gpu':
            yield Row(name, 'no GPU here', f'{target} min', f'{ambitious} min')
            continue
        num_points = 50_000
        with own_run(f'{pair},{KCD}', num_points, scratch) as run:
            run.epoch(num_points // (10 if quick else 1))  # compiles
            begun = time.perf_counter()
            run.epoch(num_points)
            seconds = time.perf_counter() - begun
            sizes = run.loop.run.policy.keep_counts(num_points, 240)
        minutes = seconds * sum(sizes) / num_points / 60
        yield Row(name, f'{minutes:.1f} min (KC-KD)', f'{target} min', f'{ambitious} min', minutes <= target)


def stream(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Images a second of photographs that are streamed, beside tf.data and what decoding allows; whether steps wait."""
    rates = streaming.measure(128 if quick else 512, 1 if quick else 5, scratch)
    compared, met = '', None
    if 'tf_data' in rates:
        compared = f'; tf.data {rates["tf_data"]:.0f}, its decoder alone {rates["tf_decode"]:.0f}'
        met = rates['ours'] >= 0.9 * rates['tf_data']
    yield Row(
        'photographs of 500 x 375, streamed at 224',
        f'{rates["ours"]:.0f} images/s; its crops alone {rates["bound"]:.0f}; Pillow alone {rates["pillow"]:.0f}'
        + compared,
        "0.9 of tf.data's",
        "tf.data's",
        met,
        rates,
    )
    ms = streaming.waiting(PAIRS[0], 10 if quick else 60, 1 if quick else 5, scratch)
    yield Row(
        f'step of points streamed from memory, {PAIRS[0]}',
        f'{ms["streamed"]:.0f} ms ({ms["waited"]:.1f} to be given a batch); resident {ms["resident"]:.0f}',
        'within 5 % of resident',
        met=ms['streamed'] <= 1.05 * ms['resident'],
        details=ms,
    )


GROUPS: dict[str, Callable[[bool, pathlib.Path], Iterator[Row]]] = {
    'start': start,
    'step': step,
    'record': record,
    'wall': wall,
    'score': score,
    'condense': condense,
    'scale': scale.rows,
    'networks': networks,
    'methods': methods.rows,
    'stream': stream,
    'gpu': gpu,
}
