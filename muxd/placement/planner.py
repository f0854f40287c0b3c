"""From a problem to a plan, by each of the methods that can be compared.

ours      annealing from several first layouts, greedy's among them; what the walks met is recombined by a
          solver; the optimum where few sets fit a mesh
greedy    MuxServe's algorithm 1 (``released``: with the slip of its released code)
naive     the least loaded mesh, the ablation of MuxServe
spatial   every model alone on devices of its own, as many as pay
temporal  the meshes of ours, but every decode on the whole device, one after another

``ours`` can be ended at any time by what ``advance`` raises (``Enough``); it soon has a first layout.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal, get_args

from msgspec import Struct

from muxd.errors import ConfigError
from muxd.placement import meshes, promises
from muxd.placement.appraiser import Appraiser, canonical, layout_value
from muxd.placement.construct import construct
from muxd.placement.exact import TooLarge, optimum
from muxd.placement.greedy import Form, greedy
from muxd.placement.problem import Layout, Mesh, Plan, check_layout
from muxd.placement.recombine import recombined
from muxd.placement.search import Annealing, Enough
from muxd.placement.sets import Sets
from muxd.placement.spatial import spatial

Method = Literal["ours", "greedy", "released", "naive", "spatial", "temporal"]
METHODS: tuple[Method, ...] = get_args(Method)
Advance = Callable[[int], None]

_FORMS: dict[Method, Form] = {"greedy": "paper", "released": "released", "naive": "naive"}


class Effort(Struct, frozen=True):
    """How long to search, in steps and sets, so that a plan does not depend on the machine."""

    steps: int = 1000  # of each walk, for each model
    walks: int = 1  # from each first layout
    groups: int = 1000  # mesh groups greedy may look at
    greedy_models: int = 64  # above, greedy is no first layout: it takes models x meshes x groups
    recombined_models: int = 100  # above, the solver takes longer than the walks
    columns: int = 20_000  # so many sets met on the walks, the last ones, are recombined
    sets: int = 4000  # up to so many that fit a mesh, the optimum over them is computed
    candidates: int = 3  # layouts that ``found`` keeps

    def total(self, models: int) -> int:
        """Steps that ``ours`` reports at most."""
        return 4 * self.walks * self.steps * models


_MOST_STEPS = 128_000  # of a walk
_CONTENT = 1 - promises.SPEED / 2  # of what no layout exceeds: everybody is on time


def default_effort(models: int) -> Effort:
    """Fewer steps for each of many models: a walk has at most 128,000, so 500 models take about a minute."""
    return Effort(steps=max(100, min(Effort().steps, _MOST_STEPS // models)))


def make_plan(
    method: Method, appraiser: Appraiser, effort: Effort | None = None, advance: Advance = lambda _: None
) -> Plan:
    """Raises ConfigError when the method finds no place for some model."""
    return finished(method, appraiser, layout_of(method, appraiser, effort, advance))


def layout_of(
    method: Method, appraiser: Appraiser, effort: Effort | None = None, advance: Advance = lambda _: None
) -> Layout:
    """Only who sits where. Raises as ``make_plan``."""
    effort = effort or default_effort(len(appraiser.problem.models))
    if method in _FORMS:
        return canonical(greedy(appraiser, _FORMS[method], effort.groups, advance))
    if method == "spatial":
        return spatial(appraiser)
    found = ours(appraiser, effort, advance)
    return temporal(appraiser, found) if method == "temporal" else found


def finished(method: str, appraiser: Appraiser, layout: Layout) -> Plan:
    """With everything predicted of every unit, and the device numbers."""
    check_layout(appraiser.problem, layout)
    places = meshes.devices(list(layout))
    units = tuple(appraiser.unit(mesh, place) for mesh, place in zip(layout, places, strict=True))
    return Plan(method, units, appraiser.objective(layout_value(appraiser, layout)))


# ---- ours --------------------------------------------------------------------------------------------


def ours(appraiser: Appraiser, effort: Effort, advance: Advance = lambda _: None) -> Layout:
    """The best of all walks and of what their sets make together, and the optimum where it can be had."""
    return found(appraiser, effort, advance)[0]


def found(appraiser: Appraiser, effort: Effort, advance: Advance = lambda _: None) -> list[Layout]:
    """The best few layouts, the best first. Raises ConfigError where there is none, Enough where ``advance``
    does so before there is one."""
    search = _Search(appraiser, effort, advance)
    with suppress(Enough):
        search.run()
    if not search.layouts:
        raise Enough
    return search.layouts


class _Search:
    """Goes on until nothing is left to try, or to gain but half of what speed is worth."""

    def __init__(self, appraiser: Appraiser, effort: Effort, advance: Advance):
        self.layouts: list[Layout] = []
        self._sets, self._effort, self._advance = Sets(appraiser), effort, advance
        self._models = len(appraiser.problem.models)
        self._walks: list[Annealing] = []

    def run(self) -> None:
        for start in first_layouts(self._sets, self._effort, self._advance):
            self._keep(start)
            for seed in range(self._effort.walks):
                self._walk(start, seed)
            if self._content:
                return
        if self._models <= self._effort.recombined_models:
            self._recombine()
        with suppress(TooLarge):
            self._keep(optimum(self._sets, self._effort.sets, self._advance))

    def _walk(self, start: Layout, seed: int) -> None:
        walk = Annealing(self._sets, start, seed)
        self._walks.append(walk)
        try:
            walk.run(self._effort.steps * self._models, self._advance)
        finally:
            self._keep(walk.best)

    def _recombine(self) -> None:
        """The last sets that each walk visited."""
        part = self._effort.columns // len(self._walks)
        keys = dict.fromkeys(key for walk in self._walks for key in list(walk.visited)[-part:])
        keys |= dict.fromkeys((mesh.gpus, mesh.models) for walk in self._walks for mesh in walk.best)
        layout = recombined(self._sets, keys, self._advance)
        if layout is not None:
            self._keep(layout)

    def _keep(self, layout: Layout) -> None:
        worth = partial(layout_value, self._sets.appraiser)
        known = dict.fromkeys([*self.layouts, canonical(layout)])
        self.layouts = sorted(known, key=worth, reverse=True)[: self._effort.candidates]

    @property
    def _content(self) -> bool:
        appraiser = self._sets.appraiser
        return layout_value(appraiser, self.layouts[0]) >= _CONTENT * appraiser.bound


def first_layouts(sets: Sets, effort: Effort, advance: Advance = lambda _: None) -> Iterator[Layout]:
    """The constructed one, which is soon there and is not ended, and greedy's where they can be computed.

    Raises ConfigError if there is none."""
    appraiser, known, failed = sets.appraiser, False, None
    try:
        yield canonical(construct(sets))
        known = True
    except ConfigError as error:
        failed = error
    forms: Sequence[Form] = ("paper", "released", "naive")
    if len(appraiser.problem.models) > effort.greedy_models:
        forms = ()
    for form in forms:
        try:
            yield canonical(greedy(appraiser, form, effort.groups, lambda _: advance(0)))
            known = True
        except ConfigError:
            continue
    if not known:
        assert failed is not None
        raise failed


def temporal(appraiser: Appraiser, layout: Layout) -> Layout:
    """Everybody on the whole device: decodes take turns. Only for appraisers that count turns."""
    whole = [Mesh(m.host, m.gpus, m.models, tuple(100 for _ in m.models)) for m in layout]
    for mesh in whole:
        if mesh.models and not appraiser.fits(mesh.gpus, mesh.models, mesh.shares):
            raise ConfigError("temporal: this cost model does not say what decodes taking turns cost")
    return tuple(whole)
