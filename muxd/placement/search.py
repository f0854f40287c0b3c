"""Our search: simulated annealing over layouts, from any layout to one that is worth at least as much.

A layout's worth is a sum over meshes and every move changes at most two meshes and one host, so a step costs
the same for 16 models as for 1,000, and the number of steps needed grows with the models. Moves: a model to
another mesh, two models swapped, two meshes' models exchanged, a mesh halved, two halves of a host joined.
Random numbers come from a seed and time is counted in steps: the same call gives the same plan.
"""

from collections.abc import Callable, Sequence
from math import exp
from random import Random

from muxd.placement.appraiser import canonical
from muxd.placement.problem import Layout, Mesh
from muxd.placement.sets import Sets

Models = tuple[int, ...]
_REPORT = 256
_CLOSE = 1e-9


class Enough(Exception):
    """Raised by whoever is told of a search's steps: what is found by now is taken."""


class _Change:
    """Meshes to be replaced (by place) and by what; worth what it says."""

    __slots__ = ("gain", "new", "old")

    def __init__(self, old: list[int], new: list[tuple[int, int, Models, float]], gain: float):
        self.old, self.new, self.gain = old, new, gain


class Annealing:
    """One walk. ``sets`` says what a set of models is worth on a mesh.

    ``leaving``: what it costs that a model is not on the mesh it starts on, in the units of worth.
    """

    def __init__(self, sets: Sets, layout: Layout, seed: int = 0, leaving: Sequence[float] | None = None):
        self._sets, self._draw = sets, Random(seed)
        self._leaving, self._fixed = leaving, bool(sets.appraiser.problem.gpus.fixed)
        self._homes: list[frozenset[int]] = [frozenset(m.models) for m in layout]
        self._hosts, self._sizes = [m.host for m in layout], [m.gpus for m in layout]
        self._models: list[Models] = [tuple(sorted(m.models)) for m in layout]
        self._values = [self._worth(m.gpus, tuple(sorted(m.models))) for m in layout]
        self._place = {model: i for i, models in enumerate(self._models) for model in models}
        self._count = len(self._place)
        self.value = sum(self._values)
        self._best, self._best_value = self._snapshot(), self.value
        self.visited: dict[tuple[int, Models], None] = {}  # sets of the cooler half of the walk, in order

    def run(self, steps: int, advance: Callable[[int], None] = lambda _: None) -> Layout:
        """The best layout seen. The temperature falls from a tenth of a model's mean worth to 1/10,000."""
        bound = self._sets.appraiser.bound * (1 - _CLOSE)
        typical = max(1e-12, self.value / max(1, self._count))
        hot, cold = 0.1 * typical, 1e-4 * typical
        moves = (self._move, self._swap, self._exchange, self._split, self._merge)
        for step in range(steps):
            if step == steps // 2:
                self.visited = dict.fromkeys(zip(self._sizes, self._models, strict=True))
            if step % _REPORT == 0:
                if self._best_value >= bound:
                    break
                temperature = hot * (cold / hot) ** (step / steps)
                advance(min(_REPORT, steps - step))
            kind = self._draw.choices(moves, (50, 30, 6, 6, 8))[0]
            change = kind()
            if change is None:
                continue
            if change.gain >= 0 or self._draw.random() < exp(change.gain / temperature):
                self._apply(change)
                self.visited.update(((size, models), None) for _, size, models, _ in change.new)
                if self.value > self._best_value * (1 + 1e-12):
                    self._best, self._best_value = self._snapshot(), self.value
        return self.best

    @property
    def best(self) -> Layout:
        """Seen so far."""
        return self._layout(self._best)

    # ---- moves: what would change, None where it cannot ----------------------------------------------

    def _move(self) -> _Change | None:
        model = self._draw.randrange(self._count)
        a, b = self._place[model], self._draw.randrange(len(self._models))
        if a == b:
            return None
        without = tuple(m for m in self._models[a] if m != model)
        return self._both(a, without, b, tuple(sorted((*self._models[b], model))))

    def _swap(self) -> _Change | None:
        one, two = self._draw.randrange(self._count), self._draw.randrange(self._count)
        a, b = self._place[one], self._place[two]
        if a == b:
            return None
        left = tuple(sorted((*(m for m in self._models[a] if m != one), two)))
        right = tuple(sorted((*(m for m in self._models[b] if m != two), one)))
        return self._both(a, left, b, right)

    def _exchange(self) -> _Change | None:
        a, b = self._draw.randrange(len(self._models)), self._draw.randrange(len(self._models))
        if self._sizes[a] == self._sizes[b]:
            return None
        return self._both(a, self._models[b], b, self._models[a])

    def _split(self) -> _Change | None:
        """Every model to the half where it adds more, in random order."""
        a = self._draw.randrange(len(self._models))
        size, models = self._sizes[a] // 2, list(self._models[a])
        if self._fixed or self._sizes[a] % 2 or len(models) < 2:
            return None
        self._draw.shuffle(models)
        halves: list[Models] = [(), ()]
        values = [0.0, 0.0]
        for model in models:
            joined = [tuple(sorted((*half, model))) for half in halves]
            worth = [self._sets.worth(size, models) for models in joined]
            gains = [w[0] - v if w is not None else None for w, v in zip(worth, values, strict=True)]
            able = [(gain, -values[i], i) for i, gain in enumerate(gains) if gain is not None]
            if not able:
                return None
            gain, _, i = max(able)
            halves[i], values[i] = joined[i], values[i] + gain
        new = [
            (self._hosts[a], size, half, value - self._away(half, frozenset()))
            for half, value in zip(halves, values, strict=True)
        ]
        return _Change([a], new, sum(value for *_, value in new) - self._values[a])

    def _merge(self) -> _Change | None:
        a = self._draw.randrange(len(self._models))
        alike = [
            i
            for i, (host, size) in enumerate(zip(self._hosts, self._sizes, strict=True))
            if host == self._hosts[a] and size == self._sizes[a] and i != a
        ]
        if self._fixed or not alike:
            return None
        b = self._draw.choice(alike)
        models = tuple(sorted((*self._models[a], *self._models[b])))
        found = self._sets.worth(2 * self._sizes[a], models)
        if found is None:
            return None
        worth = found[0] - self._away(models, frozenset())
        gain = worth - self._values[a] - self._values[b]
        return _Change([a, b], [(self._hosts[a], 2 * self._sizes[a], models, worth)], gain)

    # ---- state ---------------------------------------------------------------------------------------

    def _both(self, a: int, left: Models, b: int, right: Models) -> _Change | None:
        one = self._sets.worth(self._sizes[a], left)
        two = self._sets.worth(self._sizes[b], right) if one is not None else None
        if one is None or two is None:
            return None
        values = one[0] - self._away(left, self._homes[a]), two[0] - self._away(right, self._homes[b])
        new = [
            (self._hosts[a], self._sizes[a], left, values[0]),
            (self._hosts[b], self._sizes[b], right, values[1]),
        ]
        return _Change([a, b], new, sum(values) - self._values[a] - self._values[b])

    def _away(self, models: Models, home: frozenset[int]) -> float:
        if self._leaving is None:
            return 0.0
        return sum(self._leaving[model] for model in models if model not in home)

    def _apply(self, change: _Change) -> None:
        """Meshes keep their places where their number stays; the last one fills a gap."""
        places = list(change.old)
        if len(change.old) != len(change.new):  # other devices: a halved or joined mesh is nobody's home
            for place in places:
                self._homes[place] = frozenset()
        while len(places) < len(change.new):
            places.append(len(self._models))
            self._hosts.append(0)
            self._sizes.append(0)
            self._models.append(())
            self._values.append(0.0)
            self._homes.append(frozenset())
        for place, (host, size, models, value) in zip(places, change.new, strict=False):
            self._hosts[place], self._sizes[place] = host, size
            self._models[place], self._values[place] = models, value
            for model in models:
                self._place[model] = place
        for gap in sorted(places[len(change.new) :], reverse=True):
            self._remove(gap)
        self.value += change.gain

    def _remove(self, gap: int) -> None:
        last = len(self._models) - 1
        self._hosts[gap], self._sizes[gap] = self._hosts[last], self._sizes[last]
        self._models[gap], self._values[gap] = self._models[last], self._values[last]
        self._homes[gap] = self._homes[last]
        for column in (self._hosts, self._sizes, self._models, self._values, self._homes):
            column.pop()
        if gap != last:
            for model in self._models[gap]:
                self._place[model] = gap

    def _worth(self, gpus: int, models: Models) -> float:
        found = self._sets.worth(gpus, models)
        if found is None:
            raise ValueError(f"the first layout does not fit: models {models} on {gpus} devices")
        return found[0]

    def _snapshot(self) -> list[tuple[int, int, Models]]:
        return list(zip(self._hosts, self._sizes, self._models, strict=True))

    def _layout(self, snapshot: list[tuple[int, int, Models]]) -> Layout:
        found = []
        for host, size, models in snapshot:
            worth = self._sets.worth(size, models)
            assert worth is not None
            found.append(Mesh(host, size, models, worth[1]))
        return canonical(found)
