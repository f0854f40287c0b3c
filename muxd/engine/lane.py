"""One model's side of a unit: its queue, its running sequences, its worker's state."""

from collections.abc import Iterator, Mapping
from math import ceil

from msgspec import Struct, structs

from muxd.config import ModelConfig
from muxd.engine.flight import Flight
from muxd.engine.handover import Handover
from muxd.engine.learnt import LaneCosts, amount
from muxd.engine.queue import Queue
from muxd.engine.request import Request
from muxd.engine.sequence import Phase, Sequence
from muxd.errors import MuxdError, QueueFull
from muxd.messages import Decode, Phases, Prefill
from muxd.pool.windowed import Windowed

_FORGET = 1.05  # how the shortest step grows with every step that is longer
# A prefill of no more takes about as long as a decode step: what it takes to read the weights.
FEW_TOKENS = 16
_KEPT = 8  # the part of its places that a model keeps for keys with few of them
_KEEP = 0.9  # what the average costs keep of their past with every batch


class LaneSpec(Struct, frozen=True):
    """What the scheduler must know of a model: what is configured, and what that comes to at its place.

    A setting that is gone by as it stands is read from ``config`` and is no field here.
    """

    config: ModelConfig
    share: int  # percent; 0: an equal part, which follows who comes, goes and fails
    row_tokens: int  # T of docs/design.md §1
    blocks_per_row: int
    max_context: int  # tokens of prompt and answer; a lane's own spec has what fits into capacity_rows
    max_running: int
    capacity_rows: int  # the most rows one sequence could ever hold here, those of its state among them
    split: bool = False  # a batch of each phase at once
    apart: bool = False  # by a process for each
    cap: int = 100  # percent its worker can use at most: under a fixed cap, more would be booked for nothing
    whole: bool = False  # every token sees the whole text: no prompt is cut into chunks
    state_rows: int = 0  # that each sequence holds beside those of its tokens (``models/state_layout.py``)
    windowed: Windowed | None = None  # the blocks of a row that some layers need for a while only

    @property
    def model(self) -> str:
        return self.config.name

    @property
    def least_blocks(self) -> int:
        """Head blocks that a sequence cannot do without: of its state, and of a row of tokens."""
        return (self.state_rows + 1) * self.blocks_per_row

    @property
    def caches(self) -> bool:
        """Whether later prompts may find its rows: what an encoder computes is the whole text's."""
        return self.config.prefix_cache and not self.whole


