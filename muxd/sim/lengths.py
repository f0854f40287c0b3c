"""How long prompts and answers are: lognormal after two public data sets or any mean, uniform, constant.

The two data sets are known here by their means only. A lognormal with mean m and shape s has
μ = ln m - s²/2; s = 1.0 is chosen for both, which puts the 99th percentile at 6.2 times the mean, a heavy
tail as chats have. Draws are cut to [4, 1024] (MuxServe's filter for ShareGPT: 4 tokens at least, prompts of
at most 1,024), or at four times a mean that is larger than 256, and μ is then chosen so that the mean after
the cut is m (bisection on a fixed sample).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muxd.errors import ConfigError

Lengths = NDArray[np.int64]
Draw = Callable[[Generator, int], Lengths]  # int64[n], at least 1

SIGMA = 1.0
LONGEST = 10_000_000  # tokens; more is a slip of the pen
_LEAST, _MOST = 4, 1024
_TAIL = 4  # times the mean, where that is more

# Mean tokens in and out of the data sets that MuxServe was measured with.
DATA_SETS = {"sharegpt": (161, 338), "chatlmsys": (100, 261)}


class _OutOfRange(ValueError):
    """A number that is one, and cannot be a length."""


@dataclass(frozen=True)
class LengthModel:
    """How to draw (prompt, answer) lengths, and how to say so in a header."""

    name: str
    prompt: Draw
    output: Draw
    scale: float

    def draw(self, random: Generator, count: int) -> tuple[Lengths, Lengths]:
        return self._scaled(self.prompt(random, count)), self._scaled(self.output(random, count))

    def _scaled(self, drawn: Lengths) -> Lengths:
        longer: Lengths = np.maximum(1, np.rint(drawn * self.scale)).astype(np.int64)
        return longer


def lengths(text: str, *, scale: float = 1.0, key: str = "--lengths") -> LengthModel:
    """``sharegpt``, ``chatlmsys``, ``constant:IN,OUT``, ``uniform:LOW-HIGH,LOW-HIGH`` or
    ``lognormal:MEAN,MEAN``; ``scale`` multiplies what is drawn. Raises ConfigError for anything else, naming
    ``key``."""
    kind, _, rest = text.partition(":")
    try:
        if kind in DATA_SETS and not rest:
            draws = [lognormal(mean) for mean in DATA_SETS[kind]]
        else:
            make = {"constant": _constant, "uniform": _uniform, "lognormal": _lognormal}[kind]
            first, second = rest.split(",")
            draws = [make(first), make(second)]
    except _OutOfRange as error:
        raise ConfigError(f"{key} {text!r}: {error}") from None
    except (KeyError, ValueError):
        raise ConfigError(
            f"{key} {text!r} is not a length distribution; write sharegpt, chatlmsys, constant:128,64, "
            "uniform:16-256,8-64 or lognormal:161,338 (tokens in, tokens out)"
        ) from None
    return LengthModel(text if scale == 1.0 else f"{text} x {scale:g}", draws[0], draws[1], scale)


def lognormal(mean: float, sigma: float = SIGMA, most: int = _MOST) -> Draw:
    """Cut to [4, ``most``], with ``mean`` after the cut. Raises ValueError for a mean outside that range."""
    if not _LEAST < mean < most:
        raise _OutOfRange(f"a mean of {mean:g} tokens is not between {_LEAST} and {most:,}")
    mu = _fitted(mean, sigma, most)
    return lambda random, count: _cut(np.exp(mu + sigma * random.standard_normal(count)), most)


@lru_cache
def _fitted(mean: float, sigma: float, most: int) -> float:
    """μ for which a large fixed sample has the wanted mean after the cut."""
    sample = sigma * np.random.default_rng(0).standard_normal(100_000)
    low, high = float(np.log(_LEAST / 4)), float(np.log(most * 4))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _cut(np.exp(middle + sample), most).mean() < mean else (low, middle)
    return (low + high) / 2


def _cut(values: NDArray[np.float64], most: int) -> Lengths:
    return np.clip(np.rint(values), _LEAST, most).astype(np.int64)


def _lognormal(text: str) -> Draw:
    mean = float(text)
    if not _LEAST < mean < LONGEST / _TAIL:
        raise _OutOfRange(f"a mean of {mean:g} tokens is not between {_LEAST} and {LONGEST // _TAIL:,}")
    return lognormal(mean, most=round(max(_MOST, _TAIL * mean)))


def _constant(text: str) -> Draw:
    value = _tokens(text)
    return lambda random, count: np.full(count, value, np.int64)


def _uniform(text: str) -> Draw:
    first, last = text.split("-")
    low, high = _tokens(first), _tokens(last)
    if low > high:
        raise _OutOfRange(f"{low}-{high} ends below its beginning")
    return lambda random, count: random.integers(low, high + 1, count)


def _tokens(text: str) -> int:
    value = int(text)
    if not 1 <= value <= LONGEST:
        raise _OutOfRange(f"{value} tokens are not between 1 and {LONGEST:,}")
    return value
