"""A unit in virtual time: the daemon's scheduler and ledger, and a cost table as workers.

Plays the part of ``engine/unit.py`` and of the workers: every launch is done after the seconds the table
says, every sequence gets exactly the tokens its request asks for. Who owns the clock says when.
"""

from collections.abc import Callable
from math import inf

from muxd.clock import VirtualClock
from muxd.cost.table import CostTable
from muxd.engine.actions import (
    Action,
    Ahead,
    Arrived,
    Asleep,
    BatchDone,
    Emit,
    Ended,
    Event,
    Failed,
    Joined,
    Launch,
    Preempted,
    Rejected,
    Retiring,
    Stepped,
    Tick,
    Withdraw,
    Withdrawn,
    WorkerReady,
)
from muxd.engine.flight import Flight
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.messages import Sampling
from muxd.sim.device import Batch, Task, VirtualDevice
from muxd.sim.records import Outcome, Records
from muxd.sim.repeat import repeat
from muxd.sim.workload import Item

_TOKEN = 5  # what every step samples; with no end tokens any id will do
_GREEDY = Sampling(temperature=0.0)
_NO_EOS: frozenset[int] = frozenset()

Observe = Callable[[Event, list[Action], float], None]  # an event, what came of it, seconds


def nobody(event: Event, actions: list[Action], now: float) -> None:
    """Observes nothing."""


def request_of(index: int, item: Item, prompt: list[int]) -> Request:
    """What the HTTP door would make of it."""
    return Request(str(index), item.model, prompt, item.output_tokens, _GREEDY, _NO_EOS, key=item.key)


