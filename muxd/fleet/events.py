"""The daemon's decisions, in order and bounded: what was loaded, moved, planned, lost or changed, and why.

Model names and numbers only: no prompts, no token ids.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from msgspec import Struct

from muxd.engine.trace import Happening, Mark

_log = logging.getLogger("muxd.events")

KEPT = 2000
_LOGGED = ("replan", "moving", "policy", "quota", "reload")  # the others' rooms log what they do themselves
_NOT_TOLD = ("preempted", "quota moved")  # too many, and in the trace


class Event(Struct, frozen=True):
    """``time``: seconds since 1970. ``numbers``: what the decision was made by, by name."""

    number: int  # ascending, without gaps
    time: float
    kind: Happening
    model: str = ""
    device: str = ""  # "" with one device
    detail: str = ""
    numbers: dict[str, float] = {}


class Events:
    """One per daemon; ``wall`` is seconds since 1970."""

    def __init__(self, wall: Callable[[], float]):
        self._wall = wall
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._count = 0
        self._news = asyncio.Event()

    def add(
        self,
        kind: Happening,
        model: str = "",
        device: str = "",
        detail: str = "",
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Remember it, and wake who follows."""
        self._count += 1
        self._kept.append(Event(self._count, self._wall(), kind, model, device, detail, dict(numbers or {})))
        if kind in _LOGGED:
            _log.info("%s", " ".join(word for word in (kind, model, device, detail) if word))
        self._news.set()
        self._news = asyncio.Event()

    def teller(self, device: str) -> Callable[[Mark], None]:
        """For the journal of the unit of ``device``; "" where it is the only one."""

        def tell(mark: Mark) -> None:
            if mark.kind not in _NOT_TOLD:
                self.add(mark.kind, mark.model, device, mark.detail)

        return tell

    @property
    def last(self) -> int:
        """The number of the newest; 0 before the first."""
        return self._count

    def since(self, number: int = 0, model: str = "") -> list[Event]:
        """Those after ``number`` that are remembered; with ``model`` only its own."""
        return [one for one in self._kept if one.number > number and model in ("", one.model)]

    async def follow(self, number: int = 0, model: str = "") -> AsyncGenerator[Event, None]:
        """The same, and then every one that comes; a reader that is too slow misses the oldest."""
        while True:
            news = self._news
            for one in self.since(number, model):
                number = one.number
                yield one
            await news.wait()


async def until(over: asyncio.Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    """Those that come before ``over`` is set."""
    end = asyncio.ensure_future(over.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(events))
            await asyncio.wait([coming, end], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
                return
            yield coming.result()
    finally:
        end.cancel()
