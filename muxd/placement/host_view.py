"""What one host says of itself where several are planned as one: plain data, made by its daemon."""

from msgspec import Struct

from muxd.config import ModelConfig
from muxd.cost.peaks import Peak, Reach
from muxd.placement.memory import Budget
from muxd.placement.problem import ModelLoad


class HostDevice(Struct, frozen=True):
    """Bytes: what pool and weights may take together, and what of it is the pool; of a mesh, of each of its
    ``members``."""

    memory: int
    pool: int
    members: int = 1


class HostedModel(Struct, frozen=True):
    """A model that is ready. ``load``: at the rate that was measured; ``least``: bytes of the pool that are
    guaranteed; ``stays``: it is pinned, cut over several devices, or the base of adapters."""

    load: ModelLoad
    config: ModelConfig
    device: str
    least: int = 0
    stays: bool = False

    @property
    def name(self) -> str:
        return self.load.name


class HostView(Struct, frozen=True):
    """``peak`` and ``reach``: of its devices, by which costs are reckoned; ``budget``: what workers take."""

    devices: dict[str, HostDevice]
    rungs: tuple[int, ...]
    peak: Peak
    reach: Reach
    budget: Budget
    models: list[HostedModel]
