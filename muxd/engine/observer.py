"""What the unit's driver reports: times and outcomes per request, all from one clock.

Counts are kept here for muxctl and for the audit "every request ends exactly once"; the same calls feed
``engine/metrics.py`` and measure requests against their model's targets. It decides nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

from muxd.engine.actions import (
    Action,
    Arrived,
    Cancelled,
    Completed,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
    Preempted,
    Rejected,
    Resumed,
    WorkerLost,
)
from muxd.engine.flight import Flight
from muxd.engine.metrics import Metrics
from muxd.engine.recent import Recent
from muxd.engine.request import Request
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Attainment, Course, Outcome, Slo


class Popularity(Protocol):
    """Hears of every arrival and of what was served."""

    def arrived(self, model: str, prompt_tokens: int, now: float) -> None: ...

    def ended(self, model: str, output_tokens: int, now: float) -> None: ...


class Observer:
    """One for all units of a daemon. Times are seconds of their clock. Requests count for the adapter they
    ask for, batches and popularity for the model that has it."""

    def __init__(
        self,
        metrics: Metrics,
        targets: Mapping[str, Slo] | None = None,
        popularity: Popularity | None = None,
    ):
        self._metrics, self._popularity = metrics, popularity
        self.attainment = Attainment({})
        for model, slo in (targets or {}).items():
            self.aim(model, slo)
        self.arrivals = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.tokens_out: Counter[str] = Counter()
        self.ttft: defaultdict[str, Recent] = defaultdict(Recent)  # seconds to the first token
        self.tpot: defaultdict[str, Recent] = defaultdict(
            Recent
        )  # seconds a token after it, mean of a request

    def aim(self, model: str, slo: Slo) -> None:
        """Measure the model's requests against these targets from now on."""
        self.attainment.targets[model] = slo
        self._metrics.add_slo(model, slo)

    def observe(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """One call of ``Scheduler.handle`` of any unit."""
        self._hear(event, now)
        for action in actions:
            self._count(action, now)

    def _hear(self, event: Event, now: float) -> None:
        match event:
            case Arrived():
                self._arrived(event.sequence)
            case Cancelled():
                self._ended(event.sequence, "served" if event.served else "cancelled", now)
            case WorkerLost() if not event.final:
                self._metrics.worker_restarted(event.model)

    def _count(self, action: Action, now: float) -> None:
        match action:
            case Emit():
                self._tokens(action)
            case Launch():
                self._launched(action.flight, now)
            case Completed() if not action.flight.lost:
                self._batch(action.flight)
            case Ended():
                self._ended(action.sequence, "served", now)
            case Failed():
                self._ended(action.sequence, "failed", now)
            case Rejected():
                self._ended(action.sequence, "refused", now)
            case Preempted():
                self._metrics.preempted(action.sequence.name)
            case Resumed():
                self._metrics.resumed(action.sequence.name)

    # ---- one sequence -----------------------------------------------------------------------------

    def _arrived(self, sequence: Sequence) -> None:
        self.arrivals += 1
        self._metrics.arrived(sequence.name, sequence.prompt_tokens)
        if self._popularity is not None:
            self._popularity.arrived(sequence.model, sequence.prompt_tokens, sequence.arrived)

    def _tokens(self, emit: Emit) -> None:
        """One new token for each."""
        for sequence, gap in zip(emit.sequences, emit.gaps, strict=True):
            self.tokens_out[sequence.name] += 1
            if gap is None:
                seconds = sequence.latest - sequence.arrived
                self.ttft[sequence.name].add(seconds)
                self._metrics.first_token(sequence.name, seconds)
            else:
                self._metrics.token(sequence.name, gap)

    def turned_away(self, request: Request) -> None:
        """Refused before it became a sequence."""
        self.arrivals += 1
        self.outcomes["refused"] += 1
        self._metrics.ended(request.name, "refused")

    def _ended(self, sequence: Sequence, outcome: Outcome, now: float) -> None:
        """Exactly once per sequence that arrived."""
        self.outcomes[outcome] += 1
        if self._popularity is not None and outcome == "served":
            self._popularity.ended(sequence.model, sequence.generated, now)
        self._metrics.ended(sequence.name, outcome, now - sequence.arrived if outcome == "served" else None)
        course = _course(sequence, outcome, now)
        if course.tpot is not None:
            self.tpot[sequence.name].add(course.tpot)
        verdict = self.attainment.ended(sequence.name, course)
        if verdict is not None:
            self._metrics.judged(sequence.name, verdict)

    # ---- batches ----------------------------------------------------------------------------------

    def _launched(self, flight: Flight, now: float) -> None:
        if flight.prefill:
            for sequence in flight.sequences:
                if sequence.started == now:  # its first batch
                    self._metrics.started(sequence.name, now - sequence.arrived, sequence.cached)

    def _batch(self, flight: Flight) -> None:
        self._metrics.batch(flight.model, "prefill" if flight.prefill else "decode", flight.seconds)

    def device_faulted(self) -> None:
        """A fault has reached all workers of a device."""
        self._metrics.device_faulted()


def _course(sequence: Sequence, outcome: Outcome, now: float) -> Course:
    """How it went."""
    age, gaps, first = now - sequence.arrived, sequence.generated - 1, sequence.first
    if first is None:
        return Course(outcome, age)
    pace = (sequence.latest - first) / gaps if gaps > 0 else None
    return Course(outcome, age, first - sequence.arrived, pace)
