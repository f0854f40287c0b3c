"""A cluster whose plan changes while it serves, all units in one virtual time.

What a change costs, as a daemon pays it (the steps are ``placement.residency``'s, one load at a time):

* a model's weights take the seconds ``replan.Policy`` says to load; where memory permits it serves at its old
  mesh until then, else it is parked: its requests wait in the new one's queue;
* at the switch, requests without a token go to the new mesh in their order; running ones end where they are,
  and their weights stay in memory until then;
* everybody else goes on; a stage that comes while models still move waits for them.

A mesh is one unit for as long as it exists. A model has a lane there from the moment its weights are loaded
until it has drained, as in the daemon, and the scheduler divides shares and quotas among those that have one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from heapq import heappop, heappush
from math import inf

from msgspec import Struct

from muxd.clock import VirtualClock
from muxd.placement import memory
from muxd.placement.problem import EQUAL, UnitLoad
from muxd.placement.replan import Policy
from muxd.placement.residency import UNLIMITED, Leave, Load, NoRoom, Residency, Step
from muxd.sim.build import Opening
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.itinerary import Itinerary, Site, Stop
from muxd.sim.records import Outcome, Records
from muxd.sim.virtual_unit import VirtualUnit, request_of
from muxd.sim.workload import Workload, prompts

_IDLE_TICKS = 100_000


class Move(Struct):
    """What one model's move took. ``switched``: when new requests went to the new site; ``gap``: seconds
    without any site; ``resent``: requests taken along; ``drained``: when the old site was empty of it."""

    model: str
    asked: float
    parked: bool = False
    switched: float = inf
    gap: float = 0.0
    resent: int = 0
    drained: float = inf


class Moved(Struct, frozen=True):
    records: Records
    moves: list[Move]


def run_moving(
    cluster: Cluster,
    itinerary: Itinerary,
    workload: Workload,
    terms: Terms,
    policy: Policy,
    *,
    free: bool = False,
) -> Moved:
    """``free``: moves take no time and no memory. Raises RuntimeError when requests wait and nothing will
    happen, or a layout can never be reached from the one before."""
    return _Run(cluster, itinerary, workload, terms, policy, free).run()


class _Run:
    def __init__(
        self,
        cluster: Cluster,
        itinerary: Itinerary,
        workload: Workload,
        terms: Terms,
        policy: Policy,
        free: bool,
    ):
        self._itinerary, self._policy, self._free = itinerary, policy, free
        self._clock, self._records = VirtualClock(), Records(workload)
        self._units: dict[int, VirtualUnit] = {}
        self._openings: dict[int, dict[str, Opening]] = {}
        first, *self._stops = itinerary.stops
        for site, unit in units(itinerary).items():
            scheduler, self._openings[site], cost = cluster.without_models(unit, terms)
            for model in (model for model, at in first.sites.items() if at == site):
                scheduler.open(*self._openings[site][model])
            self._units[site] = VirtualUnit(scheduler, cost, self._clock, self._records)
        self._due = [inf] * len(itinerary.sites)
        self._models = {model.name: model for model in itinerary.estimator.problem.models}
        self._serving: dict[str, int] = dict(first.sites)  # where new requests go, be it to wait
        self._residency: Residency[int] = Residency(self._fits, parallel=UNLIMITED if free else 1)
        for model, site in first.sites.items():
            self._residency.served(model, site)
        self._loads: list[tuple[float, str]] = []  # a heap: when loaded, who
        self._moving: dict[str, Move] = {}
        self._moves: list[Move] = []

    def run(self) -> Moved:
        for site, unit in self._units.items():
            unit.start()
            self._look(site)
        items = self._records.workload.items
        asked = prompts(self._records.workload)
        delay = max((unit.delay for unit in self._units.values()), default=0.0)
        index, idle = 0, 0
        while True:
            arrival = items[index].time + delay if index < len(items) else inf
            change = self._stops[0].at if self._stops and self._residency.over else inf
            load = self._loads[0][0] if self._loads else inf
            soonest = min(self._due)
            due = min(arrival, change, load, soonest)
            if due == inf or (index == len(items) and not self._open()):
                break
            self._clock.advance(max(0.0, due - self._clock.now()))
            if soonest <= due:
                idle = self._unit_due(self._due.index(soonest), due, idle)
                if index == len(items) and idle > _IDLE_TICKS:
                    break
            elif load <= due:
                self._loaded(heappop(self._loads)[1])
            elif change <= due:
                self._change(self._stops.pop(0))
            else:
                site = self._serving[items[index].model]
                self._units[site].submit(index, request_of(index, items[index], next(asked)))
                self._look(site)
                index += 1
        self._at_rest()
        return Moved(self._records, self._moves)

    # ---- events --------------------------------------------------------------------------------------

    def _unit_due(self, site: int, due: float, idle: int) -> int:
        """Returns how many ticks in a row found nothing done."""
        unit = self._units[site]
        done = unit.advance(due)
        if not done:
            unit.tick()
        self._look(site)
        if done and self._residency.leaving:
            self._drains()
        return 0 if done else idle + 1

    def _change(self, stop: Stop) -> None:
        """Raises RuntimeError where it can never be reached."""
        targets = {model: site for model, site in stop.sites.items() if self._serving[model] != site}
        now = self._clock.now()
        self._moving = {model: Move(model, now) for model in targets}
        self._moves += self._moving.values()
        self._residency.before = stop.before
        self._do(self._residency.aim(targets, stop.rates))

    def _do(self, steps: Sequence[Step[int]]) -> None:
        now = self._clock.now()
        for step in steps:
            match step:
                case Load():
                    if not self._residency.parked(step.model):  # else it has a lane there
                        self._enter(step.model, step.site)
                    heappush(self._loads, (now + self._seconds(step), step.model))
                case Leave() if step.to is not None:
                    self._moving[step.model].parked, self._moving[step.model].gap = True, now
                    self._enter(step.model, step.to)
                    self._switch(step.model, step.to)
                case Leave():
                    self._switch(step.model, self._served_at(step.model))
                case NoRoom():
                    raise RuntimeError(f"{step.model}: there will never be room, whoever leaves")
        self._drains()

    def _loaded(self, model: str) -> None:
        site, move, now = self._residency.loading(model), self._moving[model], self._clock.now()
        move.switched, move.gap = now, now - move.gap if move.parked else 0.0
        self._units[site].ready(model)
        self._look(site)
        self._do(self._residency.loaded(model))

    def _drains(self) -> None:
        """Tells who has left."""
        while gone := [m for m, site in self._residency.leaving.items() if self._units[site].empty(m)]:
            self._leave(gone[0], self._residency.leaving[gone[0]])
            self._moving[gone[0]].drained = self._clock.now()
            self._do(self._residency.left(gone[0]))

    # ---- parts ---------------------------------------------------------------------------------------

    def _enter(self, model: str, site: int) -> None:
        """What it shall have there it has from now on."""
        self._units[site].scheduler.open(*self._openings[site][model])
        self._look(site)

    def _leave(self, model: str, site: int) -> None:
        """Who is left may start with what it had."""
        self._units[site].scheduler.close(model)
        self._units[site].tick()
        self._look(site)

    def _switch(self, model: str, site: int) -> None:
        """From now on requests go there, those without a token first."""
        old, self._serving[model] = self._serving[model], site
        self._moving[model].resent += self._units[old].hand_over(model, self._units[site])
        self._look(old)
        self._look(site)

    def _served_at(self, model: str) -> int:
        site = self._residency.at(model)
        assert site is not None
        return site

    def _look(self, site: int) -> None:
        self._due[site] = self._units[site].due()

    def _seconds(self, step: Load[int]) -> float:
        if self._free:
            return 0.0
        model, gpus = self._models[step.model], self._itinerary.sites[step.site].gpus
        return self._policy.start + model.shape.weight_bytes(gpus, model.dtype) / self._policy.bandwidth

    def _fits(self, site: int, models: Set[str]) -> bool:
        """Weights and all, beside the site's pool."""
        estimator, place = self._itinerary.estimator, self._itinerary.sites[site]
        held = sum(memory.fixed(self._models[model], place.gpus, estimator.budget) for model in models)
        usable = int(estimator.budget.usable * estimator.problem.gpus.memory)
        return self._free or place.pool + held <= usable

    def _open(self) -> bool:
        return any(unit.waits for unit in self._units.values()) or bool(self._loads)

    def _at_rest(self) -> None:
        left = int((self._records.outcome == Outcome.OPEN).sum())
        if left:
            raise RuntimeError(f"{left} requests never ended: the scheduler waits for nothing")
        for unit in self._units.values():
            unit.scheduler.ledger.audit()


def units(itinerary: Itinerary) -> dict[int, UnitLoad]:
    """By site: every model it ever holds."""
    lanes: Mapping[int, dict[str, None]] = defaultdict(dict)
    for stop in itinerary.stops:
        for model, site in stop.sites.items():
            lanes[site][model] = None
    return {number: _unit(itinerary.sites[number], tuple(models)) for number, models in lanes.items()}


def _unit(site: Site, models: tuple[str, ...]) -> UnitLoad:
    count = len(models)
    return UnitLoad(
        host=site.host,
        gpus=tuple(range(site.gpus)),
        degree=site.gpus,
        pool_bytes=site.pool,
        models=models,
        rates=(0.0,) * count,
        prefill_shares=(100,) * count,
        decode_shares=(EQUAL,) * count,
        quota_weights=(1.0 / max(1, count),) * count,
        batches=(0,) * count,
    )
