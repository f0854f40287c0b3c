"""The systems that are compared: who sits where, and by which policy the units are run.

mux            our placement, mux
mux-released   the published placement (greedy search and estimator as released), mux
temporal       our placement, every batch on the whole mesh, one at a time, first come first served
temporal-released  the same over the published placement, as the published runs had
spatial        every model alone; devices divided for the greatest predicted throughput (an exact knapsack)
spatial-fixed  every model alone as in the published runs: a mesh size for each model size, and in the
               synthetic experiment half of the device for K and V
"""

from functools import cached_property

from msgspec import structs

from muxd.config import SchedulerConfig
from muxd.cost.estimate import Costs
from muxd.cost.published import Published
from muxd.errors import ConfigError
from muxd.placement.estimator import Estimator
from muxd.placement.planner import Effort, finished, layout_of, temporal
from muxd.placement.problem import Layout, Mesh, Plan, Problem, UnitLoad, units
from muxd.placement.released import Released
from muxd.sim.cluster import Terms

SYSTEMS = ("mux", "mux-released", "temporal", "temporal-released", "spatial", "spatial-fixed")
POLICY = {
    "temporal": "temporal",
    "temporal-released": "temporal",
    "spatial": "spatial",
    "spatial-fixed": "spatial",
}
FIXED = {"sharegpt": {"llama-7b": 1, "llama-13b": 1, "llama-30b": 4, "llama-65b": 8},
         "chatlmsys": {"llama-7b": 1, "llama-13b": 2, "llama-30b": 2, "llama-65b": 4}}  # fmt: skip
# muxserve2spatial.py gives the two most popular 13B models of ChatLMSYS one device.
ONE_DEVICE = ("llm-1", "llm-3")
HALF = 0.5
EFFORT = Effort(steps=300, sets=0, columns=6000)


def terms(system: str, overbook: int) -> Terms:
    return Terms(POLICY.get(system, "mux"), SchedulerConfig(prefill_tokens=2048, overbook=overbook))


class Planner:
    """The plan of each system for one problem. ``costs``: what units cost; ``table``: the published table, by
    which the released planner plans."""

    def __init__(self, problem: Problem, costs: Costs, table: Published, kind: str):
        self._problem, self._table, self._kind = problem, table, kind
        self.estimator = Estimator(problem, costs)

    def plan(self, system: str) -> Plan:
        """Finished by the same estimator, whoever made the layout. Raises ConfigError."""
        return finished(system, self.estimator, self._layout(system))

    def units(self, system: str) -> list[UnitLoad]:
        """With the pool that the published synthetic spatial runs had, where it is theirs."""
        found = units(self.plan(system))
        if system == "spatial-fixed" and self._kind == "sharegpt":
            half = int(HALF * self._problem.gpus.memory)
            return [structs.replace(unit, pool_bytes=min(half, unit.pool_bytes)) for unit in found]
        return found

    @cached_property
    def _ours(self) -> Layout:
        return layout_of("ours", self.estimator, EFFORT)

    def _layout(self, system: str) -> Layout:
        match system:
            case "mux":
                return self._ours
            case "temporal":
                return temporal(self.estimator, self._ours)
            case "mux-released" | "temporal-released":
                return layout_of("released", Released(self._problem, self._table))
            case "spatial-fixed":
                return fixed(self._problem, self._kind)
            case "spatial" | "naive" | "greedy":
                return layout_of(system, self.estimator, EFFORT)
        raise ConfigError(f"system {system!r} is not one of {', '.join(SYSTEMS)}, greedy, naive")


def fixed(problem: Problem, kind: str) -> Layout:
    """Large meshes first onto hosts."""
    sizes = [
        1 if kind == "chatlmsys" and model.name in ONE_DEVICE else FIXED[kind][model.cost]
        for model in problem.models
    ]
    free = [problem.gpus.per_host] * problem.gpus.hosts
    found = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        host = next(host for host, left in enumerate(free) if left >= sizes[i])
        free[host] -= sizes[i]
        found.append(Mesh(host, sizes[i], (i,), (100,)))
    return tuple(found)
