"""The life of one model's worker, as a pure state machine: events in, instructions out.

    COLD -> LOADING -> READY -> RESTARTING -> READY ...
                  \\-> FAILED          \\-> FAILED        any -> STOPPED

A worker that cannot boot is not respawned for ever: a refusal (exit code 78, or a ``Refused`` message) is
final at once, and ``max_failures`` deaths within ``window`` seconds are final too.
"""

from enum import Enum

from msgspec import Struct


class State(Enum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Limits(Struct, frozen=True):
    """Restart policy. Delays in seconds: ``first_delay`` doubling up to ``max_delay``."""

    max_failures: int = 5
    window: float = 120.0
    first_delay: float = 0.25
    max_delay: float = 10.0


class Loading(Struct, frozen=True):
    """Weights are on their way into memory."""


class Spawned(Struct, frozen=True):
    """Process ids by phases: "both", or "prefill" and "decode"."""

    pids: dict[str, int]


class BecameReady(Struct, frozen=True):
    pass


class Died(Struct, frozen=True):
    """The process ended, or did not become ready in time. ``final``: trying again cannot help."""

    reason: str
    final: bool = False


class Stop(Struct, frozen=True):
    pass


class Spawn(Struct, frozen=True):
    """Start a worker after ``delay`` seconds."""

    delay: float


class AnnounceReady(Struct, frozen=True):
    """The scheduler may send commands."""


class AnnounceLost(Struct, frozen=True):
    """The scheduler must take its sequences back; ``final``: the model is gone."""

    reason: str
    final: bool


Happening = Loading | Spawned | BecameReady | Died | Stop
Instruction = Spawn | AnnounceReady | AnnounceLost


class Life:
    """One model's workers. ``state``, ``detail`` (for people), ``pids``, ``restarts`` are for all to read."""

    def __init__(self, limits: Limits | None = None):
        self._limits = limits or Limits()
        self._deaths: list[float] = []
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
            case Spawned(), State.LOADING | State.RESTARTING:
                self.pids = event.pids
                return []
            case BecameReady(), State.LOADING | State.RESTARTING:
                return self._enter(State.READY, now, instructions=[AnnounceReady()])
            case Died(), State.LOADING | State.READY | State.RESTARTING:
                return self._on_died(event, now)
        raise RuntimeError(f"{event} cannot happen while {self.state.value} ({self.detail or 'no detail'})")

    def _on_died(self, event: Died, now: float) -> list[Instruction]:
        self.pids = {}
        self._deaths = [t for t in self._deaths if now - t < self._limits.window] + [now]
        if event.final or len(self._deaths) >= self._limits.max_failures:
            lost = AnnounceLost(event.reason, final=True)
            return self._enter(State.FAILED, now, event.reason, [lost])
        self.restarts += 1
        delay = min(self._limits.max_delay, self._limits.first_delay * 2 ** (len(self._deaths) - 1))
        lost = AnnounceLost(event.reason, final=False)
        return self._enter(State.RESTARTING, now, event.reason, [lost, Spawn(delay)])

    def _enter(
        self, state: State, now: float, detail: str = "", instructions: list[Instruction] | None = None
    ) -> list[Instruction]:
        self.state, self.since, self.detail = state, now, detail
        return instructions or []
