"""One unit's scheduler, as a pure object: events in, actions out.

No await, no clock, no I/O, no torch. The live driver (``engine/unit.py``) and the simulator feed the same
object. This file keeps every sequence's life; who gets rows is ``rows.py``, who runs when is a policy
(``policies/``). The story is in ``design.md``.
"""

from collections.abc import Iterable, Mapping
from math import inf

from muxd.engine.actions import (
    Action,
    Arrived,
    Asleep,
    BatchDone,
    Cancelled,
    Event,
    Joined,
    Lent,
    Recalled,
    Rejected,
    Retiring,
    Stepped,
    Tick,
    Withdraw,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.forecast import Forecast
from muxd.engine.lane import Lane, LaneSpec
from muxd.engine.learnt import Learnt, Seen
from muxd.engine.memory import Memory, Terms
from muxd.engine.outputs import Outputs
from muxd.engine.patience import Patience
from muxd.engine.policies import POLICIES, Policy
from muxd.engine.recovery import Recovery
from muxd.engine.repeats import Foreseen, Repeats
from muxd.engine.rows import RowKeeper
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.transfer import Transfer
from muxd.errors import (
    Busy,
    ConfigError,
    ContextTooLong,
    MuxdError,
)
from muxd.pool.ledger import Ledger


class Scheduler:
    """Single writer of queues, rows and shares of one unit. Everything goes through ``handle``."""

    def __init__(
        self,
        lanes: Iterable[LaneSpec],
        ledger: Ledger,
        shares: Shares,
        settings: Settings,
        *,
        policy: str | type[Policy] = "mux",
        forecast: Forecast | None = None,
        parts: int = 0,
    ):
        """``parts``: of the device that a batch's share is made of, 0: it has none."""
        self.ledger = ledger
        self.shares = shares
        self.settings = settings
        self.forecast = forecast  # set: refuse what cannot meet its first-token target
        self._board = Board(lanes, ledger, shares, settings, parts)
        self.lanes = self._board.lanes
        self._rows = RowKeeper(self._board)
        self._patience = Patience(self._board)
        self._batches = Batches(self._board, self._rows, self._patience)
        self._memory = Memory(self._board, self._rows)
        self._recovery = Recovery(self._board, self._rows, self._batches)
        self._outputs = Outputs(self._board, self._rows, self._recovery)
        self._transfer = Transfer(self._board, self._rows)
        self._repeats = Repeats(self._board, self._rows, self._batches, self._patience)
        self._policy = self._follow(policy)

    # ---- events -----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: C901 - one case an event
        """Take one event at time ``now`` (seconds, never going back); returns what to do, in order."""
        actions = self._board.actions = []
        match event:
            case Arrived():
                self._on_arrived(event.sequence, now)
            case BatchDone():
                self._on_batch_done(event, now)
            case Stepped():
                self._repeats.done(event)
            case Cancelled():
                self._on_cancelled(event.sequence)
            case WorkerReady():
                lane = self.lanes[event.model]
                lane.begin(event.workers)
                self._board.parts.forget(event.model)
                self._board.even_out()
                self._board.refresh(lane)
            case WorkerLost():
                self._recovery.lose(event, now)
            case Retiring():
                self._retire(self.lanes[event.model], now)
            case Asleep():
                self._recovery.sleep(self.lanes[event.model], now)
            case Withdraw():
                self._transfer.withdraw(event)
            case Joined():
                self._transfer.join(event.sequence, now)
            case Lent():
                self.ledger.lend(event.first, event.count)
                self._rows.look_again()
            case Recalled():
                self.ledger.recall(event.first, event.count)
                self._rows.look_again()
            case Tick():
                self._patience.look(now)
        self._rows.vacate()
        self._policy.launch(now)
        if self.settings.run_ahead:
            self._run_ahead(now)
        for lane in self._board.waiting.lanes:
            lane.block(self._why_waiting(lane), now)
        if self.forecast is not None:
            self.forecast.observe(event, actions, now)
        return actions

    def deadline(self, now: float) -> float | None:
        """When a ``Tick`` is due although nothing else happens."""
        policy, late = self._policy.deadline(now), self._patience.deadline()
        if policy is None:
            return late if late < inf else None
        return min(policy, late)

    def foresee(self, now: float) -> Foreseen | None:
        """Which decode steps will decide nothing: one ``Stepped`` may tell of them. Changes nothing."""
        if self.forecast is not None:
            return None
        return self._repeats.foresee(self._policy, now, ahead=self.settings.run_ahead)

    def accused(self, model: str) -> bool:
        """Should the model's worker be lost now, it is known who has killed it."""
        return self._recovery.culprit(self.lanes[model]) is not None

    # ---- controls ---------------------------------------------------------------------------------

    @property
    def policy(self) -> str:
        return self._policy.name

    def set_policy(self, name: str) -> None:
        """Raises ConfigError for a policy there is not, or one that the quotas do not allow, and Busy while
        any sequence is in the unit."""
        _check_policy(name)
        if not self._board.empty:
            raise Busy("policy: requests are being served; try again when the daemon is idle")
        self._policy = self._follow(name)

    def set_quota(self, model: str, min_blocks: int, max_blocks: int, weight: float = 1.0) -> None:
        """Move a model's quota: head blocks, and its weight above the guarantees.

        Raises, changing nothing, ConfigError if it cannot hold, and Busy while a request is in the unit that
        would never find its rows again.
        """
        self._memory.set_quota(model, min_blocks, max_blocks, weight)

    def quota(self, model: str) -> int:
        """Head blocks the model may hold now without borrowing."""
        return self._rows.quota(model)

    def learnt(self) -> dict[str, Learnt]:
        """Of every model, for a scheduler of the same models over the same pool."""
        quotas, forecast = self._memory.learnt(), self.forecast
        return {
            model: Learnt(
                quotas.get(model), lane.learnt(), forecast.learnt(model) if forecast is not None else Seen()
            )
            for model, lane in self.lanes.items()
        }

    def take_up(self, learnt: Mapping[str, Learnt]) -> None:
        """What another has learnt, of models that are here; quotas as far as they fit."""
        here = {model: one for model, one in learnt.items() if model in self.lanes}
        self._memory.take_up({model: one.quota for model, one in here.items() if one.quota is not None})
        for model, one in here.items():
            self.lanes[model].take_up(one.costs)
            if self.forecast is not None:
                self.forecast.take_up(model, one.seen)

    def set_share(self, model: str, share: int) -> None:
        """From its next batch on; percent of the device under contention, 0: an equal part."""
        lane = self.lanes[model]
        lane.equal = not share
        lane.take_share(share)
        self._board.even_out()

    def open(self, spec: LaneSpec, terms: Terms) -> Lane:
        """Serve one model more; its worker is still to become ready.

        Raises, changing nothing, ConfigError where its quota does not fit beside the others', and Busy while
        another model has a request that would never find its rows again.
        """
        return self._memory.open(spec, terms)

    def close(self, model: str) -> None:
        """Serve a model no more. Raises Busy while it has sequences (``WorkerLost`` with final ends them)."""
        lane = self.lanes[model]
        if not lane.empty:
            raise Busy(f"{model} still has requests")
        self._memory.close(model)

    def _follow(self, policy: str | type[Policy]) -> Policy:
        if isinstance(policy, str):
            _check_policy(policy)
            policy = POLICIES[policy]
        kind = policy
        self._memory.follow(kind.memory)
        return kind(self._board, self._rows, self._batches)

    # ---- arrival ----------------------------------------------------------------------------------

    def _on_arrived(self, sequence: Sequence, now: float) -> None:
        lane = self.lanes[sequence.model]
        error = self._refusal(lane, sequence)
        if error is None and self.forecast is not None:
            error = self.forecast.refusal(lane, sequence, self.lanes, now)
        if error is not None:
            sequence.phase = Phase.ENDED
            self._board.actions.append(Rejected(sequence, error))
            return
        if len(lane.waiting) >= lane.spec.config.max_queue:
            self._make_place(lane, sequence)
        if not lane.waiting:
            lane.prefilled_at = self._board.prefills  # nobody has passed it over yet
        lane.waiting.add(sequence)
        self._rows.arrived(lane, sequence, now)
        self._board.refresh(lane)

    def _refusal(self, lane: Lane, sequence: Sequence) -> MuxdError | None:
        if lane.failed is not None:
            return lane.failed
        if len(sequence.tokens) >= lane.spec.max_context:
            return ContextTooLong(
                f"the prompt has {len(sequence.tokens)} tokens; {lane.spec.model} can hold "
                f"{lane.spec.max_context} tokens of prompt and answer together",
                param="prompt",
            )
        return None if lane.may_wait(sequence.request) else lane.queue_full()

    def _make_place(self, lane: Lane, sequence: Sequence) -> None:
        """In a full queue one key cannot shut out the others."""
        displaced = lane.waiting.displaced(sequence.request)
        assert displaced is not None
        self._recovery.end(displaced)
        self._board.actions.append(Rejected(displaced, lane.queue_full()))

    def _why_waiting(self, lane: Lane) -> str:
        """What the head of the lane's queue waits for; "" when its own prefill runs."""
        if lane.asleep:
            return "weights"
        if not lane.ready:
            return "worker"
        if not self._rows.admissible(lane):
            return "slots" if lane.full(lane.waiting.head) else "rows"
        if not lane.free(prefill=True):
            return ""
        return "share" if self._policy.held == lane.spec.model else "turn"

    # ---- batches ----------------------------------------------------------------------------------

    def _on_batch_done(self, event: BatchDone, now: float) -> None:
        lane = self.lanes[event.model]
        flight = lane.flight(event.batch)
        if flight is None:
            return  # an answer from before the worker was lost
        flight.seconds = event.seconds
        if lane.handover is not None:
            lane.handover.completed(flight.command, event.tokens)  # before the next command is made
        self._batches.complete(lane, flight, now)
        lane.prefilled_since_decode = flight.prefill
        self._learn_cost(lane, flight, now)
        self._rows.look_ahead.computed(flight.tokens)
        if not flight.prefill or not lane.running:
            lane.decode_ended = now  # or: the first streams of this lane get their first token now
        self._outputs.take(lane, flight, event.tokens, now)
        self._recovery.cleared(lane, flight)
        self._rows.finish_evictions(flight.sequences)
        self._rows.note_gone(lane)
        self._board.refresh(lane)

    def _learn_cost(self, lane: Lane, flight: Flight, now: float) -> None:
        """Cached rows that are dear to compute again go last."""
        lane.learn_cost(flight, now - flight.began)
        if flight.prefill:
            self.ledger.set_cost(lane.spec.model, lane.token_seconds * lane.spec.row_tokens)

    def _run_ahead(self, now: float) -> None:
        """A second step for those who decode, where nobody waits for what they would give back after one:
        then no device idles until the daemon has answered."""
        board, rows = self._board, self._rows
        if self._policy.held or board.decodable or rows.starving or rows.claims:
            return
        if any(lane.ready and rows.admissible(lane) for lane in board.waiting.lanes):
            return
        for lane in board.stepping.lanes:
            self._batches.ahead(lane, now)

    # ---- ends -------------------------------------------------------------------------------------

    def _on_cancelled(self, sequence: Sequence) -> None:
        if sequence.phase is Phase.ENDED:
            return
        if sequence.batch is not None:
            sequence.closing = True  # its rows are being written: they are free when the batch is done
            return
        self._recovery.end(sequence)
        lane = self.lanes[sequence.model]
        self._rows.note_gone(lane)
        self._board.refresh(lane)

    def _retire(self, lane: Lane, now: float) -> None:
        lane.retiring = True
        lane.block("weights", now)
        self._rows.note_gone(lane)
        self._board.refresh(lane)


def _check_policy(name: str) -> None:
    if name not in POLICIES:
        raise ConfigError(f"policy: {name!r} is not one of {', '.join(POLICIES)}")
