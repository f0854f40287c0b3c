"""Whose text is read next, and whose is not let in: a key that floods keeps others waiting for one job. Pure.

Each key has a level, the bytes of it that were begun by its weight, and the lowest level is next. Who comes
with nothing here begins at the level of the last job that was begun: having been away is no credit
(start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_OVER = 2  # times the budget that all keys together may hold


class Texted(Protocol):
    """What waits. ``key``: who pays for it; "": all without a key, None: muxd itself. ``size``: bytes."""

    @property
    def key(self) -> str | None: ...

    @property
    def weight(self) -> float: ...

    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Texted)


@dataclass
class _Payer(Generic[T]):
    level: float
    held: int = 0  # bytes of what waits and of what has been begun
    waiting: deque[T] = field(default_factory=deque)


class TextQueue(Generic[T]):
    """``budget``: bytes that may be held at once."""

    def __init__(self, budget: int):
        self.held = 0
        self._budget = budget
        self._floor = 0.0
        self._payers: dict[str | None, _Payer[T]] = {}

    def __contains__(self, job: T) -> bool:
        payer = self._payers.get(job.key)
        return payer is not None and job in payer.waiting

    def lets_in(self, key: str | None, size: int) -> bool:
        """Within the budget anybody; beyond it who would still hold no more than an even part of it, among
        those that hold something. A job that finds nothing here may be of any size."""
        if self.held + size <= self._budget or not self.held:
            return True
        own = self._payers.get(key)
        mine = (own.held if own is not None else 0) + size
        others = len(self._payers) - (own is not None)
        return mine * (others + 1) <= self._budget and self.held + size <= _OVER * self._budget

    def add(self, job: T) -> None:
        payer = self._payers.setdefault(job.key, _Payer(self._floor))
        payer.waiting.append(job)
        payer.held += job.size
        self.held += job.size

    def order(self) -> Iterator[T]:
        """All that wait, who is next first; nothing may change meanwhile."""
        for payer in sorted(self._payers.values(), key=lambda one: one.level):
            yield from payer.waiting

    def begin(self, job: T) -> None:
        """It waits no longer."""
        payer = self._payers[job.key]
        payer.waiting.remove(job)
        self._floor = max(self._floor, payer.level)
        payer.level += job.size / job.weight

    def again(self, job: T) -> None:
        """What was begun has not been: it is next of its key."""
        payer = self._payers[job.key]
        payer.level -= job.size / job.weight
        payer.waiting.appendleft(job)

    def end(self, job: T) -> None:
        """Nothing of it is here any more, whether it was begun or has left before."""
        payer = self._payers[job.key]
        if job in payer.waiting:
            payer.waiting.remove(job)
        payer.held -= job.size
        self.held -= job.size
        if not payer.held:
            del self._payers[job.key]
