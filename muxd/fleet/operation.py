"""What somebody has asked for (a load, an unload, moves): a view of it that goes on whether or not anybody
watches."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, NamedTuple

from muxd.errors import MuxdError
from muxd.fleet.steps import Stage, Step

Kind = Literal["loaded", "unloaded", "moved", "asleep", "woken"]


class WakeTime(NamedTuple):
    """Seconds from the beginning of a load until its model was ready; ``parked``: its weights were in host
    memory."""

    seconds: float
    parked: bool


class Operation:
    """Made and started by the roster, on the daemon's loop; any number of watchers."""

    def __init__(
        self,
        model: str,
        kind: Kind,
        first: Stage,
        *,
        why: str = "",
        patient: bool = False,
        keeps: bool = True,
    ):
        """``why`` is for the record. ``patient``: a model that fails too often is not given up. ``keeps``:
        who sleeps keeps its weights in host memory."""
        self.model = model  # of several the one that was told of last
        self.kind: Kind = kind
        self.why, self.patient, self.keeps = why, patient, keeps
        self.hurry = asyncio.Event()  # set: wait for nobody any more
        self.step = Step(model, first)
        self.errors: list[MuxdError] = []  # why models could not be had, the first one first
        self.woke: WakeTime | None = None  # what a wake has taken
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._over)

    def tell(self, model: str, stage: Stage, done: int = 0, total: int = 0) -> None:
        """How far a model is now."""
        self.model, self.step = model, Step(model, stage, done, total)
        self._wake()

    async def watch(self) -> AsyncIterator[Step]:
        """Every step a watcher is quick enough to see, and the last. Raises the MuxdError it ended with."""
        assert self._task is not None
        while not self._task.done():
            news = self._news
            yield self.step
            await news.wait()
        self._task.result()
        yield self.step

    async def finished(self) -> None:
        """Wait for the end, good or bad."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # a watcher may have left: then nobody else asks
        self._wake()


async def first(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
