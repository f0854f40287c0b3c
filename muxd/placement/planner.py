"""From a problem to a plan, by each of the methods that can be compared.

ours      annealing from several first layouts, greedy's among them; what the walks met is recombined by a
          solver; the optimum where few sets fit a mesh
greedy    MuxServe's algorithm 1 (``released``: with the slip of its released code)
naive     the least loaded mesh, the ablation of MuxServe
spatial   every model alone on devices of its own, as many as pay
temporal  the meshes of ours, but every decode on the whole device, one after another
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from muxd.errors import ConfigError
from muxd.placement import meshes
from muxd.placement.appraiser import Appraiser, canonical, layout_value
from muxd.placement.construct import construct
from muxd.placement.exact import TooLarge, optimum
from muxd.placement.greedy import Form, greedy
from muxd.placement.problem import Layout, Mesh, Plan, check_layout
from muxd.placement.recombine import recombined
from muxd.placement.search import Annealing
from muxd.placement.sets import Sets
from muxd.placement.spatial import spatial

Method = Literal["ours", "greedy", "released", "naive", "spatial", "temporal"]
METHODS: tuple[Method, ...] = get_args(Method)
Advance = Callable[[int], None]

_FORMS: dict[Method, Form] = {"greedy": "paper", "released": "released", "naive": "naive"}


class Effort(Struct, frozen=True):
    """How long to search, in steps and sets, so that a plan does not depend on the machine."""

    steps: int = 1000  # of each walk over candidate shares, for each model
    tuned_steps: int = 50  # of the walk after them that also improves shares
    walks: int = 1  # from each first layout
    groups: int = 1000  # mesh groups greedy may look at
    greedy_models: int = 64  # above, greedy is no first layout: it takes models x meshes x groups
    tuned_models: int = 64  # above, shares are improved at the end only
    recombined_models: int = 100  # above, the solver takes longer than the walks
    columns: int = 20_000  # so many sets met on the walks, the last ones, are recombined
    sets: int = 4000  # up to so many that fit a mesh, the optimum over them is computed

    def total(self, models: int) -> int:
        """Steps that ``ours`` reports at most."""
        return (4 * self.walks * self.steps + self.tuned_steps) * models


_MOST_STEPS = 128_000  # of a walk


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
        return canonical(greedy(appraiser, _FORMS[method], effort.groups))
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
    models = len(appraiser.problem.models)
    walks = _Walks(Sets(appraiser, tuned=False), advance)
    starts = first_layouts(walks.sets, effort)
    for start in starts:
        for seed in range(effort.walks):
            walks.walk(start, seed, effort.steps * models)
    best = _best(walks.sets, [*starts, *walks.found])
    if models <= effort.recombined_models:
        best = _best(walks.sets, [best, *walks.recombined(effort.columns)])
    tuning = _Walks(Sets(appraiser), advance)
    if models > effort.tuned_models:
        return tuned(tuning.sets, best)
    tuning.walk(best, 0, effort.tuned_steps * models)
    # What is best before its shares are improved need not be best after.
    found = [tuned(tuning.sets, layout) for layout in (*starts, *walks.found, best)]
    found += [*tuning.found, *tuning.recombined(effort.columns)]
    with suppress(TooLarge):
        found.append(optimum(tuning.sets, limit=effort.sets))
    return _best(tuning.sets, found)


class _Walks:
    """Walks over the same sets."""

    def __init__(self, sets: Sets, advance: Advance):
        self.sets = sets
        self.found: list[Layout] = []
        self._advance = advance
        self._visited: list[dict[tuple[int, tuple[int, ...]], None]] = []

    def walk(self, start: Layout, seed: int, steps: int) -> None:
        walk = Annealing(self.sets, start, seed)
        self.found.append(walk.run(steps, self._advance))
        self._visited.append(walk.visited)

    def recombined(self, limit: int) -> list[Layout]:
        """At most one layout, of the last ``limit`` sets visited, an equal part from each walk."""
        part = limit // len(self._visited)
        keys = dict.fromkeys(key for visited in self._visited for key in list(visited)[-part:])
        keys |= dict.fromkeys((mesh.gpus, mesh.models) for layout in self.found for mesh in layout)
        layout = recombined(self.sets, keys)
        return [] if layout is None else [layout]


def _best(sets: Sets, layouts: Sequence[Layout]) -> Layout:
    return max(layouts, key=lambda layout: layout_value(sets.appraiser, layout))


def first_layouts(sets: Sets, effort: Effort) -> list[Layout]:
    """Greedy's where it can be computed, and the constructed one. Raises ConfigError if there is none."""
    appraiser = sets.appraiser
    found: list[Layout] = []
    forms: Sequence[Form] = ("paper", "released", "naive")
    if len(appraiser.problem.models) > effort.greedy_models:
        forms = ()
    for form in forms:
        try:
            found.append(canonical(greedy(appraiser, form, effort.groups)))
        except ConfigError:
            continue
    try:
        found.append(canonical(construct(sets)))
    except ConfigError:
        if not found:
            raise
    return found


def tuned(sets: Sets, layout: Layout) -> Layout:
    """The same models on the same meshes, with the best shares known."""
    found = []
    for mesh in canonical(layout):
        worth = sets.worth(mesh.gpus, mesh.models)
        assert worth is not None
        found.append(msgspec.structs.replace(mesh, shares=worth[1]))
    return tuple(found)


def temporal(appraiser: Appraiser, layout: Layout) -> Layout:
    """Everybody on the whole device: decodes take turns. Only for appraisers that count turns."""
    whole = [Mesh(m.host, m.gpus, m.models, tuple(100 for _ in m.models)) for m in layout]
    for mesh in whole:
        if mesh.models and not appraiser.fits(mesh.gpus, mesh.models, mesh.shares):
            raise ConfigError("temporal: this cost model does not say what decodes taking turns cost")
    return tuple(whole)
