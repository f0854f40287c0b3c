"""The published search: for every mesh group, models by demand to the mesh that gains most.

MuxServe (Duan et al. 2024), algorithm 1. Two forms: ``paper`` charges what a model adds to the mesh it was
put on, in the appraiser's own values. ``released`` gains in means over a mesh's models, weighted by rate,
and has the released code's slips: the meshes' throughputs are kept by position in a list that is sorted anew
after every model, and the tie rule looks a size up in the list before sorting. Only it finds the published
grouping.

``naive`` is that paper's ablation: the least loaded mesh, whatever it gains.
"""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Literal

from muxd.errors import ConfigError
from muxd.placement.appraiser import Appraiser, layout_value, mesh_value
from muxd.placement.meshes import groups, meshes
from muxd.placement.problem import Layout, Mesh, replaced

Form = Literal["paper", "released", "naive"]


def greedy(
    appraiser: Appraiser,
    form: Form = "paper",
    limit: int = 1000,
    advance: Callable[[int], None] = lambda _: None,
) -> Layout:
    """The best layout over at most ``limit`` mesh groups; ``advance(1)`` after each.

    Raises ConfigError when no group can hold all models.
    """
    best, chosen = float("-inf"), None
    for found in layouts(appraiser, form, limit, advance):
        value = layout_value(appraiser, found)
        if value > best:
            best, chosen = value, found
    if chosen is None:
        raise ConfigError(f"greedy ({form}): no mesh group holds all models within its memory and shares")
    return chosen


def layouts(appraiser: Appraiser, form: Form, limit: int, advance: Callable[[int], None]) -> Iterable[Layout]:
    """What greedy finds in every mesh group that can hold all models."""
    problem = appraiser.problem
    order = sorted(range(len(problem.models)), key=appraiser.demand, reverse=True)
    least = max(min(appraiser.degrees(model)) for model in order)
    fill = _naive if form == "naive" else _fill
    for group in groups(problem.gpus, least, len(order), limit):
        found = fill(appraiser, order, meshes(group), form)
        advance(1)
        if found is not None:
            yield tuple(found)


def _fill(appraiser: Appraiser, order: Sequence[int], given: list[Mesh], form: Form) -> list[Mesh] | None:
    """Algorithm 1's inner loops over one mesh group."""
    filled, loads = list(given), [0.0] * len(given)
    worth = _mean if form == "released" else mesh_value
    gained = [0.0] * len(given)  # by mesh; in the released form by place in ``places``
    places = _ranked(appraiser, filled, loads, list(range(len(given))))
    for model in order:
        best, chosen = -inf, -1
        for place, i in enumerate(places):
            mesh = _with(appraiser, filled[i], model)
            if mesh is None:
                continue
            gain = worth(appraiser, mesh) - gained[place if form == "released" else i]
            tied_to = filled[chosen if form == "released" else places[chosen]].gpus
            if gain > best or (gain == best and mesh.gpus < tied_to):
                best, chosen = max(best, gain), place
        if chosen < 0:
            return None
        i = places[chosen]
        added = _with(appraiser, filled[i], model)
        assert added is not None
        filled[i] = added
        loads[i] -= appraiser.demand(model)[0] / added.gpus
        gained[chosen if form == "released" else i] += best
        places = _ranked(appraiser, filled, loads, places)
    return filled


def _naive(appraiser: Appraiser, order: Sequence[int], given: list[Mesh], _: Form) -> list[Mesh] | None:
    """Each model to the first mesh with room, least demand a device first, then most free memory."""
    filled, loads = list(given), [0.0] * len(given)
    places = _ranked(appraiser, filled, loads, list(range(len(given))))
    for model in order:
        for i in places:
            if appraiser.shares(filled[i].gpus, (model,)) is None:
                return None
            added = _with(appraiser, filled[i], model)
            if added is not None:
                filled[i] = added
                loads[i] -= appraiser.demand(model)[0] / added.gpus
                break
        else:
            return None
        places = _ranked(appraiser, filled, loads, places)
    return filled


def _with(appraiser: Appraiser, mesh: Mesh, model: int) -> Mesh | None:
    """The mesh with the model at the shares they have then, or None if it does not fit."""
    models = (*mesh.models, model)
    shares = appraiser.shares(mesh.gpus, models)
    if shares is None or not appraiser.fits(mesh.gpus, models, shares):
        return None
    return replaced(mesh, models, shares)


def _mean(appraiser: Appraiser, mesh: Mesh) -> float:
    """The mesh's throughput as the released code counts it: the mean over its models, weighted by rate."""
    rate = sum(appraiser.problem.models[model].rate for model in mesh.models)
    return appraiser.value(mesh.gpus, mesh.models, mesh.shares) / rate


def _ranked(appraiser: Appraiser, filled: list[Mesh], loads: list[float], places: list[int]) -> list[int]:
    """Least loaded first, then most free memory; equals keep their order."""

    def key(i: int) -> tuple[float, float]:
        return loads[i], appraiser.room(filled[i].gpus, filled[i].models)

    return sorted(places, key=key, reverse=True)
