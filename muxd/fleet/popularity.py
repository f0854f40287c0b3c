"""How often each model is asked for, and for how much, measured as it happens. Times are passed in.

Rates are ``placement.rates``'s; mean lengths are of exponentially fading sums (``ewma.FadingSum``).
"""

from collections import defaultdict
from collections.abc import Iterable

from muxd.engine.ewma import FadingSum
from muxd.fleet.demand import Demand
from muxd.placement.rates import Rates
from muxd.placement.replanner import Watch

_LEAST = 1.0  # seconds between looks at the rates: in less, a few requests at once are a jump
_LENGTHS = 5  # mean lengths remember so many times longer than rates


class _Lengths:
    def __init__(self, memory: float):
        self.arrivals, self.prompts = FadingSum(memory), FadingSum(memory)
        self.ends, self.outputs = FadingSum(memory), FadingSum(memory)


class Popularity:
    """``began``: when the counting did."""

    def __init__(self, watch: Watch, began: float):
        self._rates = Rates({}, watch.memory, watch.surprise)
        self._looked = began
        self._known: dict[str, float] = {}  # rates at the last look
        memory = _LENGTHS * watch.memory
        self._lengths: defaultdict[str, _Lengths] = defaultdict(lambda: _Lengths(memory))

    def arrived(self, model: str, prompt_tokens: int, now: float) -> None:
        """One request more, whether or not it is served."""
        self._watch(model)
        self._rates.arrived(model)
        lengths = self._lengths[model]
        lengths.arrivals.add(1, now)
        lengths.prompts.add(prompt_tokens, now)

    def ended(self, model: str, output_tokens: int, now: float) -> None:
        """An answer has ended; a longer one was perhaps wanted."""
        lengths = self._lengths[model]
        lengths.ends.add(1, now)
        lengths.outputs.add(output_tokens, now)

    def look(self, models: Iterable[str], now: float) -> dict[str, Demand]:
        """Of these models; what is known of others is forgotten. Within a second rates stay as they were."""
        wanted = list(models)
        for gone in self._rates.models - set(wanted):
            self._rates.leave(gone)
            self._lengths.pop(gone, None)
        for model in wanted:
            self._watch(model)
        if now - self._looked >= _LEAST:
            self._known, self._looked = self._rates.look(now), now
        return {model: self._demand(model, now) for model in wanted}

    def _watch(self, model: str) -> None:
        """It came after the last look, or has been there since the beginning."""
        if model not in self._rates.models:
            self._rates.enter(model, self._looked)

    def _demand(self, model: str, now: float) -> Demand:
        lengths = self._lengths[model]
        arrivals, ends = lengths.arrivals.at(now), lengths.ends.at(now)
        return Demand(
            self._known.get(model, 0.0),
            lengths.prompts.at(now) / arrivals if arrivals > 0 else 0.0,
            lengths.outputs.at(now) / ends if ends > 0 else 0.0,
        )
