"""Running averages in continuous time: the past fades by ``exp(-seconds / memory)``. Times are passed in."""

from math import exp, sqrt


class Average:
    """Of samples taken now and then. The first is taken as it is, later ones by the time since the last."""

    def __init__(self, memory: float):
        self.value = 0.0
        self._variance = 0.0
        self._memory = memory
        self._empty = True

    def add(self, sample: float, elapsed: float) -> None:
        """``elapsed``: seconds since the sample before."""
        if self._empty:
            self.value, self._empty = sample, False
            return
        part = 1 - exp(-elapsed / self._memory)
        off = sample - self.value
        self.value += part * off
        self._variance = (1 - part) * (self._variance + part * off * off)

    @property
    def deviation(self) -> float:
        """Standard deviation of the samples, under the same weights as their average."""
        return sqrt(self._variance)


class FadingSum:
    """Of amounts that come one by one; divided by ``memory`` it is their rate a second. O(1) an amount."""

    def __init__(self, memory: float):
        self._memory = memory
        self._sum = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._sum = self.at(now) + amount
        self._at = max(self._at, now)

    def at(self, now: float) -> float:
        return self._sum * exp(-max(0.0, now - self._at) / self._memory)