class Lane:
    """Who waits is in the queue's order; a preempted or re-run sequence goes before who has not begun."""

    def __init__(self, spec: LaneSpec):
        self.spec = spec
        self.equal = not spec.share
        self.model_context = spec.max_context  # the model's own, whatever the pool can hold
        self.refit(spec.capacity_rows)
        self.ready = False
        self.retiring = False  # it gets no prompt more: it is to sleep
        self.asleep = False  # without a worker on purpose: whoever asks waits for it to wake
        self.workers: Mapping[Phases, str] = {}  # their names on the link
        self.handover: Handover | None = None  # between the two processes of a lane that has them
        self.blocked = ""  # what the head of the queue waits for: worker, slots, rows, share, turn
        self.blocked_since = 0.0
        self.failed: MuxdError | None = None  # set when its worker will not come back
        self.admitted = 0  # sequences that hold rows
        self.promised = 0  # rows of their look-ahead that they do not hold yet
        self.waiting = Queue()
        self.running: list[Sequence] = []
        self.flights: list[Flight] = []  # one at most; of a split lane, one of each phase
        self.ahead: Flight | None = None  # a decode step that its worker has while another still runs
        self.launched = 0  # number of its last batch
        self.stepped = 0  # number of its last decode step
        self.prefilled_at = 0  # how many prefills of the unit had been launched with its last one
        self.forget: list[int] = []  # told to the worker with the next command
        self.decode_ended = 0.0
        self.prefilled_since_decode = False
        self.token_seconds = 0.0  # what prefilling a token was seen to cost
        self.step_seconds = 0.0  # what a decode step was
        self.pace = 0.0  # about the shortest of the last decode steps, and prefills of few tokens
        self.answer_tokens = 0.0  # what its answers take, about
        self.proven: set[bool] = set()  # phases (whether it prefills) of which this worker has done a batch
        self.suspects: dict[int, Sequence] = {}  # see ``recovery``; while there are any, one batch at a time

    def refit(self, capacity_rows: int) -> None:
        """Quotas moved: no sequence may need more rows than it could ever be given."""
        rows = max(0, capacity_rows - self.spec.state_rows)
        most = min(self.model_context, rows * self.spec.row_tokens)
        self.spec = structs.replace(self.spec, capacity_rows=capacity_rows, max_context=most)

    def take_share(self, share: int) -> None:
        """From its next batch on."""
        self.spec = structs.replace(self.spec, share=share)

    def adopt(self, config: ModelConfig) -> None:
        """Settings that can change while it serves rule from the next decision on."""
        self.spec = structs.replace(self.spec, config=config)

    def rows_for(self, tokens: int) -> int:
        """That a sequence of so many holds: of its state, too."""
        return self.spec.state_rows + ceil(tokens / self.spec.row_tokens)

    def passed(self, computed: int) -> int:
        """First rows of a sequence that layers with windows see no more, from position ``computed`` on."""
        windowed = self.spec.windowed
        return 0 if windowed is None else windowed.passed(computed, self.spec.row_tokens)

    def blocks_of(self, sequence: Sequence) -> int:
        """Head blocks that it needs; others may share some."""
        windowed = 0 if self.spec.windowed is None else len(self.spec.windowed.columns)
        return len(sequence.held) * self.spec.blocks_per_row - sequence.faded * windowed

    def admit(self, sequence: Sequence) -> None:
        """It has its rows."""
        self.waiting.admitted(sequence)
        self.admitted += 1

    def release(self, sequence: Sequence) -> None:
        """It has given them back."""
        self.waiting.released(sequence)
        self.admitted -= 1

    def full(self, sequence: Sequence) -> bool:
        """No place for it among the running: of several keys who has many leaves the last ones to those that
        have few. Who has begun goes on."""
        crowds = sequence.counter is None and self._crowds(sequence)
        return self.admitted >= self.spec.max_running - crowds * (self.spec.max_running // _KEPT)

    def may_wait(self, request: Request) -> bool:
        """There is a place in the queue, or somebody who has to give it up."""
        return len(self.waiting) < self.spec.config.max_queue or self.waiting.displaced(request) is not None

    def queue_full(self) -> QueueFull:
        """For who may not wait."""
        waiting = len(self.waiting)
        return QueueFull(
            f"{self.spec.model} already has {waiting} requests waiting; try again later", position=waiting + 1
        )

    def next_prompts(self) -> Iterator[Sequence]:
        """For one batch, in order: nobody whose key has many places behind one whose key has few, which would
        wait for it."""
        few = False
        for sequence in self.waiting.in_order():
            crowds = self._crowds(sequence)
            if few and crowds:
                return
            few = few or not crowds
            yield sequence

    def _crowds(self, sequence: Sequence) -> bool:
        """Its key has as many places as are kept for those that have few."""
        kept = self.spec.max_running // _KEPT
        return bool(kept) and self.waiting.crowds(sequence, kept)

    @property
    def queued(self) -> int:
        """Sequences that hold no rows yet."""
        return len(self.waiting) + len(self.running) - self.admitted

    @property
    def empty(self) -> bool:
        """No request is here and no batch runs."""
        return not (self.waiting or self.running or self.flights)

    @property
    def quiet(self) -> bool:
        """Nothing of it runs; requests may wait."""
        return not (self.running or self.flights or self.admitted)

    @property
    def startable(self) -> bool:
        """A worker of it is ready for a command."""
        return self.ready and len(self.flights) <= (self.spec.split and not self.suspects)

    def free(self, *, prefill: bool) -> bool:
        """The worker of that phase is ready for a command."""
        if self.suspects:
            return self.ready and not self.flights and not (prefill and self.tried is not None)
        if not self.flights:
            return self.ready
        return self.ready and self.spec.split and all(it.prefill != prefill for it in self.flights)

    @property
    def prompts(self) -> bool:
        """Somebody waits to be computed; of one that retires only who has begun."""
        return bool(self.waiting) and (not self.retiring or bool(self.waiting.head.rows))

    @property
    def tried(self) -> Sequence | None:
        """The suspect whose next step is to be its own."""
        return next((one for one in self.suspects.values() if one.phase is Phase.RUNNING), None)

    @property
    def steppers(self) -> list[Sequence]:
        """Who is in the next decode step, if there are rows."""
        tried = self.tried if self.suspects else None
        return self.running if tried is None else [tried]

    @property
    def all_flights(self) -> list[Flight]:
        """What its workers have, begun or not."""
        return self.flights if self.ahead is None else [*self.flights, self.ahead]

    def flight(self, batch: int) -> Flight | None:
        """The batch of that number, if it is being computed."""
        return next((it for it in self.flights if it.batch == batch), None)

    @property
    def step(self) -> Flight | None:
        """The decode step that is being computed."""
        return next((it for it in self.flights if not it.prefill), None)

    def overdue(self, now: float, patience: float) -> bool:
        """Running streams have waited ``patience`` for a step while prefills went first.

        Without the second condition a model whose steps are longer than ``patience`` would never prefill.
        """
        return bool(self.running) and self.prefilled_since_decode and now - self.decode_ended >= patience

    def begin(self, workers: Mapping[Phases, str]) -> None:
        """They take commands, and know of nothing yet."""
        self.ready, self.failed, self.workers = True, None, workers
        self.retiring = self.asleep = False
        self.handover = Handover() if self.spec.apart else None

    def told(self, command: Prefill | Decode) -> tuple[str, Prefill | Decode]:
        """Which worker computes the lane's next command, and the command as that one needs it."""
        phases: Phases = "both"
        if self.handover is not None:
            phases, command = self.handover.place(command)
        return self.workers.get(phases, self.spec.model), command

    def learn_cost(self, flight: Flight, seconds: float) -> None:
        """A batch took that long."""
        self.proven.add(flight.prefill)
        if not flight.prefill:
            self.learn_step(seconds)
            return
        self.token_seconds = _mean(self.token_seconds, seconds / flight.tokens)
        if flight.tokens <= FEW_TOKENS:
            self._learn_pace(seconds)

    def learn_step(self, seconds: float) -> None:
        """A decode step took that long."""
        self.step_seconds = _mean(self.step_seconds, seconds)
        self._learn_pace(seconds)

    def _learn_pace(self, seconds: float) -> None:
        self.pace = min(seconds, self.pace * _FORGET) if self.pace else seconds

    def learn_answer(self, tokens: int) -> None:
        """A sequence has ended with so many."""
        self.answer_tokens = _mean(self.answer_tokens, tokens)

    def learnt(self) -> LaneCosts:
        return LaneCosts(*map(amount, (self.token_seconds, self.step_seconds, self.pace, self.answer_tokens)))

    def take_up(self, costs: LaneCosts) -> None:
        """What was learnt before."""
        self.token_seconds, self.step_seconds = costs.token_seconds, costs.step_seconds
        self.pace, self.answer_tokens = costs.pace, costs.answer_tokens

    def expected_seconds(self, flight: Flight) -> float:
        """By what was learnt; 0 before anything was."""
        return self.token_seconds * flight.tokens if flight.prefill else self.step_seconds

    def lose(self, failed: MuxdError | None) -> None:
        """Its worker is gone; for good when it has ``failed``."""
        self.ready, self.failed = False, failed
        self.proven.clear()

    def block(self, reason: str, now: float) -> None:
        """What the head of the queue waits for from ``now`` on."""
        if reason != self.blocked:
            self.blocked, self.blocked_since = reason, now

    def requeue(self, sequence: Sequence) -> None:
        """Back into the queue at its place."""
        sequence.reset()
        if sequence.suspect:
            self.suspects[sequence.id] = sequence
        self.waiting.put_back(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take it out of queue or batch list, wherever it is."""
        self.suspects.pop(sequence.id, None)
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)

    def sequences(self) -> Iterator[Sequence]:
        yield from self.waiting
        yield from self.running


def _mean(known: float, value: float) -> float:
    """The last ten or so count."""
    return value if not known else _KEEP * known + (1 - _KEEP) * value
