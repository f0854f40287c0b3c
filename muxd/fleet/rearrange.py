"""Several models change their devices, in the order of ``placement.transition``: two copies of each where
memory permits, else with one parked so that others can go on. Two full devices can swap models so.

One after another, as loads on one machine hinder each other. Nobody stays parked: when a move fails the rest
stays where it is, and who is parked goes on to its new place or back.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from muxd.errors import MuxdError, OutOfMemory, ShuttingDown
from muxd.placement.transition import Load, Park, Step, Transition


class Moving(Protocol):
    """What of ``fleet.move.Move`` is needed."""

    async def run(self) -> None: ...

    async def park(self) -> None: ...

    async def arrive(self) -> None: ...


Told = Callable[[str, Coroutine[Any, Any, None], bool], Coroutine[Any, Any, None]]


class Rearrangement:
    """``run`` once. ``move`` makes the move of a model; ``told(model, work, last)`` does some work of it and
    tells the record, ``last`` of it or not."""

    def __init__(self, order: Transition, move: Callable[[str], Moving], told: Told):
        self._order, self._move, self._told = order, move, told
        self._parked: dict[str, Moving] = {}

    async def run(self) -> None:
        """Raises the MuxdError of the first move that failed, OutOfMemory where the order finds no way."""
        try:
            await self._all()
        except ShuttingDown:
            raise
        except MuxdError:
            await self._nobody_stays_parked()
            raise

    async def _all(self) -> None:
        steps = deque(self._next(self._order.begin))
        while steps:
            steps += await self._do(steps.popleft())

    async def _do(self, step: Step) -> list[Step]:
        model = step.model
        match step:
            case Park():
                move = self._move(model)
                await self._told(model, move.park(), False)
                self._parked[model] = move
                return self._next(lambda: self._order.drained(model))
            case Load() if model in self._parked:
                await self._told(model, self._parked.pop(model).arrive(), True)
                return self._next(lambda: self._order.loaded(model))
        await self._told(model, self._move(model).run(), True)
        # It has drained, too. Nobody is parked for memory that it leaves: the order knows that it goes.
        return self._next(lambda: [*self._order.loaded(model), *self._order.drained(model)])

    def _next(self, tell: Callable[[], list[Step]]) -> list[Step]:
        try:
            return tell()
        except RuntimeError as error:
            raise OutOfMemory(str(error)) from None

    async def _nobody_stays_parked(self) -> None:
        while self._parked:
            model, move = self._parked.popitem()
            try:
                await self._told(model, move.arrive(), True)
            except ShuttingDown:
                raise
            except MuxdError:
                continue  # told; it is where it was, or failed with a reason
