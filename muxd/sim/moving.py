"""A cluster whose plan changes while it serves: models leave their mesh, drain there, and load elsewhere.

What a change costs, as a daemon would pay it:

* requests that came before run to their end where they are (drain);
* a moved model's weights are loaded once the models that leave its new devices have drained there, for the
  seconds ``replan.Policy`` says; its new requests wait until then;
* everybody else goes on.

A mesh is one ``World`` for as long as it exists, with a lane for every model it ever holds; an idle lane
costs nothing. Its pool is the smallest it has at any time, shares are the largest planned.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from muxd.placement.estimator import Estimator
from muxd.placement.problem import Layout, Mesh, UnitLoad
from muxd.placement.replan import Policy, kept
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.records import Records
from muxd.sim.workload import Item, Workload

_PASSES = 6


class Stage(Struct, frozen=True):
    """The layout that rules from ``at`` seconds on."""

    at: float
    layout: Layout


class Stay(Struct, frozen=True):
    """A model on a site from ``since`` on. ``after``: indices of stays that must drain before it loads."""

    model: str
    site: int
    since: float
    load: float
    after: tuple[int, ...] = ()


class Itinerary:
    """Sites and stays of all stages, the first at 0. Hosts are as ``replan.relabelled`` names them."""

    def __init__(self, estimator: Estimator, stages: Sequence[Stage], policy: Policy):
        self._problem, self._policy = estimator.problem, policy
        self._estimator = estimator
        self.stays: list[Stay] = []
        self.sites: list[UnitLoad] = []
        self._at: dict[str, int] = {}  # model -> its stay now
        self._places: list[int] = []  # of each mesh of the layout before: its site
        before: Layout = ()
        for stage in stages:
            self._enter(stage, before)
            before = stage.layout

    @property
    def moves(self) -> int:
        return len(self.stays) - len(self._problem.models)

    def _enter(self, stage: Stage, before: Layout) -> None:
        same = kept(self._problem, before, stage.layout)
        gone = set(self._places) - {self._places[j] for j in same.values()}
        places = []
        for i, mesh in enumerate(stage.layout):
            site = self._places[same[i]] if i in same else self._found(mesh)
            self._widen(site, mesh)
            places.append(site)
        arriving = [
            (self._problem.models[index].name, index, site, mesh)
            for mesh, site in zip(stage.layout, places, strict=True)
            for index in mesh.models
            if self._site_of(self._problem.models[index].name) != site
        ]
        leaving = [self._at[name] for name, *_ in arriving if name in self._at]
        for name, index, site, mesh in arriving:
            self._arrive(name, index, mesh, site, stage.at, leaving, gone)
        self._places = places

    def _arrive(
        self, name: str, index: int, mesh: Mesh, site: int, at: float, leaving: list[int], gone: set[int]
    ) -> None:
        first = name not in self._at
        vanished = {s for s in gone if self.sites[s].host == mesh.host} if self._new(site, at) else set()
        after = tuple(s for s in leaving if self.stays[s].site == site or self.stays[s].site in vanished)
        weights = self._problem.models[index].shape.weight_bytes(mesh.gpus, self._problem.models[index].dtype)
        load = 0.0 if first else self._policy.start + weights / self._policy.bandwidth
        self._at[name] = len(self.stays)
        self.stays.append(Stay(name, site, at, load, after))

    def _new(self, site: int, at: float) -> bool:
        return all(stay.since >= at for stay in self.stays if stay.site == site)

    def _site_of(self, name: str) -> int | None:
        return self.stays[self._at[name]].site if name in self._at else None

    def _found(self, mesh: Mesh) -> int:
        room = self._estimator.pool(mesh.gpus, mesh.models)
        self.sites.append(UnitLoad(mesh.host, (), mesh.gpus, room, (), (), (), (), (), ()))
        return len(self.sites) - 1

    def _widen(self, site: int, mesh: Mesh) -> None:
        old = self.sites[site]
        shares = dict(zip(old.models, old.decode_shares, strict=True))
        for index, share in zip(mesh.models, mesh.shares, strict=True):
            name = self._problem.models[index].name
            shares[name] = max(share, shares.get(name, 0))
        count = len(shares)
        self.sites[site] = msgspec.structs.replace(
            old,
            gpus=tuple(range(mesh.gpus)),
            pool_bytes=min(old.pool_bytes, self._estimator.pool(mesh.gpus, mesh.models)),
            models=tuple(shares),
            rates=(0.0,) * count,
            prefill_shares=(100,) * count,
            decode_shares=tuple(shares.values()),
            quota_weights=(1.0 / max(1, count),) * count,
            batches=(0,) * count,
        )


def run_moving(cluster: Cluster, itinerary: Itinerary, workload: Workload, terms: Terms) -> Records:
    """When a model is ready depends on when others have drained, and that on what is sent where: simulated
    again until nobody drains later than was assumed. Raises RuntimeError if that does not settle."""
    stays = itinerary.stays
    of_model = defaultdict(list)
    for i, stay in enumerate(stays):
        of_model[stay.model].append(i)
    chosen = [_stay_at(stays, of_model[item.model], item.time) for item in workload.items]
    drained = [stay.since for stay in stays]
    memory: dict[int, tuple[list[Item], Records]] = {}
    for _ in range(_PASSES):
        ready = [_ready(stays, i, drained) for i in range(len(stays))]
        whole = _pass(cluster, itinerary, workload, terms, chosen, ready, memory)
        found = list(drained)
        for index, at in enumerate(chosen):
            found[at] = max(found[at], float(whole.end[index]))
        if all(found[s] <= drained[s] + 1e-9 for stay in stays for s in stay.after):
            return whole
        drained = found
    raise RuntimeError("drains do not settle: moves follow each other faster than requests end")


def _stay_at(stays: list[Stay], mine: list[int], time: float) -> int:
    return max((i for i in mine if stays[i].since <= time), key=lambda i: stays[i].since)


def _ready(stays: list[Stay], i: int, drained: list[float]) -> float:
    stay = stays[i]
    return max([stay.since, *(drained[s] for s in stay.after)]) + stay.load


def _pass(
    cluster: Cluster,
    itinerary: Itinerary,
    workload: Workload,
    terms: Terms,
    chosen: list[int],
    ready: list[float],
    memory: dict[int, tuple[list[Item], Records]],
) -> Records:
    """Every site with what is sent to it; ``sent`` stays the time the client sent it."""
    whole = Records(workload)
    by_site = defaultdict(list)
    for index, (item, stay) in enumerate(zip(workload.items, chosen, strict=True)):
        by_site[itinerary.stays[stay].site].append((max(item.time, ready[stay]), index))
    for site, entries in by_site.items():
        entries.sort()
        items = [msgspec.structs.replace(workload.items[index], time=time) for time, index in entries]
        if site not in memory or memory[site][0] != items:
            part = Workload(items, {"duration": workload.duration})
            memory[site] = items, cluster.run([itinerary.sites[site]], part, terms).records
        records = memory[site][1]
        mine = [index for _, index in entries]
        for name in ("first", "end", "outcome"):
            getattr(whole, name)[mine] = getattr(records, name)
        whole.preemptions += records.preemptions
    return whole
