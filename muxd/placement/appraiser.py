"""What a search asks about a unit before it exists: does it fit, what is it worth.

Two answer: ``estimator.Estimator`` over any cost model, and ``released.Released``, the published system's own
arithmetic over its own table. Searches know only this interface, so every one can be judged by either.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from muxd.placement.problem import Layout, Mesh, Problem, Unit


class Appraiser(Protocol):
    """Models are indices into ``problem.models``; a unit is a mesh size, its models and their decode shares.

    ``value`` is additive over units: a layout is worth the sum.
    """

    problem: Problem

    def degrees(self, model: int) -> tuple[int, ...]:
        """Mesh sizes the model can run on, ascending."""
        ...

    def demand(self, model: int) -> tuple[float, float]:
        """Compute it asks for, size times popularity, and its size: the order of greedy placement."""
        ...

    def shares(self, gpus: int, models: Sequence[int]) -> tuple[int, ...] | None:
        """The decode shares that these models have on one mesh; None where one of them cannot run there."""
        ...

    def fits(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> bool:
        """Memory and shares."""
        ...

    def room(self, gpus: int, models: Sequence[int]) -> float:
        """What is left of the mesh's memory, in any unit that orders."""
        ...

    def value(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> float:
        """Of a unit that fits. An empty one is worth 0."""
        ...

    @property
    def bound(self) -> float:
        """No layout is worth more."""
        ...

    def objective(self, total: float) -> float:
        """The sum of values as the number this appraiser calls throughput."""
        ...

    def unit(self, mesh: Mesh, devices: tuple[int, ...]) -> Unit:
        """Everything predicted of it."""
        ...


def mesh_value(appraiser: Appraiser, mesh: Mesh) -> float:
    return appraiser.value(mesh.gpus, mesh.models, mesh.shares) if mesh.models else 0.0


def layout_value(appraiser: Appraiser, layout: Iterable[Mesh]) -> float:
    return sum(mesh_value(appraiser, mesh) for mesh in layout)


def canonical(layout: Iterable[Mesh]) -> Layout:
    """Models ascending in every mesh, so that sums of floats do not depend on who placed them first."""
    found = []
    for mesh in layout:
        pairs = sorted(zip(mesh.models, mesh.shares, strict=True))
        found.append(Mesh(mesh.host, mesh.gpus, tuple(m for m, _ in pairs), tuple(s for _, s in pairs)))
    return tuple(sorted(found, key=lambda mesh: (mesh.host, -mesh.gpus, mesh.models)))
