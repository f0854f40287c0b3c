"""Rates of requests as they are measured: slow where nothing changes, quick where it does. Pure.

A fading mean of memory ``M`` has a standard deviation of sqrt(rate / 2M): long memories are quiet and late.
So the past is forgotten by evidence: at every look the arrivals since the last one are compared with what the
mean predicts, and where Poisson arrivals would hardly do that, the mean begins anew from them. A mean that
began ``t`` seconds ago is divided by the seconds it really remembers, M (1 - exp(-t / M)).
"""

from math import exp, sqrt

from msgspec import Struct


class _Model(Struct):
    sum: float  # fading
    since: float  # when its mean began
    count: int = 0  # arrivals since the last look


class Rates:
    """``memory``: seconds. ``surprise``: standard deviations off that make a mean begin anew.

    The square root of a Poisson number has a standard deviation of about 1/2 whatever its mean, so
    2 |sqrt(n) - sqrt(expected)| is the distance in deviations (Anscombe, 1948). Raises KeyError for models
    that are not in ``first``, the rates believed at ``now``.
    """

    def __init__(self, first: dict[str, float], memory: float, surprise: float = 4.0, now: float = 0.0):
        self._memory, self._surprise = memory, surprise
        self._looked = now
        # As if it had been watched for long: the first rates are believed.
        self._models = {name: _Model(rate * memory, float("-inf")) for name, rate in first.items()}

    def arrived(self, model: str) -> None:
        self._models[model].count += 1

    def look(self, now: float) -> dict[str, float]:
        """Requests a second of every model. Looks that are further apart see slower, not worse."""
        seconds = now - self._looked
        if seconds > 0:
            self._looked = now
            for model in self._models.values():
                self._fold(model, seconds, now)
        return {name: self._rate(model, now) for name, model in self._models.items()}

    def _fold(self, model: _Model, seconds: float, now: float) -> None:
        expected = self._rate(model, now - seconds) * seconds
        anscombe = 2 * abs(sqrt(model.count + 0.375) - sqrt(expected + 0.375))
        if anscombe > self._surprise:
            model.sum, model.since = 0.0, now - seconds
        # Arrivals count as if they came evenly since the last look.
        fade = exp(-seconds / self._memory)
        model.sum = model.sum * fade + model.count * self._memory / seconds * (1 - fade)
        model.count = 0

    def _rate(self, model: _Model, now: float) -> float:
        remembered = self._memory * (1 - exp(-(now - model.since) / self._memory))
        return model.sum / remembered if remembered > 0 else 0.0
