"""Several units in virtual time: one ``World`` for each unit of a plan, and one ``Records`` of them all.

Units share no device, so they are simulated one after another; what they did is put side by side.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from muxd.config import Config, ModelConfig, PoolConfig, QuotaConfig, SchedulerConfig
from muxd.cost.estimate import Costs
from muxd.cost.sampled import profile_of
from muxd.cost.table import CostTable
from muxd.engine.scheduler import Scheduler
from muxd.errors import ConfigError
from muxd.placement.problem import ModelLoad, UnitLoad
from muxd.sim.build import Opening, make_scheduler, without_models
from muxd.sim.records import Records
from muxd.sim.workload import Workload
from muxd.sim.world import World

_LEAST_WEIGHT = 1e-6


class Terms(Struct, frozen=True):
    """How every unit is run. ``split``: each model's part of the pool is its own, nobody borrows."""

    policy: str = "mux"
    scheduler: SchedulerConfig = SchedulerConfig(prefill_tokens=2048)
    block_bytes: int = 16384
    max_running: int = 512
    max_queue: int = 10**6
    split: bool = False


class UnitRun(Struct, frozen=True):
    """What one unit did. ``busy``: share-seconds computed, 1.0 a second of the whole mesh."""

    load: UnitLoad
    seconds: float
    busy: float
    preemptions: int


class ClusterRun(Struct, frozen=True):
    """``records`` in the order of the whole workload."""

    records: Records
    units: list[UnitRun]


class Cluster:
    """Runs plans of ``models`` over ``costs``. ``rungs``: the shares of a device, those of the costs if none
    are given; ``gpu``: as the daemon serves on one.

    Raises ConfigError for models of a unit that are not among ``models``, and from ``run`` when the workload
    asks for a model that no unit has.
    """

    def __init__(
        self,
        models: Sequence[ModelLoad],
        costs: Costs,
        device: str,
        rungs: Sequence[int] = (),
        *,
        gpu: bool = False,
    ):
        self._models = {model.name: model for model in models}
        self._costs = costs
        self._device, self._rungs, self._gpu = device, tuple(rungs), gpu
        self._tables: dict[tuple[tuple[str, int], ...], CostTable] = {}

    def run(
        self,
        units: Sequence[UnitLoad],
        workload: Workload,
        terms: Terms,
        advance: Callable[[int], None] = lambda _: None,
    ) -> ClusterRun:
        """``advance`` hears of requests that have arrived."""
        whole = Records(workload)
        placed = {model for unit in units for model in unit.models}
        missing = sorted(set(workload.models) - placed)
        if missing:
            raise ConfigError(f"the workload asks for {', '.join(missing)}, which no unit of the plan has")
        return ClusterRun(whole, [self._unit(unit, whole, terms, advance) for unit in units])

    def _unit(self, unit: UnitLoad, whole: Records, terms: Terms, advance: Callable[[int], None]) -> UnitRun:
        places, part = whole.workload.of(unit.models)
        world = World(*self.parts(unit, terms), part)
        records = world.run(advance)
        whole.put(places, records)
        return UnitRun(unit, world.clock.now(), world.device.busy, records.preemptions)

    def parts(self, unit: UnitLoad, terms: Terms) -> tuple[Scheduler, CostTable]:
        """A new scheduler of the unit, and what its batches cost."""
        cost = self.table(unit)
        return make_scheduler(unit_config(unit, terms, self._models), cost), cost

    def without_models(self, unit: UnitLoad, terms: Terms) -> tuple[Scheduler, dict[str, Opening], CostTable]:
        """The same where models come and go, and how each comes."""
        cost = self.table(unit)
        return *without_models(unit_config(unit, terms, self._models), cost), cost

    def table(self, unit: UnitLoad) -> CostTable:
        """The unit's models on one of its devices."""
        unknown = sorted(set(unit.models) - set(self._models))
        if unknown:
            raise ConfigError(f"the plan places {', '.join(unknown)}, which nobody knows the shape of")
        named = {name: (self._models[name].cost, unit.degree) for name in unit.models}
        shapes = {self._models[name].cost: self._models[name].shape for name in unit.models}
        dtypes = {self._models[name].cost: self._models[name].dtype for name in unit.models}
        return CostTable(
            profile_of(
                self._costs, self._device, named, shapes=shapes, dtype=dtypes, rungs=self._rungs,
                gpu=self._gpu,
            )
        )  # fmt: skip


def unit_config(unit: UnitLoad, terms: Terms, models: dict[str, ModelLoad]) -> Config:
    """The muxd.toml of a unit: its pool, shares, quotas and the terms. Raises ConfigError without a pool."""
    if unit.pool_bytes < terms.block_bytes:
        raise ConfigError(f"no pool is left beside the weights of {', '.join(unit.models)}")
    parts = [max(weight, _LEAST_WEIGHT) for weight in unit.quota_weights]
    entries = [
        ModelConfig(
            name,
            name,
            share=share,
            dtype=models[name].dtype,
            kv_dtype=models[name].shape.kv_dtype,
            quota=_quota(part / sum(parts), split=terms.split),
            max_running=terms.max_running,
            max_queue=terms.max_queue,
            prefix_cache=False,
        )
        for name, share, part in zip(unit.models, unit.decode_shares, parts, strict=True)
    ]
    scheduler = structs.replace(terms.scheduler, policy=terms.policy)
    return Config(
        pool=PoolConfig(str(unit.pool_bytes), terms.block_bytes), scheduler=scheduler, model=entries
    )


def _quota(part: float, *, split: bool) -> QuotaConfig:
    if not split:
        return QuotaConfig(weight=part)
    own = f"{100 * part * (1 - 1e-6):.6f}%"  # rounded down, as the guarantees must hold together
    return QuotaConfig(own, own, part)
