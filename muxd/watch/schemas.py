"""What is watched, as plain data: one picture, and what changes in it. For the page and for scripts.

Names of models, ids and numbers only: no prompts, no answers. ``time`` is seconds since 1970, memory is in
head blocks of the device where a name says so, else in bytes.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from muxd.engine.trace import Happening, Phase, State
from muxd.fleet.events import Event

# Of a model's blocks: within its guarantee, within its quota, beyond it, and kept for later prompts.
Kind = Literal["guaranteed", "quota", "borrowed", "cached", "free"]


class BlockRun(Struct, frozen=True, array_like=True):
    """Head blocks that are the same to who looks; ``model`` is "" for free ones."""

    model: str
    kind: Kind
    blocks: int


class AccountView(Struct, frozen=True):
    """What a model may hold and holds on a device, in head blocks."""

    guarantee: int
    quota: int
    most: int
    held: int
    cached: int


class WeightsView(Struct, frozen=True):
    """``parked``: in host memory, while the model sleeps. ``done``: the part that has been read."""

    model: str
    bytes: int
    state: Literal["resident", "parked", "loading"]
    done: float = 1.0


class FlightView(Struct, frozen=True, array_like=True):
    """A batch that is being computed."""

    model: str
    phase: Phase
    begin: float
    share: int  # percent of the device
    sequences: int


class DeviceView(Struct, frozen=True):
    """``runs`` add up to ``blocks``: each model's in the order of the accounts, what is free last."""

    name: str
    cores: int  # that compute; 0 on a GPU
    block_bytes: int
    blocks: int
    runs: list[BlockRun]
    accounts: dict[str, AccountView]
    weights: list[WeightsView]
    flights: list[FlightView]


class ModelView(Struct, frozen=True):
    """Milliseconds are of the last 1,000 requests; None before the first. A target of 0 is none."""

    name: str
    state: str
    detail: str
    base: str  # of an adapter the model whose weights it changes
    device: str
    chat: bool
    generates: bool
    pinned: bool
    since: float  # in its state
    share: int  # percent of the device that is its part
    in_use: int  # percent that its batches take now
    running: int
    waiting: int
    weight_bytes: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    ttft_target_ms: float
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    tpot_target_ms: float
    tokens: int  # generated since the daemon started
    tokens_per_second: float
    attainment: float | None  # part of the last 1,000 judged requests within their targets


class DaemonView(Struct, frozen=True):
    """``outcomes``: how many requests ended how."""

    version: str
    pid: int
    began: float
    policy: str
    address: str
    outcomes: dict[str, int]


class RequestView(Struct, frozen=True):
    """One request; ``key`` is the name of the key that it came with. ``queue_ms`` is None before its first
    batch, ``seconds`` (in all) before its end."""

    id: str
    model: str
    key: str
    device: str
    state: State
    arrived: float
    queue_ms: float | None
    ttft_ms: float | None
    seconds: float | None
    prompt_tokens: int
    tokens: int
    preemptions: int = 0


class WorkView(Struct, frozen=True, array_like=True):
    """Batches of one model and phase with hardly a gap between them. ``share`` and ``sequences``: the most
    that one of them had."""

    device: str
    model: str
    phase: Phase
    begin: float
    end: float
    share: int
    sequences: int
    tokens: int
    batches: int
    lost: bool = False


class MarkView(Struct, frozen=True, array_like=True):
    """Something that took no time."""

    device: str
    time: float
    kind: Happening
    model: str = ""
    detail: str = ""


class Picture(Struct, frozen=True):
    """How things are. What is over is remembered for a while, oldest first; ``tokens``: each model's rate
    of generated tokens a second, one number for every ``HISTORY_PERIOD`` of the last ten minutes."""

    time: float
    daemon: DaemonView
    devices: dict[str, DeviceView]
    models: dict[str, ModelView]
    requests: dict[str, RequestView]
    ran: list[WorkView] = []
    marks: list[MarkView] = []
    events: list[Event] = []
    tokens: dict[str, list[float]] = {}


class Change(Struct, frozen=True, omit_defaults=True):
    """What makes the next picture of one: rows that differ, None for one that is gone; what has happened
    since. ``tokens``: rates of models that had any, one for every period that has passed."""

    time: float
    daemon: DaemonView | UnsetType = UNSET
    devices: dict[str, DeviceView | None] = {}
    models: dict[str, ModelView | None] = {}
    requests: dict[str, RequestView | None] = {}
    ran: list[WorkView] = []
    marks: list[MarkView] = []
    events: list[Event] = []
    tokens: list[dict[str, float]] = []
