"""A unit in virtual time: the daemon's scheduler and ledger, a workload as clients, a cost table as workers.

Plays the part of ``engine/unit.py`` and of the workers: every launch is done after the seconds the table
says, every sequence gets exactly the tokens the workload asks for. Deterministic, and no clock is read.
"""

from collections.abc import Callable
from math import inf

from muxd.clock import VirtualClock
from muxd.cost.table import CostTable
from muxd.engine.actions import (
    Action,
    Arrived,
    BatchDone,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
    Preempted,
    Rejected,
    Tick,
    WorkerReady,
)
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.errors import ConfigError
from muxd.messages import Prefill, Sampling
from muxd.sim.device import Batch, VirtualDevice
from muxd.sim.records import Outcome, Records
from muxd.sim.workload import Item, Workload, prompts

_TOKEN = 5  # what every step samples; with no end tokens any id will do
_GREEDY = Sampling(temperature=0.0)
_NO_EOS: frozenset[int] = frozenset()
_IDLE_TICKS = 1000
_PROGRESS_EVERY = 1000  # requests

Progress = Callable[[int], None]  # requests that have arrived since the last call


class World:
    """One run. ``run`` may be called once.

    Raises ConfigError when the workload asks for a model that is not configured.
    """

    def __init__(self, scheduler: Scheduler, cost: CostTable, workload: Workload, *, shared_prefix: int = 0):
        unknown = sorted(set(workload.models) - set(scheduler.lanes))
        if unknown:
            raise ConfigError(
                f"the workload asks for {', '.join(unknown)}; configured are {', '.join(scheduler.lanes)}"
            )
        self.clock = VirtualClock()
        self.device = VirtualDevice(cost)
        self.records = Records(workload)
        self.events = 0
        self._idle = 0
        self._scheduler = scheduler
        # The HTTP door's work before the engine hears of a request; one number, or requests could overtake.
        self._delay = max((cost.model(model).overhead.request for model in workload.models), default=0.0)
        self._prompts = prompts(workload, shared_prefix=shared_prefix)

    def run(self, progress: Progress = lambda requests: None) -> Records:
        """Until the last request has ended. Raises RuntimeError when requests wait and nothing will happen:
        a defect of the scheduler."""
        for model in self._scheduler.lanes:
            self._handle(WorkerReady(model))
        items = self.records.workload.items
        index, count = 0, len(items)
        while True:
            arrival = items[index].time + self._delay if index < count else inf
            batch = self.device.next
            done = batch.end if batch else inf
            tick = self._scheduler.deadline(self.clock.now())
            due = min(arrival, done, inf if tick is None else tick)
            if due == inf or (batch is None and index == count and self._over()):
                break
            self.clock.advance(max(0.0, due - self.clock.now()))
            if batch is not None and done <= due:
                self._done(batch)
            elif arrival <= due:
                self._arrive(index, items[index])
                index += 1
                if index % _PROGRESS_EVERY == 0:
                    progress(_PROGRESS_EVERY)
            else:
                self._handle(Tick())
        self._at_rest()
        progress(count % _PROGRESS_EVERY)
        return self.records

    def _over(self) -> bool:
        """Nothing runs and nobody comes: only time can start what waits, and not for ever."""
        self._idle += 1
        waits = any(lane.waiting or lane.running for lane in self._scheduler.lanes.values())
        return not waits or self._idle > _IDLE_TICKS

    def _at_rest(self) -> None:
        left = int((self.records.outcome == Outcome.OPEN).sum())
        if left:
            raise RuntimeError(f"{left} requests never ended: the scheduler waits for nothing")
        self._scheduler.ledger.audit()

    def _arrive(self, index: int, item: Item) -> None:
        prompt = next(self._prompts)
        room = self._scheduler.lanes[item.model].spec.max_context
        if item.prompt_tokens + item.output_tokens > room:  # the HTTP door's own refusal
            why = f"prompt and answer do not fit the {room} tokens of {item.model}"
            self.records.fail(index, Outcome.REFUSED, self.clock.now(), why)
            return
        request = Request(str(index), item.model, prompt, item.output_tokens, _GREEDY, _NO_EOS)
        self._handle(Arrived(Sequence(index, request, self.clock.now())))

    def _done(self, batch: Batch) -> None:
        self.device.finish(batch, self.clock.now())
        command = batch.command
        if isinstance(command, Prefill):
            sampled = sum(chunk.last for chunk in command.chunks)
        else:
            sampled = len(command.seqs)
        self._handle(BatchDone(batch.model, command.batch, [_TOKEN] * sampled), first=batch.prefill)

    def _handle(self, event: Event, *, first: bool = False) -> None:
        self.events += 1
        now = self.clock.now()
        for action in self._scheduler.handle(event, now):
            self._perform(action, now, first)

    def _perform(self, action: Action, now: float, first: bool) -> None:
        """``first``: a prefill is done. Only then can a token be somebody's first."""
        match action:
            case Launch():
                lane = self._scheduler.lanes[action.model]
                flight = lane.flight(action.command.batch)
                assert flight is not None
                self.device.start(action.model, action.command, flight.sequences, now, split=lane.spec.split)
            case Emit():
                if first:
                    self._first_tokens(action.sequences, now)
            case Ended():
                self.records.finish(action.sequence.id, Outcome.SERVED, now)
            case Preempted():
                self.records.preemptions += 1
            case Rejected():
                self._failed(action.sequence, Outcome.REFUSED, action.error.message, now)
            case Failed():
                self._failed(action.sequence, Outcome.FAILED, action.error.message, now)

    def _first_tokens(self, sequences: list[Sequence], now: float) -> None:
        for sequence in sequences:
            if sequence.generated == 1:
                self.records.first[sequence.id] = now

    def _failed(self, sequence: Sequence, outcome: Outcome, why: str, now: float) -> None:
        self.records.fail(sequence.id, outcome, now, why)
