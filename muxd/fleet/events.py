"""The daemon's decisions, in order and bounded: what was loaded, moved, planned, lost or changed, and why.

Model names and numbers only: no prompts, no token ids.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping

from msgspec import Struct

from muxd.engine.trace import Happening, Mark
from muxd.fleet.ring import Ring

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
        self._ring: Ring[Event] = Ring(KEPT)

    def add(
        self,
        kind: Happening,
        model: str = "",
        device: str = "",
        detail: str = "",
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Remember it, and wake who follows."""
        now, seen = self._wall(), dict(numbers or {})
        self._ring.add(lambda number: Event(number, now, kind, model, device, detail, seen))
        if kind in _LOGGED:
            _log.info("%s", " ".join(word for word in (kind, model, device, detail) if word))

    def teller(self, device: str) -> Callable[[Mark], None]:
        """For the journal of the unit of ``device``; "" where it is the only one."""

        def tell(mark: Mark) -> None:
            if mark.kind not in _NOT_TOLD:
                self.add(mark.kind, mark.model, device, mark.detail)

        return tell

    @property
    def last(self) -> int:
        """The number of the newest; 0 before the first."""
        return self._ring.last

    def since(self, number: int = 0, model: str = "") -> list[Event]:
        """Those after ``number`` that are remembered; with ``model`` only its own."""
        return [one for one in self._ring.since(number) if model in ("", one.model)]

    async def follow(self, number: int = 0, model: str = "") -> AsyncGenerator[Event, None]:
        """The same, and then every one that comes; a reader that is too slow misses the oldest."""
        async for one in self._ring.follow(number):
            if model in ("", one.model):
                yield one
