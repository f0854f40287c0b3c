"""Which of a daemon's devices each of its models runs on: at the start, for one model more, and later. Pure.

A daemon's devices are alike as far as the plan goes, each holds one pool of a fixed size, and a model runs on
one of them. So each device is a host of its own in the ``Problem``, and its number there is its place in
the daemon's list. Pinned models stay where they are. A device that is a mesh counts as each of its members,
and a model that is cut as its part on one of them: it runs on a mesh of as many devices, and nowhere else.
"""

from collections.abc import Mapping, Sequence, Set

from msgspec import Struct

from muxd.cost.estimate import Costs
from muxd.placement.appraiser import canonical
from muxd.placement.estimator import Estimator
from muxd.placement.memory import Budget
from muxd.placement.problem import Gpus, Layout, Mesh, ModelLoad, Problem
from muxd.placement.replan import relabelled
from muxd.placement.replanner import View
from muxd.placement.search import Annealing
from muxd.placement.sets import Sets, Worth

STEPS = 300  # of the search, for each model

Places = Mapping[str, int]  # model -> device


class Room(Struct, frozen=True):
    """What the smallest of the ``devices`` has: bytes in all, and how many of them are the pool. ``rungs``:
    the shares a batch may have there; none: those of the costs. ``sizes``: members of each; none: one."""

    devices: int
    memory: int
    pool: int
    rungs: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


