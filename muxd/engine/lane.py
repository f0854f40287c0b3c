"""One model's side of a unit: its queue, its running sequences, its worker's state."""

from collections import deque
from collections.abc import Iterator
from math import ceil

from msgspec import Struct, structs

from muxd.engine.sequence import Phase, Sequence
from muxd.errors import MuxdError


class LaneSpec(Struct, frozen=True):
    """What the scheduler must know of a model. ``row_tokens`` is T of docs/design.md §1."""

    model: str
    share: int
    row_tokens: int
    max_context: int  # tokens of prompt and answer; its rows fit into capacity_rows
    max_running: int
    max_queue: int
    capacity_rows: int  # the most rows one sequence could ever hold here


class InFlight(Struct):
    """The batch a worker is computing."""

    batch: int
    prefill: bool
    sequences: list[Sequence]
    chunk: list[int]  # tokens computed per sequence
    share: int


class Lane:
    """Queue order is arrival order; a preempted or re-run sequence keeps its place."""

    def __init__(self, spec: LaneSpec):
        self.spec = spec
        self.model_context = spec.max_context
        self.ready = False
        self.blocked = ""  # what the head of the queue waits for: worker, slots, rows, share, turn
        self.failed: MuxdError | None = None  # set when its worker will not come back
        self.admitted = 0  # sequences that hold rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.flight: InFlight | None = None
        self.starving = False  # a running sequence found no row for its next token
        self.forget: list[int] = []  # told to the worker with the next command
        self.decode_ended = 0.0
        self.prefilled_since_decode = False

    def refit(self, capacity_rows: int) -> None:
        """Quotas moved: no sequence may need more rows than it could ever be given."""
        most = min(self.model_context, capacity_rows * self.spec.row_tokens)
        self.spec = structs.replace(self.spec, capacity_rows=capacity_rows, max_context=most)

    def rows_for(self, tokens: int) -> int:
        return ceil(tokens / self.spec.row_tokens)

    @property
    def queued(self) -> int:
        """Sequences that hold no rows yet."""
        return len(self.waiting) + len(self.running) - self.admitted

    @property
    def idle(self) -> bool:
        """Ready for a command."""
        return self.ready and self.flight is None

    def overdue(self, now: float, patience: float) -> bool:
        """Running streams have waited ``patience`` for a step while prefills went first.

        Without the second condition a model whose steps are longer than ``patience`` would never prefill.
        """
        return bool(self.running) and self.prefilled_since_decode and now - self.decode_ended >= patience

    def enqueue(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Back into the queue at its place by arrival."""
        sequence.reset()
        place = 0
        for place, other in enumerate(self.waiting):  # noqa: B007 - place is used after the loop
            if other.arrived > sequence.arrived:
                break
        else:
            place = len(self.waiting)
        self.waiting.insert(place, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take it out of queue or batch list, wherever it is."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def sequences(self) -> Iterator[Sequence]:
        yield from self.waiting
        yield from self.running
