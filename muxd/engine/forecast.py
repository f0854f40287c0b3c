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
    BatchDone,
    Cancelled,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
    Withdrawn,
    WorkerLost,
)
from muxd.engine.lane import Lane
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Slo
from muxd.errors import CannotMeetSlo, MuxdError
from muxd.messages import Prefill

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

    token: _Mean  # seconds a prefilled token
    step: _Mean  # seconds a decode step
    stay: _Mean  # seconds a sequence holds its slot and rows
    fresh: _Mean  # the part of a prompt that was not cached
    truth: _Truth


def _pace() -> _Pace:
    return _Pace(_Mean(), _Mean(), _Mean(), _Mean(), _Truth(_Mean(), _Mean()))


class _Flight(Struct, frozen=True):
    model: str
    began: float
    tokens: int  # 0: a decode step


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
        self._flights: dict[int, _Flight] = {}  # by batch
        self._admitted: dict[int, float] = {}  # sequence -> its first launch
        self._estimates: dict[int, float] = {}  # sequence -> seconds, until its first token

    # ---- learning ---------------------------------------------------------------------------------

    def observe(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """Learn from one call of ``Scheduler.handle``: its event, then its actions."""
        match event:
            case BatchDone():
                self._done(event, now)
            case WorkerLost():
                self._flights = {n: it for n, it in self._flights.items() if it.model != event.model}
            case Cancelled():
                self._left(event.sequence, now)
        for action in actions:
            match action:
                case Launch():
                    self._launched(action, now)
                case Emit():
                    for sequence in action.sequences:
                        self._first_token(sequence, now)
                case Ended() | Failed():
                    self._left(action.sequence, now)
                case Withdrawn():
                    self._estimates.pop(action.sequence.id, None)
                    self._admitted.pop(action.sequence.id, None)

    def _launched(self, launch: Launch, now: float) -> None:
        command, tokens = launch.command, 0
        if isinstance(command, Prefill):
            for chunk in command.chunks:
                tokens += len(chunk.tokens) // 4
                if chunk.seq not in self._admitted:
                    self._admitted[chunk.seq] = now
                    fresh = chunk.prompt_tokens - min(chunk.start, chunk.prompt_tokens)
                    self._paces[launch.model].fresh.add(fresh, chunk.prompt_tokens)
        self._flights[command.batch] = _Flight(launch.model, now, tokens)

    def _done(self, event: BatchDone, now: float) -> None:
        flight = self._flights.pop(event.batch, None)
        if flight is None:
            return  # an answer from before the worker was lost
        pace = self._paces[event.model]
        if flight.tokens:
            pace.token.add(now - flight.began, flight.tokens)
        else:
            pace.step.add(now - flight.began)

    def _first_token(self, sequence: Sequence, now: float) -> None:
        estimate = self._estimates.pop(sequence.id, None)
        if estimate is not None:
            self._paces[sequence.model].truth.learn(estimate, now - sequence.arrived)

    def _left(self, sequence: Sequence, now: float) -> None:
        self._estimates.pop(sequence.id, None)
        admitted = self._admitted.pop(sequence.id, None)
        if admitted is not None:
            self._paces[sequence.model].stay.add(now - admitted)

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
            self._estimates[sequence.id] = ahead.ttft
            return None
        seconds = max(_LEAST_RETRY, ceil(min(wait, ttft - target)))
        return CannotMeetSlo(
            f"{model} could send the first token in about {ttft:.1f} s, later than its ttft_slo of "
            f"{target:g} s; try again in {seconds:.0f} s",
            retry_after=seconds,
        )

    def ttft(self, model: str, prompt_tokens: int, lanes: Mapping[str, Lane], now: float) -> float | None:
        """Seconds until a request arriving now has its first token, rather too long than too short; None
        while too little is known."""
        ahead = self.ahead(model, prompt_tokens, lanes, now)
        return None if ahead is None else self._paces[model].truth.factor * ahead.ttft

    def ahead(self, model: str, prompt_tokens: int, lanes: Mapping[str, Lane], now: float) -> Ahead | None:
        """``ttft`` in its two parts. O(what waits): asked once per arrival, and only short queues admit."""
        token = self._paces[model].token.value
        if token is None:
            return None
        own = token * self._fresh(model, prompt_tokens)
        wait = self._running(lanes[model], now) + self._prefills(lanes[model], prompt_tokens, lanes)
        return Ahead(max(wait, self._departures(lanes[model])), own)

    def _running(self, lane: Lane, now: float) -> float:
        """What is left of the unit's one prefill in flight, or of the model's own step."""
        rest = 0.0
        for flight in self._flights.values():
            pace = self._paces[flight.model]
            if flight.tokens:
                expected = flight.tokens * (pace.token.value or 0.0)
            else:
                expected = (pace.step.value or 0.0) if flight.model == lane.spec.model else 0.0
            rest = max(rest, expected - (now - flight.began))
        return rest

    def _prefills(self, lane: Lane, prompt_tokens: int, lanes: Mapping[str, Lane]) -> float:
        """Seconds of prefill before and between the model's turns: one prefill at a time, models in turn."""
        model = lane.spec.model
        before = self._queued_tokens(lane)
        turns = ceil((before + self._fresh(model, prompt_tokens)) / self._budget)
        seconds = before * (self._paces[model].token.value or 0.0)
        for name, other in lanes.items():
            if other is not lane and other.ready and other.blocked not in ("rows", "slots"):
                tokens = min(self._queued_tokens(other), turns * self._budget)
                seconds += tokens * (self._paces[name].token.value or 0.0)
        return seconds

    def _queued_tokens(self, lane: Lane) -> float:
        """Tokens to compute of those that wait, without the batch in flight."""
        model = lane.spec.model
        computing = sum(flight.tokens for flight in self._flights.values() if flight.model == model)
        tokens = self._fresh(model, sum(sequence.remaining for sequence in lane.waiting))
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
