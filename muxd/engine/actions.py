"""The scheduler's whole window on the world: events in, actions out."""

from msgspec import Struct

from muxd.engine.flight import Flight
from muxd.engine.request import Finish
from muxd.engine.sequence import Sequence
from muxd.errors import MuxdError
from muxd.messages import Phases


class Arrived(Struct, frozen=True):
    """A new sequence. Answered in the same call by ``Rejected``, of itself or, in a full queue, of one that
    waits with another key; or by nothing."""

    sequence: Sequence


class BatchDone(Struct, frozen=True):
    """A worker finished ``batch``; ``tokens`` in the command's order, NO_TOKEN among them. ``seconds``: on
    the device, as it measured."""

    model: str
    batch: int
    tokens: list[int]
    seconds: float = 0.0


class Cancelled(Struct, frozen=True):
    """Its reader went away, or has been ``served``: it has what it wants."""

    sequence: Sequence
    served: bool = False


class Lent(Struct, frozen=True):
    """Head blocks [first, first + count) have memory from now on, in every worker."""

    first: int
    count: int


class Recalled(Struct, frozen=True):
    """Lent head blocks are wanted back: who holds them is preempted, now or when its batch is done."""

    first: int
    count: int


class WorkerReady(Struct, frozen=True):
    """The model's worker takes commands (again). ``workers``: their names by phases."""

    model: str
    workers: dict[Phases, str] = {}


class WorkerLost(Struct, frozen=True):
    """The model's worker is gone. ``final``: it will not come back. ``blameless``: not for what it ran."""

    model: str
    error: MuxdError
    final: bool = False
    blameless: bool = False


class Retiring(Struct, frozen=True):
    """The model's worker is to go: it gets no prompt more, streams go on. ``Asleep`` follows."""

    model: str


class Asleep(Struct, frozen=True):
    """The model's worker has gone on purpose: its requests wait, also those that had begun, until the next is
    ready."""

    model: str


class Withdraw(Struct, frozen=True):
    """Give up the model's requests that have sent no token and are in no batch, for another unit.

    Those stay that have ``room`` tokens or more: the other unit could not hold them. Answered by a
    ``Withdrawn`` for each, in the order of the queue.
    """

    model: str
    room: int


class Joined(Struct, frozen=True):
    """A sequence that another unit has withdrawn; it was admitted there and takes its place by arrival."""

    sequence: Sequence


class Stepped(Struct, frozen=True):
    """Decode steps that ``Scheduler.foresee`` has foreseen are done: whose, and when that was heard, in
    order. Each gave each of its sequences one ``token`` more, which ends none of them."""

    steps: list[tuple[str, float]]
    token: int


class Tick(Struct, frozen=True):
    """Nothing happened, time passed."""


Event = (
    Arrived
    | BatchDone
    | Stepped
    | Cancelled
    | WorkerReady
    | WorkerLost
    | Retiring
    | Asleep
    | Withdraw
    | Joined
    | Lent
    | Recalled
    | Tick
)


class Launch(Struct, frozen=True):
    """The batch begins. Send its command to its worker, unless it went ``ahead``."""

    flight: Flight
    ahead: bool = False


class Ahead(Struct, frozen=True):
    """Send a step to the model's worker whose last one still runs; ``Launch`` follows when that is done."""

    flight: Flight


class Completed(Struct, frozen=True):
    """The batch is over: done, or lost with its worker."""

    flight: Flight


class Emit(Struct, frozen=True):
    """New tokens, ``tokens[i]`` (reply index ``index[i]``) for ``sequences[i]``, ``gaps[i]`` seconds
    after the one before; None: it is the first."""

    sequences: list[Sequence]
    tokens: list[int]
    index: list[int]
    gaps: list[float | None]


class Ended(Struct, frozen=True):
    """The sequence is complete; its rows are free, or will be when the step that went ahead is done."""

    sequence: Sequence
    finish: Finish


class Failed(Struct, frozen=True):
    """The sequence cannot go on; its rows are free."""

    sequence: Sequence
    error: MuxdError


class Rejected(Struct, frozen=True):
    """The sequence was never admitted."""

    sequence: Sequence
    error: MuxdError


class Preempted(Struct, frozen=True):
    """The sequence lost its rows and waits again; it will be recomputed."""

    sequence: Sequence


class Resumed(Struct, frozen=True):
    """The sequence lost its worker and waits for the next one; it will be recomputed."""

    sequence: Sequence


class Overdue(Struct, frozen=True):
    """The batch has taken ``seconds``, which is too long. ``last``: long enough ago it was said before; the
    worker must go."""

    model: str
    batch: int
    seconds: float
    last: bool


class Withdrawn(Struct, frozen=True):
    """The sequence is no more this unit's; nothing of it is left here."""

    sequence: Sequence


class QuotaMoved(Struct, frozen=True):
    """The model may hold ``after`` head blocks without borrowing, no longer ``before``."""

    model: str
    before: int
    after: int
    reason: str


Action = (
    Launch
    | Ahead
    | Completed
    | Emit
    | Ended
    | Failed
    | Rejected
    | Preempted
    | Resumed
    | Overdue
    | Withdrawn
    | QuotaMoved
)
