"""Time as a dependency: the daemon uses the monotonic clock, the simulator and tests a virtual one."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds from an arbitrary origin, never going backwards."""

    def now(self) -> float: ...


class MonotonicClock:
    """Real time. One process, one clock: intervals are never taken across processes."""

    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """Time that moves only when told to."""

    def __init__(self, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward. Raises ValueError for a negative step."""
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now += seconds
