"""How long prompts and answers are: lognormal after two public data sets, uniform, constant.

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
_LEAST, _MOST = 4, 1024
_TAIL = 4  # times the mean, where that is more

# Mean tokens in and out of the data sets that MuxServe was measured with.
DATA_SETS = {"sharegpt": (161, 338), "chatlmsys": (100, 261)}


@dataclass(frozen=True)
class LengthModel:
    """How to draw (prompt, answer) lengths, and how to say so in a header."""

    name: str
    prompt: Draw
    output: Draw

    def draw(self, random: Generator, count: int) -> tuple[Lengths, Lengths]:
        return self.prompt(random, count), self.output(random, count)


def lengths(text: str, *, scale: float = 1.0) -> LengthModel:
    """``sharegpt``, ``chatlmsys``, ``constant:IN,OUT``, ``uniform:LOW-HIGH,LOW-HIGH`` or
    ``lognormal:MEAN,MEAN``; ``scale`` multiplies both. Raises ConfigError for anything else."""
    kind, _, rest = text.partition(":")
    try:
        if kind in DATA_SETS and not rest:
            draws = [lognormal(mean * scale) for mean in DATA_SETS[kind]]
        else:
            make = {"constant": _constant, "uniform": _uniform, "lognormal": _lognormal}[kind]
            first, second = rest.split(",")
            draws = [make(first, scale), make(second, scale)]
    except (KeyError, ValueError):
        raise ConfigError(
            f"--lengths {text!r} is not a length distribution; write sharegpt, chatlmsys, constant:128,64, "
            "uniform:16-256,8-64 or lognormal:161,338 (tokens in, tokens out)"
        ) from None
    return LengthModel(text if scale == 1.0 else f"{text} x {scale:g}", draws[0], draws[1])


def lognormal(mean: float, sigma: float = SIGMA, most: int = _MOST) -> Draw:
    """Cut to [4, ``most``], with ``mean`` after the cut. Raises ValueError for a mean outside that range."""
    if not _LEAST < mean < most:
        raise ValueError(f"mean {mean}")
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


def _lognormal(text: str, scale: float) -> Draw:
    mean = float(text) * scale
    return lognormal(mean, most=round(max(_MOST, _TAIL * mean)))


def _constant(text: str, scale: float) -> Draw:
    value = max(1, round(int(text) * scale))
    if int(text) < 1:
        raise ValueError(text)
    return lambda random, count: np.full(count, value, np.int64)


def _uniform(text: str, scale: float) -> Draw:
    low, high = (max(1, round(int(part) * scale)) for part in text.split("-"))
    if low > high:
        raise ValueError(text)
    return lambda random, count: random.integers(low, high + 1, count)
