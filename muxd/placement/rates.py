"""Rates of requests as they are measured: slow where nothing changes, quick where it does. Pure.

A fading mean of memory ``M`` has a standard deviation of sqrt(rate / 2M): long memories are quiet and late.
So the past is forgotten by evidence: at every look the arrivals since the last one are compared with what the
mean predicts, and where Poisson arrivals would hardly do that, the mean begins anew from them. A mean that
began ``t`` seconds ago is divided by the seconds it really remembers, M (1 - exp(-t / M)).
"""

from collections.abc import Mapping, Set
from math import exp, sqrt

from msgspec import Struct

from muxd.engine.learnt import Amount, amount


class Watched(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one model's rate: the fading sum, and for how many seconds its mean has been going."""

    sum: Amount = 0.0
    seconds: Amount = 0.0


class _Model(Struct):
    sum: float  # fading
    since: float  # when its mean began
    looked: float
    count: int = 0  # arrivals since it was last looked at


class Rates:
    """``memory``: seconds. ``surprise``: standard deviations off that make a mean begin anew.

    The square root of a Poisson number has a standard deviation of about 1/2 whatever its mean, so
    2 |sqrt(n) - sqrt(expected)| is the distance in deviations (Anscombe, 1948). ``first``: the rates believed
    at ``now``. Raises KeyError for models that are neither there nor have entered.
    """

    def __init__(self, first: Mapping[str, float], memory: float, surprise: float = 4.0, now: float = 0.0):
        self._memory, self._surprise = memory, surprise
        # As if it had been watched for long: the first rates are believed.
        self._models = {name: _Model(rate * memory, float("-inf"), now) for name, rate in first.items()}

    @property
    def models(self) -> Set[str]:
        return self._models.keys()

    def enter(self, model: str, now: float) -> None:
        """Watch one model more; nothing is believed of it, nor is the time before taken for silence."""
        self._models[model] = _Model(0.0, now, now)

    def leave(self, model: str) -> None:
        del self._models[model]

    def learnt(self, model: str, now: float) -> Watched:
        """Arrivals since the last look are not in it."""
        one = self._models[model]
        # To the millisecond: differences of a clock's readings are no more exact.
        return Watched(amount(one.sum), round(amount(now - one.since), 3))

    def take_up(self, model: str, watched: Watched, now: float) -> None:
        """Go on from there; the time between is not taken for silence."""
        self._models[model] = _Model(watched.sum, now - watched.seconds, now)

    def arrived(self, model: str) -> None:
        self._models[model].count += 1

    def look(self, now: float) -> dict[str, float]:
        """Requests a second of every model. Looks that are further apart see slower, not worse."""
        for model in self._models.values():
            if now > model.looked:
                self._fold(model, now - model.looked, now)
        return {name: self._rate(model, now) for name, model in self._models.items()}

    def _fold(self, model: _Model, seconds: float, now: float) -> None:
        expected = self._rate(model, now - seconds) * seconds
        anscombe = 2 * abs(sqrt(model.count + 0.375) - sqrt(expected + 0.375))
        if anscombe > self._surprise:
            model.sum, model.since = 0.0, now - seconds
        # Arrivals count as if they came evenly since the last look.
        fade = exp(-seconds / self._memory)
        model.sum = model.sum * fade + model.count * self._memory / seconds * (1 - fade)
        model.count, model.looked = 0, now

    def _rate(self, model: _Model, now: float) -> float:
        remembered = self._memory * (1 - exp(-(now - model.since) / self._memory))
        return model.sum / remembered if remembered > 0 else 0.0
