"""Seeds of one configuration in lockstep: each run in a thread of its own, and one program that takes the steps of all.

A run notices nothing of the others. Its state, its order of the data, its log, its checkpoints and its condensations
are its own, made by the code that makes them when it runs alone. Only the training step is shared: whoever asks for it
waits until all have asked, and then one program takes it for all of them, their states stacked along a new first axis
(`step.run_chunks`). It pays where one small run leaves an accelerator idle: `python -m benchmarks --rows=seeds`.

A seed's numbers are those that it has alone up to the rounding of sums. They depend on the number of lanes of the
program and on nothing else: a run that has ended, or was never there, leaves its lane to a copy of another. So a cut
changes nothing, wherever it leaves each seed.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from kcd_jax.contracts import TrainState
from kcd_jax.runtime import distributed, sharding
from kcd_jax.training import step
from kcd_jax.training.loop import Loop, Steps

Answer = tuple[TrainState, jax.Array]  # the state after the steps, and the last one's loss


class Abandoned(Exception):
    """The others were told to stop."""


@dataclasses.dataclass(eq=False)
class _Request:
    """What a run asks for, and its answer, or the error that the program ended with."""

    loop: Loop
    steps: Steps
    answer: Answer | None = None
    error: Exception | None = None
    stop: bool = False

    @property
    def served(self) -> bool:
        return self.answer is not None or self.error is not None


class Seat:
    """The place of one run among those in lockstep; `Loop` takes its steps here.

    Attributes:
      lane: its place in the program, from 0. size: how many runs there are. shows: whether it shows how far it is.
    """

    def __init__(self, lockstep: Lockstep, lane: int, size: int, shows: bool):
        self._lockstep, self.lane, self.size, self.shows = lockstep, lane, size, shows
        self._stop = False

    def take(self, loop: Loop, steps: Steps) -> Answer:
        """The state after the steps and the last one's loss, when the others have asked for theirs too."""
        request = _Request(loop, steps)
        self._lockstep.take(self, request)
        if request.error is not None:
            raise request.error
        self._stop = request.stop
        return request.answer

    def came(self) -> bool:
        """As `distributed.Notice.came`: all runs hear of a SIGTERM after the same step of the program."""
        return self._stop


class Lockstep:
    """The meeting point of the runs."""

    def __init__(self, lanes: Sequence[int], size: int, notice: distributed.Notice):
        """`lanes`: one a run. `size`: lanes of the program. `notice`: that of the thread that hears signals."""
        self.seats = [Seat(self, lane, len(lanes), number == 0) for number, lane in enumerate(lanes)]
        self._size, self._notice = size, notice
        self._present = set(self.seats)
        self._arrived: set[Seat] = set()
        self._asking: dict[Seat, _Request] = {}
        self._programs: dict[Any, Program] = {}
        self._change = threading.Condition()
        self._abandoned = False

    def take(self, seat: Seat, request: _Request) -> None:
        """Waits until everybody who is present asks for steps; the last one to come takes them for all."""
        with self._change:
            self._arrived.add(seat)
            self._asking[seat] = request
            self._change.notify_all()
            self._change.wait_for(lambda: request.served or self._abandoned or len(self._asking) == len(self._present))
            if self._abandoned:
                raise Abandoned
            if not request.served:
                self._serve()
                self._change.notify_all()

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
        groups: dict[Any, dict[int, _Request]] = {}
        stop = self._notice.came()
        for seat, request in self._asking.items():
            request.stop = stop
            groups.setdefault((request.steps.phase.name, request.steps.length), {})[seat.lane] = request
        self._asking = {}
        for key, group in groups.items():
            try:
                if key not in self._programs:
                    self._programs[key] = Program(self._size)
                answers = self._programs[key]({lane: (each.loop, each.steps) for lane, each in group.items()})
                for lane, request in group.items():
                    request.answer = answers[lane]
            except Exception as error:  # whatever ends the program ends every run that is in it
                for request in group.values():
                    request.error = error


class Program:
    """The program of some steps of a phase for `size` runs at once; compiled by its first call."""

    def __init__(self, size: int):
        self.size = size
        self._compiled: Callable[..., Any] | None = None
        self._costs: Mapping[str, Any] = {}
        self._fillers: dict[int, TrainState] = {}

    def __call__(self, asked: Mapping[int, tuple[Loop, Steps]]) -> dict[int, Answer]:
        """The answers by lane. `asked`: at least one run, by lane; their states are donated."""
        loop, steps = asked[min(asked)]
        lanes = []
        for lane in range(self.size):
            if lane in asked:
                lanes.append(asked[lane][1])
                continue
            if lane not in self._fillers:
                self._fillers[lane] = sharding.put(steps.current, sharding.state_shardings(loop.mesh, steps.current))
            lanes.append(dataclasses.replace(steps, current=self._fillers[lane]))
        supply = steps.supply if isinstance(steps.supply, step.Points) else [lane.supply for lane in lanes]
        of_lanes = zip(*((lane.current, lane.order, lane.rates) for lane in lanes), strict=True)
        arguments = *map(list, of_lanes), supply, loop.teacher_variables
        if self._compiled is None:
            self._compile(loop, steps, arguments, [each for each, _ in asked.values()])
        for each, _ in asked.values():
            each.step_costs.update(self._costs)
        answers = dict(enumerate(zip(*self._compiled(*arguments), strict=True)))
        self._fillers = {lane: state for lane, (state, _) in answers.items() if lane not in asked}
        return {lane: answers[lane] for lane in asked}

    def _compile(self, loop: Loop, steps: Steps, arguments: tuple[Any, ...], waiting: Sequence[Loop]) -> None:
        start = time.perf_counter()
        loop.traced(steps)  # what a step costs is the same for all seeds
        self._costs = {steps.phase.name: loop.step_costs[steps.phase.name]}
        states = (sharding.state_shardings(loop.mesh, steps.current),) * self.size
        losses = (sharding.replicated(loop.mesh),) * self.size
        function = functools.partial(step.run_chunks, recipe=loop.recipe, phase=steps.phase, length=steps.length)
        jitted = jax.jit(function, donate_argnums=0, out_shardings=(states, losses))
        self._compiled = jitted.lower(*arguments).compile()
        for each in waiting:
            each.seconds['compile'] += (time.perf_counter() - start) / each.side_by_side


def run(
    jobs: Sequence[Callable[[Seat], Any]], lanes: Sequence[int] | None = None, size: int | None = None
) -> list[Any]:
    """Runs the jobs side by side, each with its seat; returns what each returned, or the exception that it raised.

    They set themselves up one after the other, so that the second finds what the first has prepared. A SIGTERM reaches
    all of them.

    Args:
      jobs: one a run. lanes: of each in the program, by default 0, 1, ... size: lanes of the program, by default as
        many as there are jobs.
    """
    lanes = range(len(jobs)) if lanes is None else lanes
    outcomes: list[Any] = [None] * len(jobs)
    with distributed.Notice() as notice:
        lockstep = Lockstep(lanes, size or len(jobs), notice)

        def sit(number: int) -> None:
            seat = lockstep.seats[number]
            try:
                outcomes[number] = jobs[number](seat)
            except Exception as error:
                outcomes[number] = error
            finally:
                lockstep.leave(seat)

        threads = [threading.Thread(target=sit, args=(number,), daemon=True) for number in range(len(jobs))]
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
