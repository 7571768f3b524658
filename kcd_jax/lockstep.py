"""Seeds of one configuration in lockstep: each run in a thread of its own, and one program that takes the steps of all.

A run notices nothing of the others. Its state, its order of the data, its log, its checkpoints and its condensations
are its own, made by the code that makes them when it runs alone. Only the training step is shared: whoever asks for it
waits until all have asked, and then one program takes it for all of them, their states stacked along a new first axis
(`step.run_chunks`). It pays where one small run leaves an accelerator idle: `python -m kcd_jax.bench --rows=seeds`.

A seed's numbers are those that it has alone up to the rounding of sums; they repeat to the bit, through cuts too, with
the same seeds beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from kcd_jax import distributed, sharding, step
from kcd_jax.loop import Loop, Steps
from kcd_jax.spec import TrainState


class Abandoned(Exception):
    """The others were told to stop."""


@dataclasses.dataclass(eq=False)
class _Request:
    """What a run asks for, and its answer: (state, loss), or the error that the program ended with."""

    loop: Loop
    steps: Steps
    answer: Any = None
    error: Exception | None = None
    done: bool = False


class Seat:
    """The place of one run among those in lockstep; `Loop` takes its steps here.

    Attributes:
      number: from 0. size: how many there were at the start.
    """

    def __init__(self, table: Lockstep, number: int, size: int):
        self._table, self.number, self.size = table, number, size

    def take(self, loop: Loop, steps: Steps) -> Any:
        """(the state after the steps, the last one's loss); returns when the others have asked for theirs."""
        return self._table.take(self, _Request(loop, steps))


class Lockstep:
    """The meeting point of the runs."""

    def __init__(self, size: int):
        """`size`: how many runs."""
        self.seats = [Seat(self, number, size) for number in range(size)]
        self._present = set(self.seats)
        self._arrived: set[Seat] = set()
        self._asking: dict[Seat, _Request] = {}
        self._programs: dict[Any, Any] = {}
        self._change = threading.Condition()
        self._abandoned = False

    def take(self, seat: Seat, request: _Request) -> Any:
        """Waits until everybody who is present asks for steps; the last one to come takes them for all."""
        with self._change:
            self._arrived.add(seat)
            self._asking[seat] = request
            self._change.notify_all()
            self._change.wait_for(lambda: request.done or self._abandoned or len(self._asking) == len(self._present))
            if self._abandoned:
                raise Abandoned
            if not request.done:
                self._serve()
                self._change.notify_all()
        if request.error is not None:
            raise request.error
        return request.answer

    def leave(self, seat: Seat) -> None:
        """The run of a seat has ended; the others go on without it."""
        with self._change:
            self._present.discard(seat)
            self._change.notify_all()

    def settled(self, seat: Seat) -> None:
        """Waits until the run of a seat has asked for its first step, or has ended."""
        with self._change:
            self._change.wait_for(lambda: seat in self._arrived or seat not in self._present)

    def abandon(self) -> None:
        """Ends every run at its next step, with `Abandoned`."""
        with self._change:
            self._abandoned = True
            self._change.notify_all()

    def _serve(self) -> None:
        """Takes the steps that are asked for; runs that are in the same phase take as many of them together."""
        groups: dict[Any, list[_Request]] = {}
        for seat in sorted(self._asking, key=lambda seat: seat.number):
            request = self._asking[seat]
            groups.setdefault((request.steps.phase.name, request.steps.length), []).append(request)
        self._asking = {}
        for key, group in groups.items():
            loops = [request.loop for request in group]
            try:
                if (key, len(group)) not in self._programs:
                    self._programs[key, len(group)] = program_for(loops, [request.steps for request in group])
                answers = self._programs[key, len(group)](loops, [request.steps for request in group])
                for request, answer in zip(group, answers, strict=True):
                    request.answer = answer
            except Exception as error:  # whatever ends the program ends every run that is in it
                for request in group:
                    request.error = error
            for request in group:
                request.done = True


_Program = Callable[[Sequence[Loop], Sequence[Steps]], Sequence[tuple[TrainState, jax.Array]]]


def program_for(loops: Sequence[Loop], asked: Sequence[Steps]) -> _Program:
    """The program that takes these steps, and others like them of as many runs."""
    if len(loops) == 1:
        return lambda loops, asked: [loops[0].take(asked[0])]
    start = time.perf_counter()
    loop, steps = loops[0], asked[0]
    resident = isinstance(steps.supply, step.Points)
    loop.traced(steps)  # the first one's costs are everybody's
    states = tuple(sharding.state_shardings(loop.mesh, each.current) for each in asked)
    losses = (sharding.replicated(loop.mesh),) * len(asked)
    function = functools.partial(step.run_chunks, recipe=loop.recipe, phase=steps.phase, length=steps.length)
    jitted = jax.jit(function, donate_argnums=0, out_shardings=(states, losses))

    def arguments(asked: Sequence[Steps]) -> tuple[Any, ...]:
        supply = asked[0].supply if resident else [each.supply for each in asked]
        of_runs = ([each.current for each in asked], [each.order for each in asked], [each.rates for each in asked])
        return *of_runs, supply, loop.teacher_variables

    program = jitted.lower(*arguments(asked)).compile()
    took = time.perf_counter() - start
    for each in loops:
        each.seconds['compile'] += took / each.side_by_side

    def take(loops: Sequence[Loop], asked: Sequence[Steps]) -> Sequence[tuple[TrainState, jax.Array]]:
        for each in loops:
            each.step_costs[steps.phase.name] = loop.step_costs[steps.phase.name]
        return list(zip(*program(*arguments(asked)), strict=True))

    return take


def run(jobs: Sequence[Callable[[Seat], Any]]) -> list[Any]:
    """Runs the jobs side by side, each with its seat; returns what each returned, or the exception that it raised.

    They set themselves up one after the other, so that the second finds what the first has prepared. A SIGTERM reaches
    all of them (`distributed.Notice`).
    """
    lockstep = Lockstep(len(jobs))
    outcomes: list[Any] = [None] * len(jobs)

    def sit(seat: Seat, job: Callable[[Seat], Any]) -> None:
        try:
            outcomes[seat.number] = job(seat)
        except Exception as error:
            outcomes[seat.number] = error
        finally:
            lockstep.leave(seat)

    threads = [
        threading.Thread(target=sit, args=pair, name=f'seed {number}', daemon=True)
        for number, pair in enumerate(zip(lockstep.seats, jobs, strict=True))
    ]
    with distributed.Notice():
        try:
            for seat, thread in zip(lockstep.seats, threads, strict=True):
                thread.start()
                lockstep.settled(seat)
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C comes to this thread alone
            lockstep.abandon()
            raise
    return outcomes
