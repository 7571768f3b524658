"""Several seeds of a run in one program (`kcd_jax.lockstep`), against the same seeds one after the other."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import Row, timing
from benchmarks.own import OwnRun, own_run
from kcd_jax.training import lockstep
from kcd_jax.training.loop import Steps

SEEDS = 3
PAIRS = ('resnet20-resnet8', 'wrn_40_2-wrn_16_2')


class _Seed:
    """A run, and what it asks for: as many steps as a program of this machine has."""

    def __init__(self, run: OwnRun):
        self.run, self.loop, self.phase = run, run.loop, run.phase
        self.order = self.loop.order(run.state.key, run.state.plan, jnp.int32(0))
        self.rates = self.loop.rates(run.phase, 0)

    def asked(self) -> Steps:
        points = self.loop.feed.points
        return Steps(self.run.state, self.order, self.rates, points, self.phase, self.loop.feed.chunk)


def rows(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Milliseconds a step and seed, both ways; above 1 the sweep's `--together` pays on this machine."""
    for pair in PAIRS[:1] if quick else PAIRS:
        with contextlib.ExitStack() as stack:
            words = f'{pair},policy=kcd'
            runs = [stack.enter_context(own_run(f'{words},seed={seed}', 2048, scratch)) for seed in range(SEEDS)]
            seeds = [_Seed(run) for run in runs]
            program = lockstep.Program(SEEDS)

            def together(seeds=seeds, program=program) -> list[jax.Array]:
                answers = program({lane: (seed.loop, seed.asked()) for lane, seed in enumerate(seeds)})
                for lane, seed in enumerate(seeds):
                    seed.run.state = answers[lane][0]
                return [loss for _, loss in answers.values()]

            def in_turn(seeds=seeds) -> list[jax.Array]:
                losses = []
                for seed in seeds:
                    seed.run.state, loss = seed.loop.take(seed.asked())
                    losses.append(loss)
                return losses

            ms = timing.alternate({'together': together, 'in_turn': in_turn}, 2 if quick else 5)
            each = {name: value / (SEEDS * seeds[0].loop.feed.chunk) for name, value in ms.items()}
        speed = each['in_turn'] / each['together']
        yield Row(
            f'{SEEDS} seeds in one program, {pair}',
            f'{speed:.2f} times the speed of one after the other',
            details={**each, 'seeds': SEEDS, 'speed': speed},
        )
