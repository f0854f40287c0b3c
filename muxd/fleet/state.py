"""The life of one model's worker, as a pure state machine: events in, instructions out.

    COLD -> LOADING -> READY -> RESTARTING -> READY ...
                  \\-> FAILED          \\-> RESTING -> READY       any -> STOPPED

A worker that cannot boot is not respawned for ever: a refusal (exit code 78, or a ``Refused`` message) is
final at once. After ``max_failures`` deaths within ``window`` seconds the model rests: its requests are told,
and one worker is tried after a while, longer each time until one has lived for ``window`` seconds. A death
that a request is to blame for does not count, nor what the daemon itself lacks to start a worker.
"""

from enum import Enum

from msgspec import Struct


class State(Enum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    RESTING = "resting"  # has failed too often, and will be tried again
    FAILED = "failed"
    STOPPED = "stopped"


class Limits(Struct, frozen=True):
    """Restart policy. Delays in seconds: ``first_delay`` doubling up to ``max_delay``, rests likewise."""

    max_failures: int = 5
    window: float = 120.0
    first_delay: float = 0.25
    max_delay: float = 10.0
    first_rest: float = 10.0
    max_rest: float = 300.0


class Loading(Struct, frozen=True):
    """Weights are on their way into memory."""


class Spawned(Struct, frozen=True):
    """Process ids by phases: "both", or "prefill" and "decode"."""

    pids: dict[str, int]


class BecameReady(Struct, frozen=True):
    pass


class Died(Struct, frozen=True):
    """The process ended, or did not become ready in time.

    ``final``: trying again cannot help. ``explained``: a request has killed it, for the second time.
    ``blameless``: it was not for what the worker computed.
    """

    reason: str
    final: bool = False
    explained: bool = False
    blameless: bool = False


class Lacked(Struct, frozen=True):
    """The daemon could not start a worker for want of descriptors, memory or processes: its own lack."""

    reason: str


class Stop(Struct, frozen=True):
    pass


class Spawn(Struct, frozen=True):
    """Start a worker after ``delay`` seconds."""

    delay: float


class AnnounceReady(Struct, frozen=True):
    """The scheduler may send commands."""


class AnnounceLost(Struct, frozen=True):
    """The scheduler must take its sequences back; ``final``: the model is gone, or is tried again by itself
    only in ``retry_after`` seconds."""

    reason: str
    final: bool
    retry_after: float | None = None
    blameless: bool = False


Happening = Loading | Spawned | BecameReady | Died | Lacked | Stop
Instruction = Spawn | AnnounceReady | AnnounceLost


class Life:
    """One model's workers. ``state``, ``detail`` (for people), ``pids``, ``restarts`` are for all to read."""

    def __init__(self, limits: Limits | None = None):
        self._limits = limits or Limits()
        self._deaths: list[float] = []
        self._rests = 0  # since a worker has lived for a while
        self._lacks = 0  # in a row
        self.retry_after: float | None = None  # of a model that rests: seconds from ``since`` to the next try
        self.state = State.COLD
        self.detail = ""
        self.pids: dict[str, int] = {}
        self.restarts = 0
        self.since = 0.0  # when ``state`` was entered

    @property
    def pid(self) -> int | None:
        """The model's process; of two, the one that prefills."""
        return next(iter(self.pids.values()), None)

    def handle(self, event: Happening, now: float) -> list[Instruction]:
        """Raises RuntimeError, with the story, for an event that cannot happen in this state."""
        if self.state is State.STOPPED:
            return []
        match event, self.state:
            case Stop(), _:
                self.pids = {}
                return self._enter(State.STOPPED, now)
            case Loading(), State.COLD:
                return self._enter(State.LOADING, now)
            case Spawned(), State.LOADING | State.RESTARTING | State.RESTING:
                self.pids, self._lacks = event.pids, 0
                return []
            case BecameReady(), State.LOADING | State.RESTARTING | State.RESTING:
                return self._enter(State.READY, now, instructions=[AnnounceReady()])
            case Died(), State.LOADING | State.READY | State.RESTARTING | State.RESTING:
                return self._on_died(event, now)
            case Lacked(), State.LOADING | State.RESTARTING | State.RESTING:
                self._lacks += 1
                self.detail = event.reason
                return [Spawn(self._delay(self._lacks))]
        raise RuntimeError(f"{event} cannot happen while {self.state.value} ({self.detail or 'no detail'})")

    def _on_died(self, event: Died, now: float) -> list[Instruction]:
        self.pids = {}
        if event.final:
            return self._enter(State.FAILED, now, event.reason, [AnnounceLost(event.reason, final=True)])
        if self.state is State.READY and now - self.since >= self._limits.window:
            self._rests = 0
        if event.explained:
            self._deaths = self._deaths[:-1]  # the same request's first
        else:
            self._deaths = [t for t in self._deaths if now - t < self._limits.window] + [now]
            if self._rests or len(self._deaths) >= self._limits.max_failures:
                return self._rest(event, now)
        self.restarts += 1
        lost = AnnounceLost(event.reason, final=False, blameless=event.blameless)
        delay = self._delay(max(1, len(self._deaths)))
        return self._enter(State.RESTARTING, now, event.reason, [lost, Spawn(delay)])

    def _rest(self, event: Died, now: float) -> list[Instruction]:
        self._deaths = []
        self._rests += 1
        delay = min(self._limits.max_rest, self._limits.first_rest * 2.0 ** min(self._rests - 1, 30))
        lost = AnnounceLost(event.reason, final=True, retry_after=delay)
        instructions = self._enter(State.RESTING, now, event.reason, [lost, Spawn(delay)])
        self.retry_after = delay
        return instructions

    def _delay(self, times: int) -> float:
        return min(self._limits.max_delay, self._limits.first_delay * 2.0 ** min(times - 1, 30))

    def _enter(
        self, state: State, now: float, detail: str = "", instructions: list[Instruction] | None = None
    ) -> list[Instruction]:
        self.state, self.since, self.detail, self.retry_after = state, now, detail, None
        return instructions or []
