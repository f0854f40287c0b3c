"""One sequence's life inside a unit. Owned by the scheduler; the driver only carries it around."""

from collections.abc import Sequence as Ids
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from muxd.engine.request import Finish, Request
from muxd.pool.prefix import Chain

if TYPE_CHECKING:
    from muxd.engine.queue import TokenCounter


class Phase(Enum):
    """Where a sequence is. Every sequence ends in ENDED exactly once."""

    WAITING = "waiting"  # no rows, or some chunks of its prompt still to compute
    RUNNING = "running"  # decoding
    ENDED = "ended"


class Sequence:
    """Tokens, rows and progress of one request.

    Half-open intervals over token positions::

        [0, computed)            K and V are in ``rows``
        [computed, len(tokens))  known, still to be computed (one token while decoding)
        [prompt_tokens, ...)     generated here
    """

    __slots__ = (
        "arrived",
        "batch",
        "branch",
        "cached",
        "chain",
        "charge",
        "closing",
        "computed",
        "copy",
        "counter",
        "estimate",
        "faded",
        "first",
        "id",
        "latest",
        "mark",
        "origin",
        "phase",
        "preemptions",
        "prompt_tokens",
        "reads_back",
        "registered",
        "request",
        "reruns",
        "rows",
        "started",
        "state",
        "suspect",
        "tokens",
    )

    def __init__(self, id: int, request: Request, arrived: float):
        self.id = id
        self.request = request
        self.arrived = arrived
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.reads_back = request.sampling.reads_back
        self.computed = 0
        self.rows: list[int] = []
        self.state: list[int] = []  # rows of its state, beside those of its tokens, where its model keeps one
        self.origin: list[int] = []  # rows of a copy of another's state, until its own is filled from it
        self.copy: list[int] = []  # rows into which its own is copied after ``mark`` tokens
        self.mark = 0
        self.branch = 0  # rows of its prompt that others had when it was admitted
        self.charge = 0  # rows for tokens it was admitted with: known ones and look-ahead
        self.chain: Chain | None = None  # names of its full rows, where its model caches them
        self.registered = 0  # rows whose names the ledger knows
        self.faded = 0  # its first rows that layers with windows see no more
        self.cached = 0  # prompt tokens found computed when it was first admitted
        self.phase = Phase.WAITING
        self.batch: int | None = None  # the last batch in flight that contains it
        self.closing = False  # to be released when that batch is done: its reader has left, or has all
        self.preemptions = 0
        self.reruns = 0  # computed anew because a worker was lost
        self.started: float | None = None  # when its first batch was launched
        self.first: float | None = None  # when its first token came
        self.latest = arrived  # when its newest did
        self.estimate: float | None = None  # seconds to its first token, as it was let in with
        self.counter: TokenCounter | None = None  # counts what it is served, since it was first admitted
        self.suspect = False  # was in a worker's last batch: it is tried alone

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def name(self) -> str:
        """What clients call it: its model, or the adapter it asks for."""
        return self.request.name

    @property
    def queued(self) -> float | None:
        """Seconds until it was first computed; None: it has not been."""
        return None if self.started is None else self.started - self.arrived

    @property
    def held(self) -> list[int]:
        """All its rows."""
        return self.rows + self.state + self.origin + self.copy

    def drop_rows(self) -> None:
        """It holds none any more."""
        self.rows, self.state, self.origin, self.copy = [], [], [], []
        self.faded = 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens whose K and V are not computed yet."""
        return len(self.tokens) - self.computed

    def ends(self, max_context: int) -> bool:
        """Whether the next token is the last, whatever it is."""
        after = len(self.tokens) + 1
        return after - self.prompt_tokens >= self.request.max_tokens or after >= max_context

    def chunk(self, budget: int) -> Ids[int]:
        """The next at most ``budget`` tokens to compute."""
        return self.tokens[self.computed : self.computed + budget]

    def reset(self) -> None:
        """Forget all computed state; the rows have gone back to the ledger."""
        self.computed = self.registered = self.charge = 0
        self.drop_rows()
        self.phase = Phase.WAITING
        self.batch = None

    def take(self, token: int, max_context: int) -> Finish | None:
        """Append a sampled token; says why the sequence is complete, if it is.

        The stopping token itself is not appended: it is not part of the answer.
        """
        request, tokens = self.request, self.tokens
        if not request.max_tokens:
            return "length"  # its prompt was all that was asked about
        if token in request.eos and self.generated >= request.sampling.min_tokens:
            return "stop"
        tokens.append(token)
        if self.counter is not None:
            self.counter.tokens += 1
        count = len(tokens)
        return "length" if count - self.prompt_tokens >= request.max_tokens or count >= max_context else None


def pack(ids: Ids[int]) -> bytes:
    """int32 little-endian bytes, as ids travel on the wire."""
    return np.asarray(ids, dtype="<i4").tobytes()
