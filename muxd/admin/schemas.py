"""What the local door says: plain structs, the same on both ends. Used by the daemon, the server and muxctl.

Units are in the names; memory is in bytes, times are seconds unless they say ``_ms``.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from muxd.config import ModelConfig
from muxd.engine.trace import RequestTimes, Trace
from muxd.fleet.events import Event
from muxd.fleet.gate import Taking
from muxd.fleet.log_lines import LogLine
from muxd.fleet.proposal import Proposal
from muxd.fleet.reload import Reloaded
from muxd.fleet.steps import Step
from muxd.watch.watcher import Watcher

if TYPE_CHECKING:
    from muxd.placement.host_view import HostView

Role = Literal["daemon", "worker", "text"]  # "text": renders templates and tokenises
VERSION_HEADER = "Muxd-Version"


class PoolStatus(Struct, frozen=True):
    """The shared KV memory, what is lent to it now included. ``free_blocks`` are owned by nobody,
    ``cached_blocks`` could be reclaimed."""

    bytes: int
    block_bytes: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int = 0


class RequestStatus(Struct, frozen=True):
    """Requests now (running, waiting) and since the start (how each one ended)."""

    running: int = 0
    waiting: int = 0
    served: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0


class Status(Struct, frozen=True):
    """The daemon as a whole."""

    version: str
    pid: int
    uptime_seconds: float
    address: str  # "http://127.0.0.1:8000"
    policy: str
    cores: int
    pool: PoolStatus
    models: dict[str, int]  # state -> how many models are in it
    requests: RequestStatus
    devices: dict[str, PoolStatus] = {}  # the pools one by one; empty with one device
    config: str = ""  # the file it was started with; "": none
    pinned: int = 0  # of the models


class ModelInfo(Struct, frozen=True):
    """One served model."""

    name: str
    # "loading", "ready", "restarting", "draining", "failed", "unloading", "unloaded", "asleep" or "waking"
    state: str
    detail: str  # why, where the state needs a reason ("model.safetensors: missing shard"); else ""
    chat: bool  # has a chat template
    pid: int | None
    share: int  # percent of the device
    weights_bytes: int
    kv_used_bytes: int
    kv_min_bytes: int  # guaranteed
    kv_max_bytes: int
    running: int
    waiting: int
    ttft_p99_ms: float | None  # None: no request yet
    tokens_total: int  # generated since the daemon started
    since_seconds: float  # how long it has been in this state
    config: ModelConfig  # as muxd.toml has it, or whoever loaded it
    goodput: float | None = None  # part of the last 1,000 requests within both; None: none measured yet
    device: str = ""  # where it is; "" with one device
    row_tokens: int = 0  # whose K and V are one row of head blocks; 0: it is not loaded
    row_bytes: int = 0  # of the pool that a row takes
    state_rows: int = 0  # that each request holds besides, where layers keep a state of it
    pinned: bool = False  # it never sleeps by the rules


class ProcessInfo(Struct, frozen=True):
    """One process of the daemon's family."""

    pid: int
    role: Role
    model: str  # of a worker, else ""
    phases: str  # "prefill+decode" of a worker, else ""
    cores: int  # threads it computes with
    memory_bytes: int  # its own; pool and weights are shared and not counted here
    cpu_seconds: float
    restarts: int
    uptime_seconds: float
    device: str = ""  # of a worker; "" with one device
    rank: int = 0  # of a worker of a model that is cut over several devices


class QuotaInfo(Struct, frozen=True):
    """What a model may hold of the pool, and what it holds.

    ``min`` is guaranteed, ``quota`` nobody takes from it now (it moves between ``min`` and ``max``),
    ``borrowed`` is what it holds beyond that.
    """

    model: str
    weight: float
    min_bytes: int
    quota_bytes: int
    max_bytes: int
    used_bytes: int
    cached_bytes: int
    borrowed_bytes: int
    pool_bytes: int  # of its device
    device: str = ""  # "" with one device


class QuotaChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is None stays. Sizes as in muxd.toml: "64M", "10%"."""

    model: str
    min: str | None = None
    max: str | None = None
    weight: float | None = None


class PolicyState(Struct, frozen=True):
    """Who decides what runs next, and who else could."""

    policy: str
    policies: list[str]


class PolicyChange(Struct, frozen=True, forbid_unknown_fields=True):
    policy: str


class LoadModel(Struct, frozen=True, forbid_unknown_fields=True):
    """``model``: a known one's name, or one that is not in the configuration, its path absolute."""

    model: str | ModelConfig
    device: str = ""  # where to; "": where it was, or where the plan puts it
    keep: bool = False  # it stays over a restart: a drop-in beside the configuration

    @property
    def name(self) -> str:
        return self.model if isinstance(self.model, str) else self.model.name


