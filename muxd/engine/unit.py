"""Drives one unit's scheduler: messages in, commands out, tokens to their streams.

Runs on the daemon's event loop and never awaits: every event is handled to its end, commands first (the
device must not wait for Python), then tokens. It is the only caller of ``Scheduler.handle``.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from itertools import count

from muxd.clock import Clock
from muxd.engine.actions import (
    Action,
    Ahead,
    Arrived,
    Asleep,
    BatchDone,
    Cancelled,
    Emit,
    Ended,
    Event,
    Failed,
    Joined,
    Launch,
    Lent,
    Overdue,
    QuotaMoved,
    Recalled,
    Rejected,
    Retiring,
    Tick,
    Withdraw,
    Withdrawn,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.flight import Flight
from muxd.engine.journal import Journal, Tell
from muxd.engine.lane import Lane, LaneSpec
from muxd.engine.learnt import Learnt
from muxd.engine.memory import Terms
from muxd.engine.observer import Observer
from muxd.engine.places import Places
from muxd.engine.request import Request
from muxd.engine.rests import Rests
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.engine.shares import Shares
from muxd.engine.stream import TokenStream
from muxd.engine.times import OpenRequest
from muxd.errors import MuxdError, NoFiniteLogits, RequestKillsWorker, ShuttingDown
from muxd.messages import BatchDone as BatchReply
from muxd.messages import Decode, Phases, Prefill, TokenLogprob

_log = logging.getLogger("muxd.engine")

Send = Callable[[str, Prefill | Decode], None]  # a worker's name on the link
Hung = Callable[[str, str, bool], None]  # model, what is wrong, whether its workers must go


class Unit:
    """The asynchronous face of a scheduler.

    ``send(worker, command)`` must not block. Every submitted request ends in exactly one of served, refused,
    cancelled, failed; ``observer`` hears which.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        send: Send,
        clock: Clock,
        observer: Observer,
        ids: "count[int] | None" = None,
        tell: Tell = lambda mark: None,
        device: str = "",
        hung: Hung = lambda model, reason, last: None,
        wanted: Callable[[], None] = lambda: None,
    ):
        """``ids`` numbers sequences; units of one daemon share it, as they share the observer. ``tell`` hears
        what the journal marks, in which ``device`` is the unit's. ``hung`` hears of workers that do not
        answer, a moment before they must go and then: what must go is to be reported lost. ``wanted``:
        somebody asks for a model that sleeps."""
        self._scheduler = scheduler
        self._send, self._hung, self.wanted = send, hung, wanted
        self._clock = clock
        self._observer = observer
        self.journal = Journal(scheduler.lanes, scheduler.ledger, clock.now(), tell, device)
        self._streams: dict[int, TokenStream] = {}
        self._ids = ids or count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it goes off
        self._draining = False
        self._refusals: dict[str, MuxdError] = {}  # models that take no new requests, and why
        self._rests = Rests(scheduler.lanes, scheduler.ledger)
        self._places = Places(scheduler.lanes)
        self._empty = asyncio.Event()
        self._empty.set()

    # ---- requests ---------------------------------------------------------------------------------

    def submit(self, request: Request) -> TokenStream:
        """Queue a request. Raises MuxdError (QueueFull, ContextTooLong, ...) when it is refused."""
        sequence = Sequence(next(self._ids), request, now := self._clock.now())
        if error := self._refusal(request):
            self._observer.turned_away(request)
            self.journal.turned_away(sequence, now, error.message)
            raise error
        stream = TokenStream(lambda served: self._close(sequence, served), lambda: sequence.queued)
        self._streams[sequence.id] = stream
        self._empty.clear()
        for action in self._handle(Arrived(sequence)):
            if isinstance(action, Rejected) and action.sequence is sequence:
                raise action.error
        if self.lanes[request.model].asleep:
            self.wanted()
        return stream

    def check_room(self, request: Request) -> None:
        """Before its text is read, of which nothing else is known yet. Raises as ``submit``, which finds the
        queue full: counted and journalled like any other refusal."""
        lane = self.lanes.get(request.model)
        if lane is not None and lane.failed is None and not lane.may_wait(request):
            self.submit(request)

    def ahead(self, request: Request) -> int | None:
        """As ``Places.ahead``."""
        return self._places.ahead(request)

    def _refusal(self, request: Request) -> MuxdError | None:
        if self._draining:
            return ShuttingDown("muxd is shutting down and takes no new requests")
        return self._refusals.get(request.model)

    def _close(self, sequence: Sequence, served: bool) -> None:
        if self._streams.pop(sequence.id, None) is None:
            return
        self._handle(Cancelled(sequence, served))
        self._note_empty()

    # ---- workers ----------------------------------------------------------------------------------

    def worker_ready(self, model: str, workers: Mapping[Phases, str] | None = None) -> None:
        """``workers``: their names on the link, by phases."""
        self._handle(WorkerReady(model, dict(workers or {})))

    def worker_lost(
        self, model: str, error: MuxdError, *, final: bool = False, blameless: bool = False
    ) -> None:
        """Requests wait for the next worker and go on where they were; with ``final`` they get ``error``.

        Who was in its last batch is tried alone, and a request that ends workers is told so; not where the
        death is ``blameless``.
        """
        self._handle(WorkerLost(model, error, final, blameless))

    def accused(self, model: str) -> bool:
        """Should its worker be lost now, it is known which request has killed it."""
        return self._scheduler.accused(model)

    def retire(self, model: str) -> asyncio.Event:
        """It starts no prompt more; the event is set when nothing of it runs."""
        self._handle(Retiring(model))
        return self._rests.quieted(model)

    def sleep(self, model: str) -> None:
        """Its worker has gone on purpose: its requests wait for the next, also those that had begun."""
        self._handle(Asleep(model))

    def runs_beside(self, model: str) -> bool:
        """Another model computes now."""
        return any(lane.flights for name, lane in self.lanes.items() if name != model)

    def device_faulted(self, model: str, device: str) -> None:
        """A fault of the model's worker has reached all workers of the device; each is reported lost, too."""
        self._observer.device_faulted()
        self.journal.mark("device fault", self._clock.now(), model, device)

    def batch_done(self, model: str, reply: BatchReply) -> None:
        flight = self._scheduler.lanes[model].flight(reply.batch)
        if flight is not None:
            self._told(flight, reply)
        self._handle(BatchDone(model, reply.batch, reply.tokens, reply.seconds), reply.logprobs)

    def _told(self, flight: Flight, reply: BatchReply) -> None:
        """What a batch says of prompts; before their readers hear of a token or an end."""
        for scored in reply.prompt_scores:
            if stream := self._streams.get(flight.sequences[scored.chunk].id):
                stream.score(scored)
        for chunk, vector in reply.vectors:
            if stream := self._streams.get(flight.sequences[chunk].id):
                stream.vector = vector

    @property
    def idle(self) -> bool:
        """No request is anywhere in the unit."""
        return not self._streams

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """To be read only."""
        return self._scheduler.lanes

    @property
    def shares(self) -> Shares:
        """To be read only."""
        return self._scheduler.shares

    # ---- controls ---------------------------------------------------------------------------------

    @property
    def policy(self) -> str:
        return self._scheduler.policy

    def set_policy(self, name: str) -> None:
        """Schedule by ``name`` from now on. Raises Busy while any request is in the unit."""
        self._scheduler.set_policy(name)
        self.journal.mark("policy", self._clock.now(), detail=name)

    def quota(self, model: str) -> int:
        """Head blocks the model may hold now without borrowing."""
        return self._scheduler.quota(model)

    def set_quota(self, model: str, min_blocks: int, max_blocks: int, weight: float) -> None:
        """Move a model's quota, in head blocks. Raises ConfigError where it cannot hold beside the others."""
        self._scheduler.set_quota(model, min_blocks, max_blocks, weight)
        detail = f"min {min_blocks}, max {max_blocks} blocks, weight {weight:g}"
        self.journal.mark("quota", self._clock.now(), model, detail)
        self._handle(Tick())  # who was short of rows may start now

    def set_share(self, model: str, share: int) -> None:
        """Percent of the device under contention, 0: an equal part; from the model's next batch on."""
        self._scheduler.set_share(model, share)
        self._handle(Tick())

    def learnt(self) -> dict[str, Learnt]:
        """See ``Scheduler.learnt``."""
        return self._scheduler.learnt()

    def take_up(self, learnt: Mapping[str, Learnt]) -> None:
        """See ``Scheduler.take_up``."""
        self._scheduler.take_up(learnt)

    # ---- models that come and go -------------------------------------------------------------------

    def open_model(self, spec: LaneSpec, terms: Terms) -> Lane:
        """Serve one model more; its worker is still to become ready. Raises as ``Scheduler.open``."""
        lane = self._scheduler.open(spec, terms)
        self._refusals.pop(spec.model, None)
        return lane

    def hand_over(self, model: str, to: "Unit") -> int:
        """Requests that wait for their first token go on at another unit, in their order; returns how many.

        Those stay that are in a batch, or that the other unit could not hold. No request is lost or told.
        """
        actions = self._handle(Withdraw(model, to.lanes[model].spec.max_context))
        moved = [action.sequence for action in actions if isinstance(action, Withdrawn)]
        now = self._clock.now()
        for sequence in moved:
            stream, book = self._streams.pop(sequence.id), self.journal.withdraw(sequence, now)
            to._take_over(sequence, stream, book, now)
        self._note_empty()
        self._rests.note()
        return len(moved)

    def _take_over(
        self, sequence: Sequence, stream: TokenStream, book: OpenRequest | None, now: float
    ) -> None:
        stream.moved(lambda served: self._close(sequence, served))
        self._streams[sequence.id] = stream
        self._empty.clear()
        if book is not None:
            self.journal.join(book, now)
        self._handle(Joined(sequence))

    def refuse(self, model: str, error: MuxdError) -> None:
        """Take no new requests for ``model``; those that are here go on."""
        self._refusals[model] = error

    def refuse_adapter(self, model: str, adapter: int, error: MuxdError) -> None:
        """Requests for it that wait get ``error``; those for its base and other adapters wait on."""
        for sequence in list(self.lanes[model].waiting.in_order()):
            if sequence.request.adapter == adapter:
                if stream := self._streams.pop(sequence.id, None):
                    stream.fail(error)
                self._handle(Cancelled(sequence))

    def emptied(self, model: str) -> asyncio.Event:
        """Set as soon as no request of ``model`` is left and its last batch is done."""
        return self._rests.emptied(model)

    def close_model(self, model: str) -> None:
        """Serve ``model`` no more; to be refused before. Raises Busy while it has requests."""
        self._scheduler.close(model)
        self._handle(Tick())  # what was the model's is the others' now

    # ---- memory that comes and goes ---------------------------------------------------------------

    def lend(self, first: int, count: int) -> None:
        """Head blocks that every worker has memory for by the time of its next command."""
        self._handle(Lent(first, count))

    def recall(self, first: int, count: int) -> asyncio.Event:
        """Set as soon as no sequence holds any of them and no batch writes there."""
        self._handle(Recalled(first, count))
        return self._rests.vacated()

    # ---- shutdown ---------------------------------------------------------------------------------

    async def empty(self) -> None:
        """Return when the unit has no request."""
        await self._empty.wait()

    async def drain(self, grace: float) -> None:
        """Take no new requests; give the running ones ``grace`` seconds, then tell the rest why."""
        self._draining = True
        try:
            await asyncio.wait_for(self._empty.wait(), grace)
        except TimeoutError:
            self.fail_all(ShuttingDown("muxd is shutting down; the answer was cut short"))
        if self._timer is not None:
            self._timer.cancel()

    def fail_all(self, error: MuxdError) -> None:
        """End every request in every lane with ``error``."""
        for model in self._scheduler.lanes:
            self.worker_lost(model, error, final=True)

    # ---- the loop ---------------------------------------------------------------------------------

    def _handle(self, event: Event, logprobs: Mapping[int, TokenLogprob] | None = None) -> list[Action]:
        now = self._clock.now()
        actions = self._scheduler.handle(event, now)
        self._places.changed()
        for action in actions:
            if isinstance(action, Ahead) or (isinstance(action, Launch) and not action.ahead):
                self._send(action.flight.worker, action.flight.command)
        for action in actions:
            self._perform(action, now, logprobs or {})
        self._observer.observe(event, actions, now)
        self.journal.observe(event, actions, now)
        self._note_empty()
        self._rests.note()
        self._set_timer()
        return actions

    def _perform(self, action: Action, now: float, logprobs: Mapping[int, TokenLogprob]) -> None:
        match action:
            case Emit():
                self._emit(action, logprobs)
            case Ended():
                if stream := self._streams.pop(action.sequence.id, None):
                    stream.end(action.finish)
            case Failed():
                self._fail(action)
            case Rejected():
                if stream := self._streams.pop(action.sequence.id, None):
                    stream.fail(action.error)
            case Overdue():
                self._overdue(action, now)
            case QuotaMoved():
                detail = f"{action.before} -> {action.after} blocks: {action.reason}"
                self.journal.mark("quota moved", now, action.model, detail)

    def _emit(self, emit: Emit, logprobs: Mapping[int, TokenLogprob]) -> None:
        for sequence, token, index in zip(emit.sequences, emit.tokens, emit.index, strict=True):
            stream = self._streams.get(sequence.id)
            if stream is not None:
                stream.cached_tokens = sequence.cached
                stream.put(token, logprobs.get(index))

    def _fail(self, failed: Failed) -> None:
        if isinstance(failed.error, NoFiniteLogits | RequestKillsWorker):
            _log.error("%s: %s", failed.sequence.model, failed.error.message)
        if stream := self._streams.pop(failed.sequence.id, None):
            stream.fail(failed.error)

    def _overdue(self, late: Overdue, now: float) -> None:
        reason = f"has not answered batch {late.batch} for {late.seconds:.1f} s"
        if not late.last:
            _log.error("%s: its worker %s", late.model, reason)
            self.journal.mark("worker hung", now, late.model, reason)
        # Not in the midst of an event: who hears it may have something to tell the scheduler.
        asyncio.get_running_loop().call_soon(self._hung, late.model, reason, late.last)

    def _note_empty(self) -> None:
        if not self._streams:
            self._empty.set()

    def _set_timer(self) -> None:
        """One that goes off too early only looks again; moving it with every step would cost more."""
        now = self._clock.now()
        deadline = self._scheduler.deadline(now)
        if self._timer is not None and deadline is not None and self._due <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._due = deadline
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())
