"""How long one request spent in which stage: the book that ``engine/journal.py`` keeps for each. Pure."""

from msgspec import structs

from muxd.engine.sequence import Sequence
from muxd.engine.trace import RequestTimes, State, Stay

OWN_BATCH = "busy"  # queued although nothing blocks: its model computes for others of its own


class ReasonClock:
    """Seconds that a lane's queue spent under each reason."""

    def __init__(self, now: float):
        self.reason, self._since = "", now
        self._spent: dict[str, float] = {}

    def turn(self, reason: str, now: float) -> None:
        """From now on the queue waits for this."""
        self._spent = self.read(now)
        self.reason, self._since = reason, now

    def read(self, now: float) -> dict[str, float]:
        """Up to ``now``; a copy."""
        spent = dict(self._spent)
        spent[self.reason] = spent.get(self.reason, 0.0) + now - self._since
        return spent


# Stages of a request: plain numbers, for ``OpenRequest.move`` runs twice per sequence and step.
QUEUED, PREFILL, RECOMPUTE, DECODE, HELD = range(5)


class OpenRequest:
    """A request that has not ended: the stage it is in since when, and what the stages before took."""

    __slots__ = (
        "came", "entered", "had", "sequence", "since", "spent", "stage", "stays", "waits",
    )  # fmt: skip

    def __init__(self, sequence: Sequence, entered: dict[str, float]):
        self.sequence = sequence
        self.stage = QUEUED
        self.since = sequence.arrived
        self.entered = entered  # the lane's clock when it came into the queue
        self.waits: dict[str, float] = {}
        self.spent = [0.0] * 5
        self.came = sequence.arrived  # to this unit
        self.had = self.waits, self.spent[:]  # of both, when it came
        self.stays: list[Stay] = []  # at units before

    def move(self, stage: int, now: float, clock: ReasonClock) -> None:
        """Into the next stage. Copies nothing unless the request leaves or enters the queue."""
        self.spent[self.stage] += now - self.since
        if self.stage == QUEUED:
            self.waits = self.waited(now, clock)
        if stage == QUEUED:
            self.entered = clock.read(now)
        self.stage, self.since = stage, now

    def leave(self, device: str, now: float, clock: ReasonClock, beside: dict[str, float]) -> None:
        """Another unit goes on with it."""
        self.move(QUEUED, now, clock)
        self.stays.append(structs.replace(self.stay(device, now, clock), beside=beside))
        self.came, self.had = now, (self.waits, self.spent[:])

    def stay(self, device: str, now: float, clock: ReasonClock) -> Stay:
        """Its time at this unit, as it is at ``now``."""
        waits, spent = self.had
        waited = {reason: s - waits.get(reason, 0.0) for reason, s in self.waited(now, clock).items()}
        prefill, recompute, decode, held = (
            self.until(now, stage) - spent[stage] for stage in (PREFILL, RECOMPUTE, DECODE, HELD)
        )
        return Stay(
            device, self.came, now - self.came, {reason: s for reason, s in waited.items() if s > 0}, prefill,
            recompute, decode, held,
        )  # fmt: skip

    def waited(self, now: float, clock: ReasonClock) -> dict[str, float]:
        """Seconds queued by reason, as they are at ``now``."""
        waits = dict(self.waits)
        if self.stage != QUEUED:
            return waits
        rest = now - self.since
        for reason, seconds in clock.read(now).items():
            part = seconds - self.entered.get(reason, 0.0)
            if reason and part > 0:
                waits[reason] = waits.get(reason, 0.0) + part
                rest -= part
        if rest > 0:
            waits[OWN_BATCH] = waits.get(OWN_BATCH, 0.0) + rest
        return waits

    def until(self, now: float, stage: int) -> float:
        """Seconds in ``stage``, as they are at ``now``."""
        return self.spent[stage] + (now - self.since if self.stage == stage else 0.0)

    def times(
        self, state: State, now: float, clock: ReasonClock, detail: str = "", device: str = ""
    ) -> RequestTimes:
        """Everything, as it is at ``now``; ``device``: where."""
        sequence = self.sequence
        return RequestTimes(
            id=sequence.request.id,
            http_id=sequence.request.http_id,
            model=sequence.model,
            adapter=sequence.request.asked,
            key=sequence.request.key,
            state=state,
            arrived=sequence.arrived,
            total=now - sequence.arrived,
            prompt_tokens=sequence.prompt_tokens,
            generated_tokens=sequence.generated,
            waits=self.waited(now, clock),
            prefill=self.until(now, PREFILL),
            recompute=self.until(now, RECOMPUTE),
            decode=self.until(now, DECODE),
            held=self.until(now, HELD),
            cached_tokens=sequence.cached,
            preemptions=sequence.preemptions,
            reruns=sequence.reruns,
            started=sequence.started,
            ttft=None if sequence.first is None else sequence.first - sequence.arrived,
            detail=detail,
            stays=[*self.stays, self.stay(device, now, clock)] if self.stays else [],
        )