class Live(Estimator):
    """The estimator where the pool does not grow into what weights leave. ``least``: guarantees, in bytes.
    ``ranks``: of models that are cut.

    Raises ConfigError as the estimator does.
    """

    def __init__(
        self,
        models: Sequence[ModelLoad],
        room: Room,
        costs: Costs,
        budget: Budget,
        least: Mapping[str, int] | None = None,
        ranks: Mapping[str, int] | None = None,
    ):
        sizes = room.sizes or (1,) * room.devices
        problem = Problem(tuple(models), Gpus("devices", room.memory, 1, room.devices, sizes))
        self._pool = room.pool
        self._least = [(least or {}).get(model.name, 0) for model in models]
        self._ranks = [(ranks or {}).get(model.name, 1) for model in models]
        super().__init__(problem, costs, budget, room.rungs)

    def shares(self, gpus: int, models: Sequence[int]) -> tuple[int, ...] | None:
        """None also for a model that is cut over another number of devices."""
        if any(self._ranks[model] not in (1, gpus) for model in models):
            return None
        return super().shares(1, models)

    def fits(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> bool:
        """Weights beside the pool, and in it the guarantees and a request of each."""
        promised = sum(max(self._least[model], self._sequence[model][1]) for model in models)
        return self.room(gpus, models) >= 0 and promised <= self._pool

    def room(self, gpus: int, models: Sequence[int]) -> float:
        """Bytes that weights and workers leave beside the pool."""
        return float(super().pool(1, models) - self._pool)

    def pool(self, gpus: int, models: Sequence[int]) -> int:
        return self._pool

    def value(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> float:
        return super().value(1, models, shares)

    def takes(self, device: int, model: int) -> bool:
        """Whether it may run there, as far as its ranks go."""
        return self._ranks[model] in (1, self.problem.gpus.fixed[device])


class Pinned(Sets):
    """Sets that keep pinned models together with those of their device, and apart from all other pinned."""

    def __init__(self, appraiser: Live, pins: Places):
        super().__init__(appraiser)
        names = [model.name for model in appraiser.problem.models]
        self._sizes = appraiser.problem.gpus.fixed
        self._groups: dict[int, set[int]] = {}  # by device
        for i, name in enumerate(names):
            if name in pins:
                self._groups.setdefault(pins[name], set()).add(i)

    def worth(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        """None also where the pins forbid the set."""
        held = set(models)
        present = [(device, group) for device, group in self._groups.items() if group & held]
        if len(present) > 1 or any(
            not group <= held or self._sizes[device] != gpus for device, group in present
        ):
            return None
        return super().worth(gpus, models)


def layout(sets: Sets, places: Places) -> Layout:
    """One mesh for each device, the empty ones too. Sets that do not fit get the whole device each."""
    problem = sets.appraiser.problem
    found = []
    for device, size in enumerate(problem.gpus.fixed):
        models = tuple(i for i, model in enumerate(problem.models) if places[model.name] == device)
        worth = sets.worth(size, models)
        found.append(Mesh(device, size, models, worth[1] if worth else (100,) * len(models)))
    return canonical(found)


def places(problem: Problem, found: Layout) -> dict[str, int]:
    """Model -> device, in the problem's order."""
    at = {index: mesh.host for mesh in found for index in mesh.models}
    return {model.name: at[i] for i, model in enumerate(problem.models)}


def start(appraiser: Live, pins: Places, steps: int = STEPS) -> dict[str, int]:
    """Where each model begins. What fits nowhere goes where most is left: the daemon says of whom."""
    problem, sets = appraiser.problem, Pinned(appraiser, pins)
    begun = _spread(appraiser, pins)
    first = layout(sets, begun)
    if any(mesh.models and sets.worth(mesh.gpus, mesh.models) is None for mesh in first):
        return begun
    found = Annealing(sets, first).run(steps * len(problem.models))
    return places(problem, relabelled(problem, first, found, indices(problem, pins)))


def view(appraiser: Live, at: Places, pins: Places) -> View:
    """What a look sees of a daemon whose models are ``at`` these devices."""
    sets = Pinned(appraiser, pins)
    return View(
        appraiser,
        layout(sets, at),
        sets,
        indices(appraiser.problem, pins),
        lambda: layout(sets, start(appraiser, pins)),
    )


def gaps(appraiser: Live) -> dict[str, float]:
    """What a gap of each model costs: the requests that come in it."""
    return {model.name: model.rate * model.weight for model in appraiser.problem.models}


def fits(appraiser: Live, models: Set[str]) -> bool:
    """May they all be in the memory of one device."""
    number = {model.name: i for i, model in enumerate(appraiser.problem.models)}
    return appraiser.fits(1, [number[name] for name in models], ())


def indices(problem: Problem, pins: Places) -> dict[int, int]:
    """The pins by the models' places in the problem."""
    return {i: pins[model.name] for i, model in enumerate(problem.models) if model.name in pins}


def _spread(appraiser: Live, pins: Places) -> dict[str, int]:
    """Pinned models first; then, largest demand first, each to the device where it adds most."""
    models, sets = appraiser.problem.models, Sets(appraiser)
    held: list[tuple[int, ...]] = [()] * appraiser.problem.gpus.hosts
    order = sorted(
        range(len(models)), key=lambda i: (models[i].name not in pins, *_down(appraiser.demand(i)))
    )
    chosen = {}
    for i in order:
        name = models[i].name
        device = pins[name] if name in pins else best(appraiser, sets, held, i)
        held[device] = tuple(sorted((*held[device], i)))
        chosen[name] = device
    return chosen


def _down(demand: tuple[float, float]) -> tuple[float, float]:
    return -demand[0], -demand[1]


def best(appraiser: Live, sets: Sets, held: Sequence[tuple[int, ...]], model: int) -> int:
    """Of the devices that take it the one that gains most by it, of equals the emptiest; where it fits
    nowhere, also that one."""
    sizes = appraiser.problem.gpus.fixed

    def gain(device: int) -> tuple[float, float]:
        size = sizes[device]
        more = tuple(sorted((*held[device], model)))
        before, after = sets.worth(size, held[device]), sets.worth(size, more)
        room = appraiser.room(size, held[device])
        if before is None or after is None:
            return float("-inf"), room
        return round(after[0] - before[0], 9), room

    return max((device for device in range(len(held)) if appraiser.takes(device, model)), key=gain)
