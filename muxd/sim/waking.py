"""One device and more models than fit it: those that are asked for wake, in virtual time.

Who wakes and who sleeps is ``placement/waking.py``'s, in which order ``placement/residency.py``'s, and
requests wait in the scheduler's own queues. A wake takes the seconds that were measured of the model, as
``fleet/learnt.py`` keeps them, else those that the rules say.
"""

from collections.abc import Mapping, Sequence, Set
from heapq import heappop, heappush
from math import inf

from msgspec import Struct

from muxd.clock import VirtualClock
from muxd.cost.table import CostTable
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.errors import ConfigError
from muxd.placement.rates import Rates
from muxd.placement.residency import Leave, Load, Residency, Step
from muxd.placement.wakes import Wakes
from muxd.placement.waking import (
    Model,
    Rules,
    Shift,
    Standing,
    decide,
    next_look,
    residents,
    standing,
    wake_seconds,
)
from muxd.sim.records import Outcome, Records
from muxd.sim.virtual_unit import VirtualUnit, request_of
from muxd.sim.workload import Workload, prompts

SITE = "device"
_MEMORY = 60.0  # seconds that a measured rate remembers
_LOOK = 5.0  # seconds between looks at the rates


class Footprint(Struct, frozen=True):
    """Bytes that a model takes on the device, and its weights alone."""

    device: int
    weights: int


class Waking:
    """One run. ``rules.memory`` is of ``SITE``. At the start those are there that fit, in the order of
    ``sizes``, and as many of the others sleep as host memory holds. ``wakes``: what a daemon has learnt of
    them.

    Raises ConfigError for a model that could never be there.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostTable,
        workload: Workload,
        rules: Rules,
        sizes: Mapping[str, Footprint],
        wakes: Mapping[str, Wakes] | None = None,
    ):
        for name, size in sizes.items():
            if size.device > rules.memory[SITE]:
                raise ConfigError(f"{name} takes {size.device} bytes, the device has {rules.memory[SITE]}")
        self.clock, self.records = VirtualClock(), Records(workload)
        self.wakes = self.naps = self.cut = 0
        self._rules, self._sizes = rules, sizes
        self._unit = VirtualUnit(scheduler, cost, self.clock, self.records)
        self._lanes = scheduler.lanes
        self._residency: Residency[str] = Residency(self._fits)
        self._rates = Rates(dict.fromkeys(sizes, 0.0), _MEMORY)
        self._known, self._looked = dict.fromkeys(sizes, 0.0), 0.0
        self._asleep: set[str] = set()
        learnt = wakes or {}
        self._models = {
            name: Model(name, size.device, size.weights, (SITE,), wakes=learnt.get(name, Wakes()))
            for name, size in sizes.items()
        }
        self._since = dict.fromkeys(sizes, -inf)
        self._slept = dict.fromkeys(sizes, -inf)
        self._loads: list[tuple[float, str]] = []
        self._leaving: dict[str, float] = {}  # who retires, and when its streams are cut
        self._look_at = inf

    def run(self) -> Records:
        """Until the last request has ended. Raises RuntimeError when requests wait and nothing will
        happen."""
        self._begin()
        items, index = self.records.workload.items, 0
        asked = prompts(self.records.workload)
        while True:
            arrival = items[index].time + self._unit.delay if index < len(items) else inf
            other = min(
                self._loads[0][0] if self._loads else inf, self._look_at, *self._leaving.values(), inf
            )
            self._unit.repeat(min(arrival, other))
            due = min(arrival, other, self._unit.due())
            if due == inf or (index == len(items) and not self._unit.waits and not self._loads):
                break
            self.clock.advance(max(0.0, due - self.clock.now()))
            if self._unit.advance(due):
                self._after_a_batch()
            elif self._loads and self._loads[0][0] <= due:
                self._loaded(heappop(self._loads)[1])
            elif arrival <= due:
                self._arrive(index, request_of(index, items[index], next(asked)))
                index += 1
            elif self._look_at <= due:
                self._look()
            elif any(end <= due for end in self._leaving.values()):
                self._cut(due)
            else:
                self._unit.tick()
        left = int((self.records.outcome == Outcome.OPEN).sum())
        if left:
            raise RuntimeError(f"{left} requests never ended: the scheduler waits for nothing")
        return self.records

    # ---- events --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        there, host = residents(self._models.values(), self._rules), self._rules.host
        for name, size in self._sizes.items():
            if name in there:
                self._residency.served(name, SITE)
                self._unit.ready(name)
                continue
            self._unit.sleep(name)
            if size.weights <= host:
                host -= size.weights
                self._asleep.add(name)

    def _arrive(self, index: int, request: Request) -> None:
        model = request.model
        self._rates.arrived(model)
        self._unit.submit(index, request)
        if self._residency.at(model) is None:
            self._look()

    def _after_a_batch(self) -> None:
        gone = [name for name in self._leaving if self._lanes[name].quiet]
        for name in gone:
            self._left(name)
        if gone or self._pending:
            self._look()

    def _cut(self, now: float) -> None:
        """Long streams of who leaves go on when it is back."""
        for name in [name for name, end in self._leaving.items() if end <= now]:
            self.cut += 1
            self._left(name)
        self._look()

    def _left(self, name: str) -> None:
        del self._leaving[name]
        self._slept[name] = self.clock.now()
        self._unit.sleep(name)
        self._do(self._residency.left(name))

    def _loaded(self, name: str) -> None:
        self._since[name] = self.clock.now()
        self._asleep.discard(name)
        self._unit.ready(name)
        self._do(self._residency.loaded(name))
        self._look()

    # ---- who wakes -----------------------------------------------------------------------------------

    @property
    def _pending(self) -> bool:
        """Somebody waits for a model that is not there."""
        return any(lane.asleep and lane.waiting for lane in self._lanes.values())

    def _look(self) -> None:
        now = self.clock.now()
        if now - self._looked >= _LOOK:
            self._known, self._looked = self._rates.look(now), now
        standings = [self._standing(name) for name in self._sizes]
        found = decide(standings, self._rules, now)
        self._look_at = next_look(standings, self._rules, now) if self._pending or self._rules.idle else inf
        self._perform(found)

    def _perform(self, found: Shift) -> None:
        self._asleep |= set(found.sleep)
        self._asleep -= set(found.drop)
        self.wakes += len(found.wake)
        self.naps += len(found.sleep)
        targets: dict[str, str | None] = {**dict.fromkeys(found.sleep), **found.wake}
        if targets:
            self._do(self._residency.aim(targets))

    def _do(self, steps: Sequence[Step[str]]) -> None:
        now = self.clock.now()
        for step in steps:
            match step:
                case Load():
                    seconds = wake_seconds(
                        self._standing(step.model), self._rules, asleep=step.model in self._asleep
                    )
                    heappush(self._loads, (now + seconds, step.model))
                case Leave():
                    self._unit.retire(step.model)
                    # Who runs nothing leaves at once, as the next event.
                    quiet = self._lanes[step.model].quiet
                    self._leaving[step.model] = now if quiet else now + self._rules.patience

    def _standing(self, name: str) -> Standing:
        return standing(
            self._models[name], self._lanes[name], self._residency, self.clock.now(),
            asleep=name in self._asleep, slept=self._slept[name], since=self._since[name],
            rate=self._known[name],
        )  # fmt: skip

    def _fits(self, site: str, models: Set[str]) -> bool:
        return sum(self._sizes[name].device for name in models) <= self._rules.memory[site]
