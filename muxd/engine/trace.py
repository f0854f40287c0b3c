"""What is remembered of a unit's work, as plain data: one request's times, and who ran when.

Made by ``engine/journal.py`` and ``engine/timeline.py``, read by muxctl at the other end of the local door.
Times are seconds of the unit's clock. Model names, ids and numbers only: no prompts, no token ids.
"""

from typing import Literal

from msgspec import Struct

from muxd.engine.slo import Outcome

Phase = Literal["prefill", "decode"]
Happening = Literal[
    "preempted",
    "worker lost",
    "worker ready",
    "worker hung",
    "device fault",
    "policy",
    "quota",  # by an operator
    "quota moved",  # by the policy
    "loading",
    "loaded",
    "unloading",
    "unloaded",
    "asleep",
    "woken",
    "pinned",
    "unpinned",
    "moving",
    "moved",
    "move failed",
    "replan",
    "reload",
    "reload refused",
    "draining",
    "drain ended",
]
State = Literal["waiting", "running"] | Outcome


class Stay(Struct, frozen=True):
    """A request's part at one device. The stages are as in RequestTimes and add up to ``seconds``."""

    device: str
    came: float  # on the clock of the trace
    seconds: float
    waits: dict[str, float]
    prefill: float
    recompute: float
    decode: float
    held: float
    beside: dict[str, float] = {}


class RequestTimes(Struct, frozen=True):
    """One request, finished or not. The values of ``waits``, ``prefill``, ``recompute``, ``decode`` and
    ``held`` add up to ``total``: they are of all devices that a request was moved between.

    Times are seconds; ``arrived`` and ``started`` (its first batch) are on the clock of the trace.
    """

    id: str  # of the request: the answer's id and the number of the choice
    http_id: str  # x-request-id
    model: str
    state: State
    arrived: float
    total: float
    prompt_tokens: int
    generated_tokens: int
    waits: dict[str, float]  # queued, by reason: rows, slots, share, turn, worker, busy
    prefill: float  # in a prefill batch
    recompute: float  # in a prefill batch after its rows or its worker were lost
    decode: float  # in a decode batch
    held: float  # decoding, but in no batch
    cached_tokens: int = 0  # of the prompt, found computed
    preemptions: int = 0
    reruns: int = 0
    started: float | None = None
    ttft: float | None = None
    detail: str = ""  # why it was refused or has failed
    beside: dict[str, float] = {}  # seconds other models prefilled while it was queued
    stays: list[Stay] = []  # in order, the last where it is or was; [] if it never moved
    adapter: str = ""  # of ``model``, whose request it is
    key: str = ""  # name of the key that it came with
    cut_over: list[str] = []  # devices that compute each batch of its model together; []: one does


class Span(Struct, frozen=True, array_like=True):
    """One batch. ``end`` is None while it runs, ``lost`` when its worker died on it."""

    model: str
    phase: Phase
    start: float
    end: float | None
    batch: int
    share: int  # percent of the device
    sequences: int
    tokens: int  # computed
    lost: bool = False


class Mark(Struct, frozen=True, array_like=True):
    """Something that took no time. ``model`` is "" for the unit as a whole."""

    time: float
    kind: Happening
    model: str = ""
    detail: str = ""


class Sample(Struct, frozen=True, array_like=True):
    """Head blocks, and per model of ``models``: blocks in use, sequences waiting and running."""

    time: float
    free: int
    cached: int
    models: tuple[str, ...]
    used: tuple[int, ...]
    waiting: tuple[int, ...]
    running: tuple[int, ...]


class Trace(Struct, frozen=True):
    """A copy of everything remembered, oldest first; ``now`` ends the spans that still run."""

    now: float
    spans: list[Span]
    marks: list[Mark]
    samples: list[Sample]
    device: str = ""  # "" with one device