class SleepModel(Struct, frozen=True, forbid_unknown_fields=True):
    """Give up its place on the device; ``now``: its streams are not waited for, they go on when it wakes."""

    model: str
    now: bool = False


class WakeModel(Struct, frozen=True, forbid_unknown_fields=True):
    """Bring back a model that sleeps, though nobody has asked for it yet."""

    model: str


class PinModel(Struct, frozen=True, forbid_unknown_fields=True):
    """``pinned``: never to sleep by the rules, whatever ``resident`` of its configuration says."""

    model: str
    pinned: bool


class UnloadModel(Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    now: bool = False  # do not wait for its requests: they fail
    keep: bool = False  # also after a restart: its drop-in goes


class MoveModel(Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    device: str


class Drain(Struct, frozen=True, forbid_unknown_fields=True):
    """Take no new requests; ``end``: take them again."""

    end: bool = False


class Drained(Struct, frozen=True):
    """How many requests are still owed an answer. The last one said is 0, or of a drain that has ended."""

    taking: Taking
    left: int


class Replan(Struct, frozen=True, forbid_unknown_fields=True):
    dry_run: bool = False  # only say what would be done


class KeyInfo(Struct, frozen=True):
    """An API key: who, never the key or its hash. ``max_concurrency`` 0: no limit."""

    name: str
    models: list[str]
    actions: bool
    max_concurrency: int
    weight: float


class Audit(Struct, frozen=True):
    """Do the books of all pools add up? ``fault`` says what does not; "" if all is well."""

    fault: str
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    held_blocks: int


class DeviceInfo(Struct, frozen=True):
    """One GPU at this moment; None and "" where it does not tell. ``health``: "ok" or what is wrong."""

    index: int
    name: str = ""
    uuid: str = ""
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    utilization_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    throttled: list[str] = []
    health: str = "ok"


class Stopping(Struct, frozen=True):
    """The answer to ``stop``: accepted, the process ``pid`` is on its way out."""

    pid: int


class AdminService(Protocol):
    """What the daemon lets the local door see and do. Every method returns at once, ``devices`` when the
    driver has answered, ``host_view`` when the CPU is measured; what ``load``, ``unload`` and ``move``
    return tells how far they are, and goes on without a reader.

    ``set_quota``, ``set_policy`` and ``pin`` answer with how things are afterwards. They raise BadRequest or
    NotFound for what cannot be, ``set_policy`` raises Busy while requests are served, ``why`` NotFound.
    ``load``, ``unload`` and ``move`` raise BadRequest, NotFound, Busy or ShuttingDown; their iterator raises
    at the end where the model cannot be loaded or moved.
    ``stop`` asks for the same orderly end as SIGTERM and may be called twice.
    """

    def status(self) -> Status: ...

    def models(self) -> list[ModelInfo]: ...

    def ps(self) -> list[ProcessInfo]: ...

    def devices(self) -> list[DeviceInfo]: ...

    def quota(self) -> list[QuotaInfo]: ...

    def set_quota(self, change: QuotaChange) -> list[QuotaInfo]: ...

    def policy(self) -> PolicyState: ...

    def set_policy(self, name: str) -> PolicyState: ...

    def load(self, wanted: LoadModel) -> AsyncIterator[Step]: ...

    def unload(self, wanted: UnloadModel) -> AsyncIterator[Step]: ...

    def sleep(self, wanted: SleepModel) -> AsyncIterator[Step]: ...

    def wake(self, wanted: WakeModel) -> AsyncIterator[Step]: ...

    def pin(self, wanted: PinModel) -> ModelInfo: ...

    def move(self, wanted: MoveModel) -> AsyncIterator[Step]: ...

    def replan(self, wanted: Replan) -> AsyncIterator[Proposal]: ...

    async def host_view(self) -> "HostView": ...

    def drain(self, wanted: Drain) -> AsyncIterator[Drained]: ...

    def reload(self) -> AsyncIterator[Reloaded]: ...

    def audit(self) -> Audit: ...

    def why(self, id: str) -> list[RequestTimes]: ...

    def trace(self) -> list[Trace]: ...

    def happened(self, model: str = "") -> list[Event]: ...

    def follow(self, model: str = "") -> AsyncIterator[Event]: ...

    def watch(self, cut: Callable[[], None]) -> AbstractContextManager[Watcher]:
        """See ``watch.feed.Feed``."""

    def keys(self) -> list[KeyInfo]: ...

    def logged(self) -> list[LogLine]: ...

    def follow_log(self) -> AsyncIterator[LogLine]: ...

    def stop(self) -> None: ...
