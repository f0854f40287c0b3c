"""Where every request's time went: queued for what, prefilled, decoded, held, preempted. Pure and bounded.

``engine/unit.py`` shows it every event after the scheduler has handled it; muxctl asks it by request id.
While a sequence waits in its queue, its reason is the one of the queue's head (``Lane.blocked``): each lane
keeps a clock of seconds per reason, and a sequence reads it when it enters the queue and when it leaves. So
an event costs O(lanes + batch), however many wait. No prompts and no token ids are kept.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from msgspec import structs

from muxd.engine.actions import (
    Action,
    Arrived,
    Cancelled,
    Completed,
    Ended,
    Event,
    Failed,
    Launch,
    Preempted,
    Rejected,
    Resumed,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.flight import Flight
from muxd.engine.kept import Kept
from muxd.engine.lane import Lane
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.slo import Outcome
from muxd.engine.timeline import Timeline
from muxd.engine.times import DECODE, HELD, PREFILL, QUEUED, RECOMPUTE, OpenRequest, ReasonClock
from muxd.engine.trace import Happening, Mark, RequestTimes, State
from muxd.pool.ledger import Ledger

Tell = Callable[[Mark], None]
FINISHED = 10_000  # requests remembered after their end


class Journal:
    """One per unit. Remembers what runs, the last 10,000 ends, and the ``timeline``."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        ledger: Ledger,
        now: float = 0.0,
        tell: Tell = lambda mark: None,
        device: str = "",
    ):
        """``tell`` hears every mark as it is made; ``device``: where the unit is."""
        self._tell = tell
        self._device = device
        self.timeline = Timeline(lanes, ledger)
        self._lanes = lanes
        self._began = now
        self._clocks: dict[str, ReasonClock] = {}
        self._open: dict[int, OpenRequest] = {}
        self.finished: Kept[RequestTimes] = Kept(FINISHED)

    # ---- writing ----------------------------------------------------------------------------------

    def observe(self, event: Event, actions: Iterable[Action], now: float) -> None:
        """Book one call of ``Scheduler.handle``: its event, its actions, and how the lanes stand after it."""
        self._book_event(event, now)
        for action in actions:
            self._book_action(action, now)
        for model, lane in self._lanes.items():
            clock = self._clocks.get(model)
            if clock is None or clock.reason != lane.blocked:
                self._clock(model).turn(lane.blocked, now)
        self.timeline.sample(now)

    def ended(self, sequence: Sequence, outcome: Outcome, now: float, detail: str = "") -> None:
        """The request is over; nothing happens if it was already."""
        one = self._open.pop(sequence.id, None)
        if one is not None:
            clock = self._clock(sequence.model)
            self.finished.add(one.times(outcome, now, clock, detail, self._device))

    def turned_away(self, sequence: Sequence, now: float, reason: str) -> None:
        """Refused before the scheduler heard of it."""
        self._open[sequence.id] = OpenRequest(sequence, self._clock(sequence.model).read(now))
        self.ended(sequence, "refused", now, reason)

    def withdraw(self, sequence: Sequence, now: float) -> OpenRequest | None:
        """Its book so far, for another unit's journal; None if it has ended."""
        one = self._open.pop(sequence.id, None)
        if one is not None:
            beside = self._beside(sequence.model, one.came, now, one.sequence.started)
            one.leave(self._device, now, self._clock(sequence.model), beside)
        return one

    def join(self, one: OpenRequest, now: float) -> None:
        """Go on with the book of a request that another unit has withdrawn."""
        one.entered = self._clock(one.sequence.model).read(now)
        self._open[one.sequence.id] = one

    def mark(self, kind: Happening, now: float, model: str = "", detail: str = "") -> None:
        mark = Mark(now, kind, model, detail)
        self.timeline.mark(mark)
        self._tell(mark)

    def _book_event(self, event: Event, now: float) -> None:
        match event:
            case Arrived():
                clock = self._clock(event.sequence.model)
                self._open[event.sequence.id] = OpenRequest(event.sequence, clock.read(now))
            case Cancelled():
                self.ended(event.sequence, "served" if event.served else "cancelled", now)
            case WorkerLost():
                self.mark("worker lost", now, event.model, event.error.message)
            case WorkerReady():
                self.mark("worker ready", now, event.model)

    def _book_action(self, action: Action, now: float) -> None:
        match action:
            case Launch():
                self._launched(action.flight, now)
            case Completed():
                self._completed(action.flight, now)
            case Preempted():
                if one := self._open.get(action.sequence.id):
                    one.move(QUEUED, now, self._clock(action.sequence.model))
                self.mark("preempted", now, action.sequence.model, action.sequence.request.id)
            case Resumed():
                if one := self._open.get(action.sequence.id):
                    one.move(QUEUED, now, self._clock(action.sequence.model))
            case Ended():
                self.ended(action.sequence, "served", now)
            case Failed():
                self.ended(action.sequence, "failed", now, action.error.message)
            case Rejected():
                self.ended(action.sequence, "refused", now, action.error.message)

    def _launched(self, flight: Flight, now: float) -> None:
        clock = self._clock(flight.model)
        for sequence in flight.sequences:
            one = self._open.get(sequence.id)
            if one is not None:
                again = sequence.preemptions + sequence.reruns > 0
                one.move((RECOMPUTE if again else PREFILL) if flight.prefill else DECODE, now, clock)

    def _completed(self, flight: Flight, now: float) -> None:
        clock = self._clock(flight.model)
        for sequence in flight.sequences:
            one = self._open.get(sequence.id)
            if one is not None:  # else its reader left while the batch went on
                one.move(HELD if sequence.phase is Phase.RUNNING else QUEUED, now, clock)
        self.timeline.completed(flight)

    def _clock(self, model: str) -> ReasonClock:
        clock = self._clocks.get(model)
        if clock is None:
            clock = self._clocks[model] = ReasonClock(self._began)
        return clock

    # ---- reading ----------------------------------------------------------------------------------

    def find(self, id: str, now: float) -> list[RequestTimes]:
        """All choices of one answer, by its id, a choice's id or its ``x-request-id``; [] if forgotten.

        When a client has used one ``x-request-id`` again, its newest answer. O(what is remembered).
        """
        known = [*self.finished, *(self._now(one, now) for one in self._open.values())]
        found = [one for one in known if id and (id in (one.id, one.http_id) or _is_choice(one, id))]
        newest = max(found, key=lambda one: one.arrived, default=None)
        if newest is None:
            return []
        answer = newest.id.rpartition("-")[0]
        same = [one for one in found if one.id == id or _is_choice(one, answer)]
        return [self._with_neighbours(one) for one in sorted(same, key=_choice)]

    def open(self, now: float, most: int) -> list[RequestTimes]:
        """The newest ``most`` requests that have not ended, as they stand, oldest first."""
        newest = list(islice(reversed(self._open.values()), most))
        return [self._now(one, now) for one in reversed(newest)]

    def _now(self, one: OpenRequest, now: float) -> RequestTimes:
        state: State = "waiting" if one.sequence.started is None else "running"
        return one.times(state, now, self._clock(one.sequence.model), device=self._device)

    def _with_neighbours(self, one: RequestTimes) -> RequestTimes:
        end = one.arrived + one.total
        if not one.stays:
            return structs.replace(one, beside=self._beside(one.model, one.arrived, end, one.started))
        here = self._beside(one.model, one.stays[-1].came, end, one.started)
        stays = [*one.stays[:-1], structs.replace(one.stays[-1], beside=here)]
        return structs.replace(one, stays=stays, beside=_added(stay.beside for stay in stays))

    def _beside(self, model: str, begin: float, end: float, started: float | None) -> dict[str, float]:
        """Seconds that others prefilled here until it was first computed."""
        return self.timeline.prefilled_beside(model, begin, end if started is None else min(started, end))


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in parts:
        for model, seconds in part.items():
            sums[model] = sums.get(model, 0.0) + seconds
    return sums


def newest(answers: Iterable[list[RequestTimes]]) -> list[RequestTimes]:
    """Of what several units found for one id: the choices of the newest answer, in order."""
    found = [one for answer in answers for one in answer]
    last = max(found, key=lambda one: one.arrived, default=None)
    if last is None:
        return []
    answer = last.id.rpartition("-")[0]
    return sorted((one for one in found if one is last or _is_choice(one, answer)), key=_choice)


def _is_choice(one: RequestTimes, answer: str) -> bool:
    """Whether it is a choice of the answer with this id."""
    return one.id.startswith(answer) and one.id.rpartition("-")[0] == answer


def _choice(one: RequestTimes) -> int:
    number = one.id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
