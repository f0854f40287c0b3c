"""A first layout without enumerating mesh groups: models by demand, each to a mesh there is or a new one.

A new mesh must gain ``price`` per device more than joining would; the price at which the devices are just
used up is found by bisection. Work grows with models times the meshes looked at, which are bounded.
"""

from collections.abc import Callable
from math import inf

from muxd.placement.memory import shortfall
from muxd.placement.meshes import divisions
from muxd.placement.problem import Layout, Mesh
from muxd.placement.sets import Sets

_LOOKED_AT = 16  # meshes with models, of each size
_PRICES = 8


class _Builder:
    """One layout in the making."""

    def __init__(self, sets: Sets, price: float):
        gpus = sets.appraiser.problem.gpus
        self._sets, self._price = sets, price
        self._free = [gpus.per_host] * gpus.hosts
        self._filled: dict[int, list[int]] = {}  # size -> places in ``meshes``, least loaded first
        self.meshes: list[tuple[int, int, tuple[int, ...]]] = []  # host, size, models
        self._values: list[float] = []
        self._loads: list[float] = []

    def place(self, model: int) -> bool:
        """Where it gains most; False when it fits nowhere."""
        best, chosen = -inf, None
        for size in self._sets.appraiser.degrees(model):
            for place in self._filled.get(size, ())[:_LOOKED_AT]:
                found = self._sets.worth(size, self._joined(place, model))
                if found is not None and found[0] - self._values[place] > best:
                    best, chosen = found[0] - self._values[place], (place, size, 0)
            host = self._host(size)
            found = self._sets.worth(size, (model,)) if host is not None else None
            if found is not None and host is not None and found[0] - self._price * size > best:
                best, chosen = found[0] - self._price * size, (-1, size, host)
        if chosen is None:
            return self._squeeze(model)
        self._put(model, *chosen)
        return True

    def _squeeze(self, model: int) -> bool:
        """Any mesh that can hold it, the emptiest first."""
        sets = self._sets
        for size in reversed(sets.appraiser.degrees(model)):
            places = self._filled.get(size, [])
            room = sorted(places, key=lambda i: -sets.appraiser.room(size, self.meshes[i][2]))
            for place in room:
                if sets.worth(size, self._joined(place, model)) is not None:
                    self._put(model, place, size, 0)
                    return True
        return False

    def _joined(self, place: int, model: int) -> tuple[int, ...]:
        return tuple(sorted((*self.meshes[place][2], model)))

    def _host(self, size: int) -> int | None:
        """The fullest host with that many devices left."""
        able = [(left, host) for host, left in enumerate(self._free) if left >= size]
        return min(able)[1] if able else None

    def _put(self, model: int, place: int, size: int, host: int) -> None:
        if place < 0:
            place = len(self.meshes)
            self.meshes.append((host, size, ()))
            self._values.append(0.0)
            self._loads.append(0.0)
            self._filled.setdefault(size, []).append(place)
            self._free[host] -= size
        found = self._sets.worth(size, models := self._joined(place, model))
        assert found is not None
        self.meshes[place] = (self.meshes[place][0], size, models)
        self._values[place] = found[0]
        self._loads[place] += self._sets.appraiser.demand(model)[0] / size
        self._filled[size].sort(key=self._loads.__getitem__)

    @property
    def value(self) -> float:
        return sum(self._values)

    def layout(self) -> Layout:
        """With the devices nobody took as meshes without models."""
        found = []
        for host, size, models in self.meshes:
            worth = self._sets.worth(size, models)
            assert worth is not None
            found.append(Mesh(host, size, models, worth[1]))
        for host, left in enumerate(self._free):
            found += [Mesh(host, size) for size in (divisions(left)[0] if left else ())]
        return tuple(found)


def construct(sets: Sets, advance: Callable[[int], None] = lambda _: None) -> Layout:
    """The best layout over a few prices; ``advance(1)`` after each of 8.

    Raises ConfigError naming a model no price finds a place for.
    """
    appraiser = sets.appraiser
    order = sorted(range(len(appraiser.problem.models)), key=appraiser.demand, reverse=True)
    # Models that need many devices at once come first: later no host has them left.
    order.sort(key=lambda model: -min(appraiser.degrees(model)))
    low, high = 0.0, max(_highest(sets, model) for model in order)
    best: _Builder | None = None
    failed = order[0]
    for attempt in range(_PRICES):
        price = 0.0 if attempt == 0 else (low + high) / 2
        builder = _Builder(sets, price)
        failed_here = next((model for model in order if not builder.place(model)), None)
        advance(1)
        if failed_here is not None:
            # Devices ran out: dearer ones make models share.
            failed, low = failed_here, price
            continue
        if best is None or builder.value > best.value:
            best = builder
        if attempt == 0 and len(builder.meshes) >= len(order):
            break  # everybody has a mesh of their own and devices are left
        full = sum(size for _, size, _ in builder.meshes) >= appraiser.problem.gpus.count
        low, high = (price, high) if full else (low, price)
    if best is None:
        raise shortfall(appraiser.problem, failed)
    return best.layout()


def _highest(sets: Sets, model: int) -> float:
    """Above this price nobody opens a mesh who can join one."""
    found = [sets.worth(size, (model,)) for size in sets.appraiser.degrees(model)]
    return max((worth[0] for worth in found if worth is not None), default=0.0)
