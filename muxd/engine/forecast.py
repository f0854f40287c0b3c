"""When would this request get its first token? An estimate from what waits ahead, learned from what has run.

Pure. The scheduler shows it every event (``observe``) and asks it at arrival (``refusal``) when admission is
"slo". It knows no hardware: prefill speed, step time and stay are averages of what it saw, so they hold the
costs of neighbours, of turns and of Python too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import ceil, sqrt

from msgspec import Struct

from muxd.engine.actions import (
    Action,
    Cancelled,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
)
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.learnt import Seen, mean
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Slo
from muxd.errors import CannotMeetSlo, MuxdError

_KEEP = 0.9  # what an average keeps of its past with every batch: about the last ten count
# Deviations added to an estimate. With 0 half of those admitted at the edge come too late, with 1 most of
# those refused at the edge would not have; in between most requests meet their target.
_CAUTION = 0.5
_MOST = 8.0  # a correction beyond that would be a mistake of ours
_LEAST_RETRY = 1.0  # seconds


class _Mean(Struct):
    """Exponentially weighted: sum of values over sum of weights. None before the first."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total = _KEEP * self.total + value
        self.weight = _KEEP * self.weight + weight

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


class _Truth(Struct):
    """How long first tokens really took, for each second that was estimated."""

    real: _Mean
    miss: _Mean  # squared distance from the mean ratio

    def learn(self, estimate: float, real: float) -> None:
        ratio = self.real.value
        self.real.add(real, estimate)
        self.miss.add((real / estimate - (1.0 if ratio is None else ratio)) ** 2)

    @property
    def factor(self) -> float:
        """What an estimate is multiplied by: the usual ratio, and how far it usually is from it."""
        ratio, miss = self.real.value, self.miss.value
        return 1.0 if ratio is None or miss is None else min(_MOST, ratio + _CAUTION * sqrt(miss))


class _Pace(Struct):
    """What one model was seen to need."""

    stay: _Mean  # seconds a sequence holds its slot and rows
    fresh: _Mean  # the part of a prompt that was not cached
    truth: _Truth


def _pace() -> _Pace:
    return _Pace(_Mean(), _Mean(), _Truth(_Mean(), _Mean()))


class Ahead(Struct, frozen=True):
    """What a new prompt would wait for, in seconds, and its own prefill after that."""

    wait: float
    own: float

    @property
    def ttft(self) -> float:
        return self.wait + self.own


