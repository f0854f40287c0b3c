"""Layouts that follow each other, as places that last: which mesh of one layout is which of the next."""

from collections.abc import Sequence

from msgspec import Struct

from muxd.placement.estimator import Estimator
from muxd.placement.problem import Layout, Mesh
from muxd.placement.replan import kept


class Stage(Struct, frozen=True):
    """The layout that rules from ``at`` seconds on. ``rates``: requests a second as whoever planned it
    believes; models it does not name have the problem's."""

    at: float
    layout: Layout
    rates: dict[str, float] = {}


class Site(Struct, frozen=True):
    """A mesh for as long as it exists. ``pool``: bytes for K and V on each device, the least that any layout
    leaves, as a ledger does not shrink."""

    host: int
    gpus: int
    pool: int


class Stop(Struct, frozen=True):
    """A stage in terms of sites: where each model is. ``before``: for each new site the sites whose devices
    it may take."""

    at: float
    sites: dict[str, int]
    rates: dict[str, float]
    before: dict[int, set[int]]


class Itinerary:
    """Sites and stops of all stages, the first at 0. Hosts are as ``replan.relabelled`` names them."""

    def __init__(self, estimator: Estimator, stages: Sequence[Stage]):
        self.estimator = estimator
        self.sites: list[Site] = []
        self.stops: list[Stop] = []
        self._places: list[int] = []  # of each mesh of the layout before: its site
        before: Layout = ()
        for stage in stages:
            self._enter(stage, before)
            before = stage.layout

    @property
    def moves(self) -> int:
        """How often a model changes its site."""
        pairs = zip(self.stops, self.stops[1:], strict=False)
        return sum(a.sites[model] != b.sites[model] for a, b in pairs for model in a.sites)

    def _enter(self, stage: Stage, before: Layout) -> None:
        problem = self.estimator.problem
        same = kept(problem, before, stage.layout)
        gone = set(self._places) - {self._places[j] for j in same.values()}
        places = [
            self._kept(self._places[same[i]], mesh) if i in same else self._found(mesh)
            for i, mesh in enumerate(stage.layout)
        ]
        names = {
            problem.models[index].name: site
            for mesh, site in zip(stage.layout, places, strict=True)
            for index in mesh.models
        }
        fresh = [site for i, site in enumerate(places) if i not in same]
        self.stops.append(
            Stop(
                stage.at,
                names,
                {model.name: stage.rates.get(model.name, model.rate) for model in problem.models},
                {site: {s for s in gone if self.sites[s].host == self.sites[site].host} for site in fresh},
            )
        )
        self._places = places

    def _kept(self, site: int, mesh: Mesh) -> int:
        old = self.sites[site]
        self.sites[site] = Site(old.host, old.gpus, min(old.pool, self._pool(mesh)))
        return site

    def _found(self, mesh: Mesh) -> int:
        self.sites.append(Site(mesh.host, mesh.gpus, self._pool(mesh)))
        return len(self.sites) - 1

    def _pool(self, mesh: Mesh) -> int:
        return self.estimator.pool(mesh.gpus, mesh.models)
