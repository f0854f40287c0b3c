"""Quantiles of the last values of a quantity. Pure."""

from collections import deque
from math import ceil

_KEPT = 1000


class Recent:
    """The last 1,000 values. Sorted when somebody asks, and not again before another has come."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_KEPT)
        self._sorted: list[float] | None = None

    def add(self, value: float) -> None:
        self._values.append(value)
        self._sorted = None

    def quantile(self, part: float) -> float | None:
        """The smallest value that at least ``part`` (above 0, up to 1) of them do not exceed; None before the
        first."""
        if self._sorted is None:
            self._sorted = sorted(self._values)
        return self._sorted[ceil(part * len(self._sorted)) - 1] if self._sorted else None

    def quantile_ms(self, part: float) -> float | None:
        """Of seconds, in milliseconds."""
        seconds = self.quantile(part)
        return None if seconds is None else seconds * 1000