class Forecast:
    """One per unit. ``prefill_tokens`` is the budget of one prefill batch."""

    def __init__(self, targets: Mapping[str, Slo], prefill_tokens: int):
        self._targets = targets  # they may change
        self._budget = prefill_tokens
        self._paces: defaultdict[str, _Pace] = defaultdict(_pace)

    # ---- learning ---------------------------------------------------------------------------------

    def observe(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """Learn from one call of ``Scheduler.handle``: its event, then its actions."""
        if isinstance(event, Cancelled):
            self._left(event.sequence, now)
        for action in actions:
            match action:
                case Launch():
                    self._launched(action.flight, now)
                case Emit():
                    for sequence in action.sequences:
                        self._first_token(sequence)
                case Ended() | Failed():
                    self._left(action.sequence, now)

    def _launched(self, flight: Flight, now: float) -> None:
        if not flight.prefill:
            return
        fresh = self._paces[flight.model].fresh
        for sequence in flight.sequences:
            if sequence.started == now:  # it is computed for the first time
                prompt = sequence.prompt_tokens
                fresh.add(prompt - min(sequence.cached, prompt), prompt)

    def _first_token(self, sequence: Sequence) -> None:
        estimate, first = sequence.estimate, sequence.first
        if estimate is not None and first is not None:
            sequence.estimate = None
            self._paces[sequence.model].truth.learn(estimate, first - sequence.arrived)

    def _left(self, sequence: Sequence, now: float) -> None:
        sequence.estimate = None
        if sequence.started is not None:
            self._paces[sequence.model].stay.add(now - sequence.started)

    def learnt(self, model: str) -> Seen:
        pace = self._paces[model]
        means = (pace.stay, pace.fresh, pace.truth.real, pace.truth.miss)
        return Seen(*(mean(one.total, one.weight) for one in means))

    def take_up(self, model: str, seen: Seen) -> None:
        """What was learnt before."""
        stay, fresh, real, miss = (
            _Mean(one.total, one.weight) for one in (seen.stay, seen.fresh, seen.real, seen.miss)
        )
        self._paces[model] = _Pace(stay, fresh, _Truth(real, miss))

    # ---- telling ----------------------------------------------------------------------------------

    def refusal(
        self, lane: Lane, sequence: Sequence, lanes: Mapping[str, Lane], now: float
    ) -> MuxdError | None:
        """The refusal of ``sequence``, not queued yet, where it could not meet its model's TTFT target.

        A request with nothing ahead of it is never refused: waiting would not help it, and a model that
        refused everything would not learn that it has become faster.
        """
        model, target = lane.spec.model, self._targets.get(lane.spec.model, Slo()).ttft
        if not target:
            return None
        ahead = self.ahead(model, sequence.remaining, lanes, now)
        if ahead is None:
            return None
        factor = self._paces[model].truth.factor
        wait, ttft = factor * ahead.wait, factor * ahead.ttft
        if ttft <= target or wait <= 0:
            sequence.estimate = ahead.ttft
            return None
        seconds = max(_LEAST_RETRY, ceil(min(wait, ttft - target)))
        return CannotMeetSlo(
            f"{model} could send the first token in about {ttft:.1f} s, later than its ttft_slo of "
            f"{target:g} s; try again in {seconds:.0f} s",
            position=len(lane.waiting) + 1,
            retry_after=seconds,
        )

    def ttft(self, model: str, prompt_tokens: int, lanes: Mapping[str, Lane], now: float) -> float | None:
        """Seconds until a request arriving now has its first token, rather too long than too short; None
        while too little is known."""
        ahead = self.ahead(model, prompt_tokens, lanes, now)
        return None if ahead is None else self._paces[model].truth.factor * ahead.ttft

    def ahead(self, model: str, prompt_tokens: int, lanes: Mapping[str, Lane], now: float) -> Ahead | None:
        """``ttft`` in its two parts. O(what waits): asked once per arrival, and only short queues admit."""
        lane = lanes[model]
        if not lane.token_seconds:
            return None
        own = lane.token_seconds * self._fresh(model, prompt_tokens)
        wait = _running(lane, lanes, now) + self._prefills(lane, prompt_tokens, lanes)
        return Ahead(max(wait, self._departures(lane)), own)

    def _prefills(self, lane: Lane, prompt_tokens: int, lanes: Mapping[str, Lane]) -> float:
        """Seconds of prefill before and between the model's turns: one prefill at a time, models in turn."""
        before = self._queued_tokens(lane)
        turns = ceil((before + self._fresh(lane.spec.model, prompt_tokens)) / self._budget)
        seconds = before * lane.token_seconds
        for other in lanes.values():
            if other is not lane and other.ready and other.blocked not in ("rows", "slots"):
                seconds += min(self._queued_tokens(other), turns * self._budget) * other.token_seconds
        return seconds

    def _queued_tokens(self, lane: Lane) -> float:
        """Tokens to compute of those that wait, without the batch in flight."""
        computing = sum(flight.tokens for flight in lane.flights if flight.prefill)
        tokens = self._fresh(lane.spec.model, sum(sequence.remaining for sequence in lane.waiting))
        return max(0.0, tokens - computing)

    def _fresh(self, model: str, tokens: int) -> float:
        """How many of these prompt tokens will have to be computed."""
        fresh = self._paces[model].fresh.value
        return tokens * (1.0 if fresh is None else fresh)

    def _departures(self, lane: Lane) -> float:
        """Seconds until slots and rows are free for one more: a sequence leaves every stay / admitted."""
        stay = self._paces[lane.spec.model].stay.value
        short = lane.queued + 1 - max(0, lane.spec.max_running - lane.admitted)
        if lane.blocked == "rows":
            short = max(short, lane.queued + 1)
        if stay is None or short <= 0 or not lane.admitted:
            return 0.0
        return short * stay / lane.admitted


def _running(own: Lane, lanes: Mapping[str, Lane], now: float) -> float:
    """What is left of the unit's one prefill in flight, or of the model's own step."""
    rest = 0.0
    for lane in lanes.values():
        for flight in lane.flights:
            if flight.prefill or lane is own:
                rest = max(rest, lane.expected_seconds(flight) - (now - flight.began))
    return rest
