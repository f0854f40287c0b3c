"""How often each model is asked for, and for how much, measured as it happens. Pure; times are passed in.

Exponentially fading sums (``ewma.FadingSum``). The past that is not there yet is not counted as silence: a
young sum is divided by what it can have gathered so far.
"""

from collections import defaultdict
from math import exp

from msgspec import Struct

from muxd.engine.ewma import FadingSum


class Demand(Struct, frozen=True):
    """``rate`` in requests a second; mean tokens of prompts and answers, 0 where there were none."""

    rate: float
    prompt: float
    output: float


class _Sums:
    def __init__(self, memory: float):
        self.arrivals, self.prompts = FadingSum(memory), FadingSum(memory)
        self.ends, self.outputs = FadingSum(memory), FadingSum(memory)


class Popularity:
    """``memory``: seconds in which the past fades to 1/e. ``began``: when the counting did."""

    def __init__(self, memory: float, began: float):
        self._memory, self._began = memory, began
        self._sums: defaultdict[str, _Sums] = defaultdict(lambda: _Sums(memory))

    def arrived(self, model: str, prompt_tokens: int, now: float) -> None:
        """One request more, whether or not it is served."""
        sums = self._sums[model]
        sums.arrivals.add(1, now)
        sums.prompts.add(prompt_tokens, now)

    def ended(self, model: str, output_tokens: int, now: float) -> None:
        """An answer has ended; a longer one was perhaps wanted."""
        sums = self._sums[model]
        sums.ends.add(1, now)
        sums.outputs.add(output_tokens, now)

    def demand(self, model: str, now: float) -> Demand:
        """As it is at ``now``; all 0 for a model nobody has asked for."""
        sums = self._sums.get(model)
        if sums is None:
            return Demand(0.0, 0.0, 0.0)
        arrivals, ends = sums.arrivals.at(now), sums.ends.at(now)
        span = self._memory * (1 - exp(-max(0.0, now - self._began) / self._memory))
        return Demand(
            arrivals / span if span > 0 else 0.0,
            sums.prompts.at(now) / arrivals if arrivals > 0 else 0.0,
            sums.outputs.at(now) / ends if ends > 0 else 0.0,
        )
