"""The optimum of small problems, to know what a search leaves behind.

A layout is a partition of the models into sets, one a mesh. Because a layout's worth is a sum over meshes,
the best worth of every set of models on every number of devices follows from smaller ones:

    best(S, d) = max over the sets T of S that hold its first model, and mesh sizes g, of
                 worth(T, g) + best(S - T, d - g)

That is 2^models states; six models take milliseconds once every set is
appraised, sixteen some seconds, as memory and shares keep the sets small.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from muxd.placement.appraiser import Appraiser, canonical
from muxd.placement.memory import shortfall
from muxd.placement.meshes import packed
from muxd.placement.problem import Layout, Mesh
from muxd.placement.sets import Sets

_MOST_MODELS = 16
_SIZES = (1, 2, 4, 8)

Column = tuple[int, int, float, tuple[int, ...], tuple[int, ...]]  # set, size, worth, models, shares


class TooLarge(Exception):
    """More models or sets than can be enumerated."""


def optimum(sets: Sets, limit: int = 100_000, advance: Callable[[int], None] = lambda _: None) -> Layout:
    """The layout of the greatest worth. ``advance(0)`` now and then: what it raises ends it.

    Raises ConfigError when nothing fits, TooLarge for more than 16 models or ``limit`` sets that fit, and for
    hosts whose devices are not a power of two (then a sum of devices does not say whether meshes pack).
    """
    appraiser = sets.appraiser
    problem = appraiser.problem
    per_host, count = problem.gpus.per_host, len(problem.models)
    if count > _MOST_MODELS or per_host & (per_host - 1):
        raise TooLarge(f"no optimum for {count} models on hosts of {per_host} devices")
    columns = _columns(sets, limit, advance)
    best, came = _solve(columns, count, problem.gpus.count, advance)
    if best[-1, -1] == -np.inf:
        raise shortfall(problem, max(range(count), key=lambda model: problem.models[model].weights))
    return _layout(appraiser, columns, came)


def _columns(sets: Sets, limit: int, advance: Callable[[int], None]) -> list[Column]:
    """Every set that fits a mesh. A set is only looked at if it fits without any one of its models."""
    appraiser = sets.appraiser
    found: list[Column] = []
    for size in _SIZES:
        if size > appraiser.problem.gpus.per_host:
            break
        level: list[tuple[int, ...]] = [()]
        while level:
            known, level = set(level), []
            for models in _larger(known, len(appraiser.problem.models)):
                worth = sets.worth(size, models)
                advance(0)
                if worth is not None:
                    found.append((sum(1 << model for model in models), size, worth[0], models, worth[1]))
                    level.append(models)
                if len(found) > limit:
                    raise TooLarge(f"more than {limit} sets of models fit")
    return found


def _larger(known: set[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """Sets of one model more, all of whose parts are known to fit."""
    candidates = ((*models, model) for models in known for model in range(max(models, default=-1) + 1, count))
    return [
        models
        for models in candidates
        if len(models) == 1 or all(part in known for part in combinations(models, len(models) - 1))
    ]


def _solve(
    columns: list[Column], count: int, devices: int, advance: Callable[[int], None]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """[sets, devices + 1]: the best worth with at most that many devices, and the column it came by."""
    best = np.full((1 << count, devices + 1), -np.inf)
    came = np.full((1 << count, devices + 1), -1, dtype=np.int32)
    best[0] = 0.0
    for first in range(count):
        # All models before ``first`` are placed, it is not; which of the later ones are is open.
        later = np.arange(1 << (count - first - 1), dtype=np.int64) << (first + 1)
        states = later | ((1 << first) - 1)
        for number, (members, size, worth, models, _) in enumerate(columns):
            if models[0] != first or size > devices:
                continue
            advance(0)
            start = states[(states & members) == 0]
            reached = best[start, : devices + 1 - size] + worth
            goal = start | members
            better = reached > best[goal, size:]
            best[goal, size:] = np.where(better, reached, best[goal, size:])
            came[goal, size:] = np.where(better, number, came[goal, size:])
    return best, came


def _layout(appraiser: Appraiser, columns: list[Column], came: NDArray[np.int32]) -> Layout:
    left, devices = came.shape[0] - 1, came.shape[1] - 1
    chosen = []
    while left:
        members, size, _, models, shares = columns[came[left, devices]]
        chosen.append((size, models, shares))
        left, devices = left & ~members, devices - size
    hosts = packed([size for size, _, _ in chosen], appraiser.problem.gpus)
    assert hosts is not None
    return canonical(Mesh(host, *mesh) for host, mesh in zip(hosts, chosen, strict=True))
