"""Rates drift: is another plan worth what moving to it costs? Pure; whoever measures the rates asks.

A new layout is adopted when all of these hold, and the decision says which did not:

* ``cooldown`` seconds have passed since models last moved: at most one such adoption in that time;
* at the measured rates the meshes that change gain at least ``least_gain`` of their worth, however large the
  rest is (hysteresis: after an adoption the gain at the same rates is 0, so noise smaller than this moves
  nothing; near its limit a mesh loses an eighth of its worth where a rate is 5 percent higher);
* over ``horizon`` seconds the gain is more than what is not served while models move.

Shares follow who sits where (``muxd.cost.shares``), so nobody decides over them. A present layout that no
longer fits is left as soon as the new one does.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from muxd.errors import ConfigError
from muxd.placement.appraiser import Appraiser, canonical, layout_value
from muxd.placement.problem import Layout, Mesh, ModelLoad, Plan, Problem
from muxd.placement.search import Annealing
from muxd.placement.sets import Sets

Reason = Literal["adopt", "cooldown", "same", "small gain", "moves cost more", "does not fit"]


class Policy(Struct, frozen=True, kw_only=True):
    """Seconds, but ``least_gain`` (a part) and ``bandwidth`` (weight bytes a second)."""

    least_gain: float = 0.1
    horizon: float = 300.0
    cooldown: float = 60.0
    start: float = 5.0  # until a moved model serves, beside loading its weights
    bandwidth: float = 2e9
    steps: int = 2000  # of each walk of the search, for each model
    walks: int = 3


class Move(Struct, frozen=True):
    """One model leaves a mesh for another."""

    model: str
    from_host: int
    from_gpus: int
    to_host: int
    to_gpus: int
    seconds: float  # to load it
    lost: float  # requests (times weights) that come in that time: not served where it cannot load beside


class Decision(Struct, frozen=True):
    """``layout`` is the one to run from now on, the present one unless adopted.

    ``proposed`` is what it was about. ``gain``: requests a second (times weights); ``cost``: requests not
    served while models move, if none of them can be loaded while it still serves where it was.
    """

    adopt: bool
    reason: Reason
    layout: Layout
    proposed: Layout
    moves: tuple[Move, ...]
    gain: float
    cost: float


def with_rates(problem: Problem, rates: Mapping[str, float], least: float = 1e-3) -> Problem:
    """The problem at measured rates; a model nobody asked for keeps ``least``, as it must stay ready.

    Raises ConfigError for a rate of a model that is not in the problem.
    """
    unknown = set(rates) - {model.name for model in problem.models}
    if unknown:
        raise ConfigError(f"rates of models that are not placed: {', '.join(sorted(unknown))}")
    models = tuple(
        msgspec.structs.replace(model, rate=max(least, rates.get(model.name, model.rate)))
        for model in problem.models
    )
    return msgspec.structs.replace(problem, models=models)


def layout_of(plan: Plan, problem: Problem) -> Layout:
    """The layout a plan describes. Raises ConfigError for a model that is not in the problem."""
    index = {model.name: i for i, model in enumerate(problem.models)}
    unknown = [member.model for member in plan.members if member.model not in index]
    if unknown:
        raise ConfigError(f"the plan places {unknown[0]!r}, which is not among the models")
    return canonical(
        Mesh(
            unit.host,
            unit.degree,
            tuple(index[member.model] for member in unit.members),
            tuple(member.decode_share for member in unit.members),
        )
        for unit in plan.units
    )


def propose(
    appraiser: Appraiser,
    present: Layout,
    policy: Policy,
    sets: Sets | None = None,
    pinned: Mapping[int, int] | None = None,
) -> Layout:
    """The best layout near the present one, what moving to it costs counted: the search starts from it, and
    every model that leaves its mesh must pay over ``horizon``. ``sets`` may forbid some; ``pinned``:
    model -> host.

    Raises ConfigError when the present one does not fit: then plan anew.
    """
    if not _fits(appraiser, present):
        raise ConfigError("the present layout does not fit: plan anew")
    problem = appraiser.problem
    leaving = [
        model.rate * model.weight * _seconds(problem, model, 1, policy) / policy.horizon
        for model in problem.models
    ]
    steps = policy.steps * len(problem.models)
    known = sets or Sets(appraiser)
    walked = {
        Annealing(known, present, seed, leaving=leaving).run(steps): None for seed in range(policy.walks)
    }

    def net(layout: Layout) -> float:
        cost = sum(move.lost for move in moves(problem, canonical(present), layout, policy))
        return layout_value(appraiser, layout) - cost / policy.horizon

    found = [relabelled(problem, present, layout, pinned) for layout in walked]
    return max([canonical(present), *found], key=net)


def decide(
    appraiser: Appraiser,
    present: Layout,
    proposed: Layout,
    policy: Policy,
    since_adoption: float,
    pinned: Mapping[int, int] | None = None,
) -> Decision:
    """``appraiser`` at the measured rates; both layouts place all its models. ``since_adoption``: seconds
    since models last moved. ``pinned``: model -> host."""
    present = canonical(present)
    proposed = relabelled(appraiser.problem, present, proposed, pinned)
    moved = moves(appraiser.problem, present, proposed, policy)
    gain = layout_value(appraiser, proposed) - layout_value(appraiser, present)
    changed = layout_value(appraiser, [mesh for mesh in present if mesh not in proposed])
    cost = sum(move.lost for move in moved)
    worth = gain, changed, cost
    reason = _reason(appraiser, present, proposed, policy, since_adoption, worth, bool(moved))
    adopt = reason == "adopt"
    return Decision(
        adopt, reason, proposed if adopt else present, proposed, moved if adopt else (), gain, cost
    )  # fmt: skip


def _reason(
    appraiser: Appraiser,
    present: Layout,
    proposed: Layout,
    policy: Policy,
    since_adoption: float,
    worth: tuple[float, float, float],
    moved: bool,
) -> Reason:
    gain, changed, cost = worth
    if not _fits(appraiser, proposed):
        return "does not fit"
    if not _fits(appraiser, present):
        return "adopt"
    if since_adoption < policy.cooldown:
        return "cooldown"
    if not moved:
        return "same"
    if gain < policy.least_gain * changed or gain <= 0:
        return "small gain"
    return "moves cost more" if gain * policy.horizon <= cost else "adopt"


def _fits(appraiser: Appraiser, layout: Layout) -> bool:
    return all(appraiser.fits(mesh.gpus, mesh.models, mesh.shares) for mesh in layout)


def moves(problem: Problem, present: Layout, proposed: Layout, policy: Policy) -> tuple[Move, ...]:
    """Models that leave their mesh. A proposed mesh is the present one it is matched with (``kept``)."""
    same = kept(problem, present, proposed)
    before = {model: i for i, mesh in enumerate(present) for model in mesh.models}
    found = []
    for i, mesh in enumerate(proposed):
        for index in mesh.models:
            if same.get(i) != before[index]:
                model, gone = problem.models[index], present[before[index]]
                seconds = _seconds(problem, model, mesh.gpus, policy)
                lost = model.rate * model.weight * seconds
                found.append(Move(model.name, gone.host, gone.gpus, mesh.host, mesh.gpus, seconds, lost))
    return tuple(found)


def _seconds(problem: Problem, model: ModelLoad, gpus: int, policy: Policy) -> float:
    """To load it. Where meshes are fixed, models are as each of their devices has them."""
    gpus = 1 if problem.gpus.fixed else gpus
    return policy.start + model.shape.weight_bytes(gpus, model.dtype) / policy.bandwidth


def kept(problem: Problem, present: Layout, proposed: Layout) -> dict[int, int]:
    """Proposed mesh -> the present mesh on its host, of its size, that shares most weights with it."""
    return _matched(
        {
            (i, j): _common(problem, a, b)
            for i, a in enumerate(proposed)
            for j, b in enumerate(present)
            if a.host == b.host and a.gpus == b.gpus
        }
    )


def relabelled(
    problem: Problem, present: Layout, proposed: Layout, pinned: Mapping[int, int] | None = None
) -> Layout:
    """The proposed layout with its hosts renamed so that few bytes move: hosts with most in common first.

    A host with a pinned model gets the name it is pinned to; no host may have models pinned to two. One that
    is a mesh for good gets that of one as large.
    """
    hosts, pins, sizes = range(problem.gpus.hosts), pinned or {}, problem.gpus.fixed
    fixed = {mesh.host: pins[model] for mesh in proposed for model in mesh.models if model in pins}
    free = set(hosts) - set(fixed.values())
    by_host = {a: ([m for m in proposed if m.host == a], [m for m in present if m.host == a]) for a in hosts}
    matched = _matched(
        {
            (a, b): sum(_common(problem, x, y) for x in by_host[a][0] for y in by_host[b][1])
            for a in hosts
            if a not in fixed
            for b in free
            if not sizes or sizes[a] == sizes[b]
        }
    )
    names = {**matched, **fixed}
    return canonical(msgspec.structs.replace(mesh, host=names[mesh.host]) for mesh in proposed)


def _common(problem: Problem, a: Mesh, b: Mesh) -> int:
    """Bytes of the weights that stay where they are."""
    shared = set(a.models) & set(b.models) if a.gpus == b.gpus else ()
    return sum(problem.models[model].weights for model in shared)


def _matched(worth: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """One to one, the greatest first."""
    found: dict[int, int] = {}
    taken: set[int] = set()
    for (a, b), _ in sorted(worth.items(), key=lambda item: (-item[1], item[0])):
        if a not in found and b not in taken:
            found[a] = b
            taken.add(b)
    return found