class VirtualUnit:
    """``records`` may be of a larger workload: a sequence's id is its place in it. ``observe`` hears of every
    event, as the journal of a daemon's unit does."""

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostTable,
        clock: VirtualClock,
        records: Records,
        observe: Observe = nobody,
    ):
        self.scheduler = scheduler
        self._observe = observe
        self.device = VirtualDevice(cost)
        self.events = 0  # how often the scheduler was asked
        self.repeated = 0  # decode steps of which it was told together
        self._foreseen = 0  # events when it was last asked what it foresees: only another one changes that
        self._tick, self._ticked = inf, -1  # its deadline, and events when it said so
        # The HTTP door's work before the engine hears of a request; one number, or requests could overtake.
        self.delay = max((cost.model(model).overhead.request for model in scheduler.lanes), default=0.0)
        self._clock = clock
        self._records = records

    def start(self) -> None:
        """All workers become ready."""
        for model in self.scheduler.lanes:
            self.ready(model)

    def ready(self, model: str) -> None:
        """Its worker is."""
        self._handle(WorkerReady(model))

    def retire(self, model: str) -> None:
        """It gets no prompt more, and will sleep."""
        self._handle(Retiring(model))

    def sleep(self, model: str) -> None:
        """Its worker is gone; whoever asks waits. What it computes just now comes to nothing."""
        self.device.drop(model, self._clock.now())
        self._handle(Asleep(model))

    # ---- time ----------------------------------------------------------------------------------------

    def due(self) -> float:
        """When something happens here if nobody comes: on the device, or the scheduler's deadline."""
        now = self._clock.now()
        if self._ticked != self.events or self._tick <= now:
            tick = self.scheduler.deadline(now)
            self._tick, self._ticked = inf if tick is None else tick, self.events
        return min(self.device.due, self._tick)

    def advance(self, due: float) -> bool:
        """Whether the device did something by ``due``, and what follows from it."""
        when, batch, heard = self.device.next()
        if batch is None or when > due:
            return False
        self.device.advance(batch, heard, self._clock.now())
        if heard:
            self._done(batch)
        return True

    def repeat(self, until: float) -> None:
        """What the scheduler foresees before ``until``: the events that ``advance`` would make, at the same
        times, but it is told of all steps in one."""
        if self._foreseen == self.events:
            return
        due, batch, heard = self.device.next()
        if batch is None or due >= until or (heard and batch.task.prefill):
            return
        self._foreseen = self.events
        foreseen = self.scheduler.foresee(self._clock.now())
        if foreseen is None:
            return
        steps = repeat(self.device, self._clock, foreseen, until)
        if steps:
            self.repeated += len(steps)
            self._handle(Stepped(steps, _TOKEN))
            self._foreseen = self.events

    def tick(self) -> None:
        self._handle(Tick())

    # ---- requests ------------------------------------------------------------------------------------

    def submit(self, index: int, request: Request) -> None:
        """Arrives now. One that fits no pool is refused, as the HTTP door would."""
        room = self.scheduler.lanes[request.model].spec.max_context
        if len(request.prompt) + request.max_tokens > room:
            why = f"prompt and answer do not fit the {room} tokens of {request.model}"
            self._failed(index, Outcome.REFUSED, why, self._clock.now())
            return
        self._handle(Arrived(Sequence(index, request, self._clock.now())))

    def hand_over(self, model: str, to: "VirtualUnit") -> int:
        """As ``engine.unit.Unit.hand_over``."""
        actions = self._handle(Withdraw(model, to.scheduler.lanes[model].spec.max_context))
        moved = [action.sequence for action in actions if isinstance(action, Withdrawn)]
        for sequence in moved:
            to._handle(Joined(sequence))
        return len(moved)

    def empty(self, model: str) -> bool:
        return self.scheduler.lanes[model].empty

    @property
    def waits(self) -> bool:
        """Somebody is queued or running."""
        return any(lane.waiting or lane.running for lane in self.scheduler.lanes.values())

    # ---- events --------------------------------------------------------------------------------------

    def _done(self, batch: Batch) -> None:
        task = batch.task
        self._handle(BatchDone(batch.model, task.number, [_TOKEN] * task.sampled), first=task.prefill)

    def _handle(self, event: Event, *, first: bool = False) -> list[Action]:
        self.events += 1
        now = self._clock.now()
        actions = self.scheduler.handle(event, now)
        for action in actions:
            self._perform(action, now, first)
        self._observe(event, actions, now)
        return actions

    def _perform(self, action: Action, now: float, first: bool) -> None:
        """``first``: a prefill is done. Only then can a token be somebody's first."""
        match action:
            case Launch() if not action.ahead:
                model = action.flight.model
                split = self.scheduler.lanes[model].spec.split
                self.device.start(model, _task(action.flight), now, split=split)
            case Ahead():
                self.device.queue(action.flight.model, _task(action.flight, ahead=True), now)
            case Emit():
                if first:
                    self._first_tokens(action.sequences, now)
            case Ended():
                self._records.finish(action.sequence.id, Outcome.SERVED, now)
            case Preempted():
                self._records.preemptions += 1
            case Rejected():
                self._failed(action.sequence.id, Outcome.REFUSED, action.error.message, now)
            case Failed():
                self._failed(action.sequence.id, Outcome.FAILED, action.error.message, now)

    def _first_tokens(self, sequences: list[Sequence], now: float) -> None:
        for sequence in sequences:
            if sequence.generated == 1 and sequence.first is not None:
                self._records.first[sequence.id] = sequence.first

    def _failed(self, index: int, outcome: Outcome, why: str, now: float) -> None:
        self._records.fail(index, outcome, now, why)


def _task(flight: Flight, *, ahead: bool = False) -> Task:
    """``ahead``: the daemon has not counted the token of the step in front."""
    sequences, count = flight.sequences, len(flight.sequences)
    starts = [sequence.computed for sequence in sequences]
    if not flight.prefill:
        read = sum(starts) + count * ahead
        return Task(flight.batch, False, flight.share, count, count, read, 0.0, count)
    sizes, tokens = flight.chunk, flight.tokens
    before = sum(n * start for n, start in zip(sizes, starts, strict=True)) / tokens
    ends = sum(n == sequence.remaining for n, sequence in zip(sizes, sequences, strict=True))
    return Task(flight.batch, True, flight.share, count, tokens, sum(starts), before, ends)
