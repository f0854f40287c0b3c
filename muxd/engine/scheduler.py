"""Adaptive batch scheduling (ADBS, MuxServe Algorithm 3) for one unit, as a pure object.

Events in, actions out: no await, no clock, no I/O, no torch. The live driver (``engine/unit.py``) and the
simulator feed the same object. The order of the decision tree in ``_launch`` is the one of
docs/design.md §5; the story is in ``engine/design.md``.
"""

from collections.abc import Iterable

import numpy as np

from muxd.engine.actions import (
    Action,
    Arrived,
    BatchDone,
    Cancelled,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
    Preempted,
    Rejected,
    Tick,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.commands import NO_ROWS, chunk_of, drain, new_rows
from muxd.engine.forecast import Forecast
from muxd.engine.lane import InFlight, Lane, LaneSpec
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.errors import Busy, ConfigError, ContextTooLong, MuxdError, QueueFull
from muxd.messages import Chunk, Decode, NewRows, Prefill
from muxd.pool.ledger import Ledger, Rows

POLICIES = ("mux",)

# A held prefill that has waited this many drain timeouts lets no decode step pass any more.
_STRICT_AFTER = 4


class Scheduler:
    """Single writer of queues, rows and shares of one unit. Everything goes through ``handle``."""

    def __init__(
        self,
        lanes: Iterable[LaneSpec],
        ledger: Ledger,
        shares: Shares,
        settings: Settings,
        *,
        policy: str = "mux",
        forecast: Forecast | None = None,
    ):
        self.lanes = {spec.model: Lane(spec) for spec in lanes}
        self.ledger = ledger
        self.shares = shares
        self.settings = settings
        _check_policy(policy)
        self.policy = policy
        self.forecast = forecast  # set: refuse what cannot meet its first-token target
        self._batches = 0
        self._prefill_turn: list[str] = list(self.lanes)  # round-robin orders, next model first
        self._decode_turn: list[str] = list(self.lanes)
        self._held: str | None = None  # the model whose prefill waits for share
        self._held_since = 0.0
        self._evicting: set[int] = set()  # sequences in flight that will be preempted when done

    # ---- events -----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time ``now`` (seconds, never going back); returns what to do, in order."""
        actions: list[Action] = []
        match event:
            case Arrived():
                self._on_arrived(event.sequence, now, actions)
            case BatchDone():
                self._on_batch_done(event, now, actions)
            case Cancelled():
                self._on_cancelled(event.sequence)
            case WorkerReady():
                self.lanes[event.model].ready = True
                self.lanes[event.model].failed = None
            case WorkerLost():
                self._on_worker_lost(event, actions)
            case Tick():
                pass
        self._launch(now, actions)
        for lane in self.lanes.values():
            lane.blocked = self._why_waiting(lane)
        if self.forecast is not None:
            self.forecast.observe(event, actions, now)
        return actions

    def deadline(self, now: float) -> float | None:
        """When a ``Tick`` is due although nothing else happens: a held decode step becomes overdue."""
        if self._held is None:
            return None
        patience = self.settings.drain_timeout
        due = [lane.decode_ended + patience for lane in self.lanes.values() if lane.idle and lane.running]
        return min((time for time in due if time > now), default=None)

    def set_policy(self, name: str) -> None:
        """Raises ConfigError for a policy there is not, Busy while any sequence is in the unit."""
        _check_policy(name)
        if any(lane.waiting or lane.running for lane in self.lanes.values()):
            raise Busy("policy: requests are being served; try again when the daemon is idle")
        self.policy = name

    def set_quota(self, model: str, min_blocks: int, max_blocks: int) -> None:
        """Move a model's quota, in head blocks.

        Raises, changing nothing, ConfigError if it cannot hold, and Busy while a request is in the unit that
        would never find its rows again.
        """
        before = self.ledger.usage()[model]
        self.ledger.set_quota(model, min_blocks, max_blocks)
        for lane in self.lanes.values():
            room = self.ledger.limit(lane.spec.model) * lane.spec.row_tokens
            if any(len(sequence.tokens) >= room for sequence in lane.sequences()):
                self.ledger.set_quota(model, before.min_blocks, before.max_blocks)
                raise Busy(
                    f"quota: {lane.spec.model} has a request longer than {room} tokens; try again later"
                )
        for lane in self.lanes.values():
            lane.refit(self.ledger.limit(lane.spec.model))

    def _why_waiting(self, lane: Lane) -> str:
        """What the head of the lane's queue waits for; "" when nothing waits or its own batch runs."""
        if not lane.waiting:
            return ""
        if not lane.ready:
            return "worker"
        if not lane.waiting[0].rows and not self._admissible(lane):
            return "slots" if lane.admitted >= lane.spec.max_running else "rows"
        if lane.flight is not None:
            return ""
        return "share" if self._held == lane.spec.model else "turn"

    def _on_arrived(self, sequence: Sequence, now: float, actions: list[Action]) -> None:
        lane = self.lanes[sequence.model]
        error = self._refusal(lane, sequence)
        if error is None and self.forecast is not None:
            error = self.forecast.refusal(lane, sequence, self.lanes, now)
        if error is not None:
            sequence.phase = Phase.ENDED
            actions.append(Rejected(sequence, error))
        else:
            lane.enqueue(sequence)

    def _refusal(self, lane: Lane, sequence: Sequence) -> MuxdError | None:
        if lane.failed is not None:
            return lane.failed
        if len(sequence.tokens) >= lane.spec.max_context:
            return ContextTooLong(
                f"the prompt has {len(sequence.tokens)} tokens; {lane.spec.model} can hold "
                f"{lane.spec.max_context} tokens of prompt and answer together",
                param="prompt",
            )
        if len(lane.waiting) >= lane.spec.max_queue:
            waiting = len(lane.waiting)
            return QueueFull(f"{lane.spec.model} already has {waiting} requests waiting; try again later")
        return None

    def _on_cancelled(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.ENDED:
            return
        if sequence.batch is not None:
            sequence.closing = True  # its rows are being written: they are free when the batch is done
        else:
            self._end(sequence)

    def _on_worker_lost(self, event: WorkerLost, actions: list[Action]) -> None:
        """A sequence whose reader has seen tokens fails; one that has sent none starts over, once."""
        lane = self.lanes[event.model]
        lane.ready = False
        lane.failed = event.error if event.final else None
        lane.flight = None
        lane.starving = False
        self.shares.release(event.model)
        for sequence in list(lane.sequences()):
            self._evicting.discard(sequence.id)
            touched = bool(sequence.rows)
            fresh = sequence.generated == 0 and sequence.reruns == 0
            if sequence.closing:
                self._end(sequence)
            elif event.final or (touched and not fresh):
                self._end(sequence)
                actions.append(Failed(sequence, event.error))
            elif touched:
                sequence.reruns += 1
                self._release(sequence)
                sequence.reset()
        lane.forget.clear()

    def _on_batch_done(self, event: BatchDone, now: float, actions: list[Action]) -> None:
        lane = self.lanes[event.model]
        flight = lane.flight
        if flight is None or flight.batch != event.batch:
            return  # an answer from before the worker was lost
        lane.flight = None
        self.shares.release(event.model)
        lane.prefilled_since_decode = flight.prefill
        if not flight.prefill or not lane.running:
            lane.decode_ended = now  # or: the first streams of this lane get their first token now
        emit = Emit([], [], [])
        ended: list[Action] = []
        index = 0
        for sequence, computed in zip(flight.sequences, flight.chunk, strict=True):
            sequence.batch = None
            sequence.computed += computed
            sampled = sequence.remaining == 0
            if sequence.closing:
                self._end(sequence)
            elif sampled:
                self._accept(lane, sequence, event.tokens[index], index, emit, ended)
            index += sampled
        if emit.sequences:
            actions.append(emit)
        actions.extend(ended)
        self._finish_evictions(flight, actions)

    def _accept(
        self, lane: Lane, sequence: Sequence, token: int, index: int, emit: Emit, ended: list[Action]
    ) -> None:
        if sequence.phase is Phase.WAITING:
            lane.waiting.remove(sequence)
            sequence.phase = Phase.RUNNING
            lane.running.append(sequence)
        before = len(sequence.tokens)
        finish = sequence.take(token, lane.spec.max_context)
        if len(sequence.tokens) > before:
            emit.sequences.append(sequence)
            emit.tokens.append(token)
            emit.index.append(index)
        if finish is not None:
            self._end(sequence)
            ended.append(Ended(sequence, finish))

    # ---- decisions --------------------------------------------------------------------------------

    def _launch(self, now: float, actions: list[Action]) -> None:
        """1. one prefill batch, if none runs; 2. a prefill short of share holds decodes; 3. decodes."""
        held = None
        if not self._prefilling:
            held = self._launch_prefill(now, actions)  # 1
        if held != self._held:  # 2
            self._held, self._held_since = held, now
        for model in list(self._decode_turn):  # 3
            lane = self.lanes[model]
            if lane.idle and lane.running and self._may_decode(lane, now):
                self._launch_decode(lane, actions)

    def _launch_prefill(self, now: float, actions: list[Action]) -> str | None:
        """Round-robin over models; returns the model whose turn it is but whose share is not free."""
        for model in list(self._prefill_turn):
            lane = self.lanes[model]
            if not (lane.ready and lane.waiting) or not self._admissible(lane):
                continue  # nothing to do, or no rows: holding decodes back would not help
            if lane.flight is not None:
                if lane.flight.share >= self.shares.floor(lane.spec.share):
                    continue  # its own decode step will leave enough when it ends
                return model
            if lane.overdue(now, self.settings.drain_timeout):
                continue
            share = self.shares.grant(lane.spec.share, self._contenders(lane, prefilling=True))
            if share is None:
                return model
            self._start_prefill(lane, share, actions)
            self._to_back(self._prefill_turn, model)
            return None
        return None

    def _may_decode(self, lane: Lane, now: float) -> bool:
        if self._held is None:
            return True
        if now - self._held_since >= _STRICT_AFTER * self.settings.drain_timeout:
            return False  # the starvation bound of docs/design.md §5: now the prefill goes first
        return now - lane.decode_ended >= self.settings.drain_timeout

    @property
    def _prefilling(self) -> bool:
        return any(lane.flight is not None and lane.flight.prefill for lane in self.lanes.values())

    def _contenders(self, lane: Lane, *, prefilling: bool) -> list[int]:
        """Shares of the other models that could start a batch beside this one.

        A model that has only prompts cannot while a prefill runs, nor one whose next prompt finds no rows.
        """
        others = [other for other in self.lanes.values() if other is not lane and other.idle]
        return [
            other.spec.share
            for other in others
            if other.running or (other.waiting and not prefilling and self._admissible(other))
        ]

    def _admissible(self, lane: Lane) -> bool:
        """Whether the head of the queue can be (or already is) given its rows."""
        head = lane.waiting[0]
        return bool(head.rows) or (
            not self._starving
            and lane.admitted < lane.spec.max_running
            and self._rows_at_admission(lane, head) <= self.ledger.available(lane.spec.model)
        )

    @property
    def _starving(self) -> bool:
        """A running sequence waits for its next row: what comes free is its, not a newcomer's.

        Otherwise a prompt that was preempted to make room would be admitted into that very room again.
        """
        return any(lane.starving and lane.running for lane in self.lanes.values())

    def _rows_at_admission(self, lane: Lane, sequence: Sequence) -> int:
        """Rows for what is known plus a bounded look-ahead of what will be generated."""
        left = sequence.request.max_tokens - sequence.generated
        tokens = len(sequence.tokens) + min(self.settings.look_ahead, left)
        return min(lane.rows_for(min(tokens, lane.spec.max_context)), lane.spec.capacity_rows)

    # ---- launching --------------------------------------------------------------------------------

    def _start_prefill(self, lane: Lane, share: int, actions: list[Action]) -> None:
        """First come first served up to the token budget; the last prompt may be cut into chunks."""
        budget = self.settings.prefill_tokens
        granted: list[Rows] = []
        chunks: list[Chunk] = []
        sequences: list[Sequence] = []
        for sequence in lane.waiting:
            if budget == 0 or (rows := self._admit(lane, sequence)) is None:
                break
            if rows.ids.size:
                granted.append(rows)
            chunk = chunk_of(sequence, budget, rows)
            budget -= len(chunk.tokens) // 4
            chunks.append(chunk)
            sequences.append(sequence)
        command = Prefill(self._next_batch(), share, new_rows(granted), chunks, drain(lane.forget))
        sizes = [len(chunk.tokens) // 4 for chunk in chunks]
        self._fly(lane, command, InFlight(command.batch, True, sequences, sizes, share), actions)

    def _admit(self, lane: Lane, sequence: Sequence) -> Rows | None:
        """The rows it needs beyond those it has; None if it must wait."""
        if sequence.rows:
            return NO_ROWS
        if lane.admitted >= lane.spec.max_running or self._starving:
            return None
        rows = self.ledger.take(lane.spec.model, self._rows_at_admission(lane, sequence))
        if rows is not None:
            sequence.rows = rows.ids.tolist()
            lane.admitted += 1
        return rows

    def _launch_decode(self, lane: Lane, actions: list[Action]) -> None:
        share = self.shares.grant(lane.spec.share, self._contenders(lane, prefilling=self._prefilling))
        if share is None:
            return
        sequences, grown, rows = self._grow(lane, actions)
        if not sequences:
            return
        ids = [sequence.id for sequence in sequences]
        command = Decode(self._next_batch(), share, rows, ids, grown, drain(lane.forget))
        flight = InFlight(command.batch, False, sequences, [1] * len(sequences), share)
        self._fly(lane, command, flight, actions)
        self._to_back(self._decode_turn, lane.spec.model)

    def _fly(self, lane: Lane, command: Prefill | Decode, flight: InFlight, actions: list[Action]) -> None:
        self.shares.book(lane.spec.model, flight.share)
        lane.flight = flight
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        actions.append(Launch(lane.spec.model, command))

    # ---- rows -------------------------------------------------------------------------------------

    def _grow(
        self, lane: Lane, actions: list[Action]
    ) -> tuple[list[Sequence], list[tuple[int, int]], NewRows]:
        """Rows for the sequences whose next token starts a new one; who cannot have one sits out."""
        size = lane.spec.row_tokens
        need = [s for s in lane.running if s.computed >= len(s.rows) * size]
        stalled: set[int] = set()
        granted: Rows | None = NO_ROWS
        while need and (granted := self.ledger.take(lane.spec.model, len(need))) is None:
            victim = self._make_room(lane, len(need), actions)
            if victim is None:
                stalled.add(need.pop().id)
            elif victim in need:
                need.remove(victim)
        if not need or granted is None:
            granted = NO_ROWS
        lane.starving = bool(stalled)
        grown = list(zip((s.id for s in need), granted.ids.tolist(), strict=True))
        for sequence, (_, row) in zip(need, grown, strict=True):
            sequence.rows.append(row)
        return [s for s in lane.running if s.id not in stalled], grown, new_rows([granted])

    def _make_room(self, asking: Lane, rows: int, actions: list[Action]) -> Sequence | None:
        """Preempt one sequence and return it; None when the room is only coming (or not to be had)."""
        lane = self._most_over(asking)
        holders = [s for s in lane.sequences() if s.rows and not s.closing]
        if any(s.id in self._evicting for s in holders) or not holders:
            return None
        victim = max(holders, key=lambda s: (s.arrived, s.id))
        if victim.batch is not None:
            self._evicting.add(victim.id)
            return None
        self._preempt(victim, actions)
        return victim

    def _most_over(self, asking: Lane) -> Lane:
        """The model that holds most beyond its guarantee; the asking one if nobody does."""
        usage = self.ledger.usage()
        over = {model: use.blocks - use.min_blocks for model, use in usage.items() if model in self.lanes}
        worst = max(over, key=lambda model: over[model])
        return self.lanes[worst] if over[worst] > 0 else asking

    def _preempt(self, sequence: Sequence, actions: list[Action]) -> None:
        lane = self.lanes[sequence.model]
        lane.remove(sequence)
        self._release(sequence)
        sequence.preemptions += 1
        lane.requeue(sequence)
        actions.append(Preempted(sequence))

    def _finish_evictions(self, flight: InFlight, actions: list[Action]) -> None:
        for sequence in flight.sequences:
            if sequence.id in self._evicting:
                self._evicting.discard(sequence.id)
                if sequence.phase is not Phase.ENDED:
                    self._preempt(sequence, actions)

    def _release(self, sequence: Sequence) -> None:
        """Give its rows back and let the worker forget it."""
        if sequence.rows:
            lane = self.lanes[sequence.model]
            self.ledger.release(sequence.model, np.asarray(sequence.rows, dtype=np.int32))
            lane.forget.append(sequence.id)
            lane.admitted -= 1
            sequence.rows = []

    def _end(self, sequence: Sequence) -> None:
        self.lanes[sequence.model].remove(sequence)
        self._release(sequence)
        self._evicting.discard(sequence.id)
        sequence.batch = None
        sequence.phase = Phase.ENDED

    # ---- small things -----------------------------------------------------------------------------

    def _next_batch(self) -> int:
        self._batches += 1
        return self._batches

    @staticmethod
    def _to_back(turn: list[str], model: str) -> None:
        """The models before ``model`` were passed over, they keep their turn."""
        turn.remove(model)
        turn.append(model)


def _check_policy(name: str) -> None:
    if name not in POLICIES:
        raise ConfigError(f"policy: {name!r} is not one of {', '.join(POLICIES)}")
