"""The one law of a device: how long batches take beside each other. Pure; asked for every simulated batch.

A batch alone on its share takes what a table or the roofline says. Of that, its weights and its K and V come
from memory; arithmetic and a part that is fixed (launches) hide the weights as long as they take longer, and
nothing hides K and V, which are read after the matrices (the form of ``analytic``'s roofline):

    seconds(x) = max(rest, fixed + weights * x) + kv * x        rest = seconds(1) - kv

All batches together move at most ``Memory.limit`` bytes a second. Where they would move more, memory serves
everybody ``x`` times as slowly, the same ``x`` for all: the least with which the limit holds. Shares that are
booked twice (more than 100 percent together) are divided: then all takes ``crowd`` times as long.

Simulator, estimator, `muxd profile` and the published benchmarks know no other effect of a neighbour.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from msgspec import Struct

_ROUNDS = 60  # of the search; five or so are needed
_CLOSE = 1e-9  # of the limit

# Of a batch: its seconds without K and V, and ``Parts`` from ``fixed`` on.
_Term = tuple[float, float, float, float, float]


class Memory(Struct, frozen=True):
    """Of a device, in bytes a second. ``limit``: all batches together. ``reached``: one batch alone on
    ``shares`` percent, ascending, straight lines between them."""

    limit: float
    shares: list[int]
    reached: list[float]

    def alone(self, share: int) -> float:
        """Bytes a second of one batch on ``share`` percent. Beyond the measured shares: the nearest one's."""
        shares, reached = self.shares, self.reached
        if len(shares) == 1 or share <= shares[0]:
            return reached[0]
        i = min(bisect_right(shares, share) - 1, len(shares) - 2)
        part = min(1.0, (share - shares[i]) / (shares[i + 1] - shares[i]))
        return reached[i] + part * (reached[i + 1] - reached[i])


class Parts(NamedTuple):
    """One batch on its share: ``seconds`` alone, in it what reading ``weights`` and ``kv`` takes, and what is
    ``fixed``. ``moved``: bytes."""

    seconds: float
    fixed: float
    weights: float
    kv: float
    moved: float


def parts(seconds: float, fixed: float, weights: float, kv: float, speed: float) -> Parts:
    """``weights`` and ``kv``: bytes; ``speed``: what one batch reaches on this share, bytes a second.

    A batch that was measured faster than its bytes could come at ``speed`` had some of them in a cache: it
    counts as nothing but reading.
    """
    moved = weights + kv
    if moved < 1.0:  # less than a byte is none, and could vanish where it is divided
        return Parts(seconds, seconds, 0.0, 0.0, 0.0)
    if moved / seconds > speed:
        speed = moved / seconds
    rest = seconds - moved / speed
    if rest < fixed:
        fixed = rest if rest > 0.0 else 0.0
    return Parts(seconds, fixed, weights / speed, kv / speed, moved)


def stretch(batches: Sequence[Parts], limit: float, crowd: float = 1.0) -> float:
    """The least ``x``, at least 1, with which all together move no more than ``limit`` bytes a second.

    Newton's steps, kept inside a bracket: where a batch stops hiding its weights the slope jumps.
    """
    limit *= crowd
    terms = [(seconds - kv, fixed, weights, kv, moved) for seconds, fixed, weights, kv, moved in batches]
    speed, slope = _speed(terms, 1.0)
    if speed <= limit * (1.0 + _CLOSE):
        return 1.0
    # Nobody is faster than a batch that does nothing but read.
    low, high = 1.0, sum([moved / (weights + kv) for _, _, weights, kv, moved in terms if moved]) / limit
    least = limit * (1.0 - _CLOSE)
    x = 1.0
    for _ in range(_ROUNDS):
        guess = x - (speed - limit) / slope if slope else high
        x = guess if low < guess < high else sqrt(low * high)
        speed, slope = _speed(terms, x)
        if least <= speed <= limit:
            return x
        if speed > limit:
            low = x
        else:
            high = x
    return high


def _speed(terms: Sequence[_Term], x: float) -> tuple[float, float]:
    """Bytes a second of all, and how that changes with ``x``."""
    speed = slope = 0.0
    for rest, fixed, weights, kv, moved in terms:
        reading = fixed + weights * x
        if reading >= rest:
            took = reading + kv * x
            slope -= moved * (kv + weights) / (took * took)
        else:
            took = rest + kv * x
            slope -= moved * kv / (took * took)
        speed += moved / took
    return speed, slope


def factors(batches: Sequence[Parts], memory: Memory | None, crowd: float = 1.0) -> list[float]:
    """How many times as long each takes beside the others as alone. ``memory``: None where nobody knows what
    the device can do; then only shares that are booked twice cost anything."""
    x = 1.0 if memory is None else stretch(batches, memory.limit, crowd)
    if x == 1.0:
        return [crowd] * len(batches)
    found = []
    for seconds, fixed, weights, kv, _ in batches:
        rest, reading = seconds - kv, fixed + weights * x
        found.append(crowd * ((reading if reading > rest else rest) + kv * x) / seconds)
    return found
