"""One unit and one workload in virtual time. Deterministic, and no clock is read."""

from collections.abc import Callable
from math import inf

from muxd.clock import VirtualClock
from muxd.cost.table import CostTable
from muxd.engine.scheduler import Scheduler
from muxd.errors import ConfigError
from muxd.sim.records import Outcome, Records
from muxd.sim.virtual_unit import Observe, VirtualUnit, nobody, request_of
from muxd.sim.workload import Workload, prompts

_IDLE_TICKS = 1000
_PROGRESS_EVERY = 1000  # requests

Progress = Callable[[int], None]  # requests that have arrived since the last call


class World:
    """One run. ``run`` may be called once.

    Raises ConfigError when the workload asks for a model that is not configured.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostTable,
        workload: Workload,
        *,
        shared_prefix: int = 0,
        jumps: bool = True,
        observe: Observe = nobody,
    ):
        """``jumps``: over decode steps that decide nothing. Without them the results are the same, and
        ``observe`` hears of each."""
        unknown = sorted(set(workload.models) - set(scheduler.lanes))
        if unknown:
            raise ConfigError(
                f"the workload asks for {', '.join(unknown)}; configured are {', '.join(scheduler.lanes)}"
            )
        self.clock = VirtualClock()
        self.records = Records(workload)
        self._unit = VirtualUnit(scheduler, cost, self.clock, self.records, observe)
        self.device = self._unit.device
        self._idle = 0
        self._jumps = jumps
        self._prompts = prompts(workload, shared_prefix=shared_prefix)

    @property
    def events(self) -> int:
        """How often the scheduler was asked."""
        return self._unit.events

    @property
    def jumped(self) -> int:
        """Decode steps of which it was told together."""
        return self._unit.repeated

    def run(self, progress: Progress = lambda requests: None) -> Records:
        """Until the last request has ended. Raises RuntimeError when requests wait and nothing will happen:
        a defect of the scheduler."""
        unit, clock = self._unit, self.clock
        unit.start()
        items = self.records.workload.items
        index, count = 0, len(items)
        while True:
            arrival = items[index].time + unit.delay if index < count else inf
            if self._jumps:
                unit.repeat(arrival)
            due = min(arrival, unit.due())
            if due == inf or (index == count and self._over()):
                break
            clock.advance(max(0.0, due - clock.now()))
            if unit.advance(due):
                continue
            if arrival <= due:
                unit.submit(index, request_of(index, items[index], next(self._prompts)))
                index += 1
                if index % _PROGRESS_EVERY == 0:
                    progress(_PROGRESS_EVERY)
            else:
                unit.tick()
        self._at_rest()
        progress(count % _PROGRESS_EVERY)
        return self.records

    def _over(self) -> bool:
        """Nothing runs and nobody comes: only time can start what waits, and not for ever."""
        if self.device.due < inf:
            return False
        self._idle += 1
        return not self._unit.waits or self._idle > _IDLE_TICKS

    def _at_rest(self) -> None:
        left = int((self.records.outcome == Outcome.OPEN).sum())
        if left:
            raise RuntimeError(f"{left} requests never ended: the scheduler waits for nothing")
        self._unit.scheduler.ledger.audit()
