"""How often each model is asked for, and for how much, measured as it happens. Times are passed in.

Rates are ``placement.rates``'s; mean lengths are of exponentially fading sums (``ewma.FadingSum``).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct

from muxd.engine.ewma import FadingSum
from muxd.engine.learnt import MOST, Amount, amount
from muxd.fleet.demand import Demand
from muxd.placement.rates import Rates, Watched
from muxd.placement.replanner import Watch

_LEAST = 1.0  # seconds between looks at the rates: in less, a few requests at once are a jump
_LENGTHS = 5  # mean lengths remember so many times longer than rates


class Usual(Struct, frozen=True, forbid_unknown_fields=True):
    """How much a model is asked for, as fading sums: requests and their tokens, answers and theirs. Raises
    ValueError where lengths are no measurement."""

    rate: Watched = Watched()
    arrivals: Amount = 0.0
    prompts: Amount = 0.0
    ends: Amount = 0.0
    outputs: Amount = 0.0

    def __post_init__(self) -> None:
        if self.prompts > MOST * self.arrivals or self.outputs > MOST * self.ends:
            raise ValueError("prompts, outputs: too much for so few requests")


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
        self._memory = _LENGTHS * watch.memory
        self._lengths: defaultdict[str, _Lengths] = defaultdict(lambda: _Lengths(self._memory))

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

    def records(self, now: float) -> dict[str, Usual]:
        """Of every model that is watched."""
        return {model: self._record(model, now) for model in self._rates.models}

    def _record(self, model: str, now: float) -> Usual:
        one, rate = self._lengths[model], self._rates.learnt(model, now)
        sums = [amount(part.at(now)) for part in (one.arrivals, one.prompts, one.ends, one.outputs)]
        try:
            return Usual(rate, *sums)
        except ValueError:
            return Usual(rate)

    def take_up(self, records: Mapping[str, Usual], now: float) -> None:
        """Go on from what was measured before, of models of which nothing is known yet."""
        for model, usual in records.items():
            self._rates.take_up(model, usual.rate, now)
            one = self._lengths[model] = _Lengths(self._memory)
            one.arrivals.add(usual.arrivals, now)
            one.prompts.add(usual.prompts, now)
            one.ends.add(usual.ends, now)
            one.outputs.add(usual.outputs, now)
        self._known, self._looked = self._rates.look(now), now

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
