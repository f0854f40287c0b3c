"""Several units are several worlds side by side."""

import numpy as np
import pytest
from support.placements import COSTS, GB, load

from muxd.cost.analytic import Roofline
from muxd.cost.law import factors
from muxd.errors import ConfigError
from muxd.placement.problem import Gpus, Problem, UnitLoad
from muxd.sim.build import make_scheduler
from muxd.sim.cluster import Cluster, Terms, unit_config
from muxd.sim.records import Outcome
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

NAMES = ("m0", "m1", "m2")
PROBLEM = Problem(tuple(load(name, "llama-3.2-1b", 1.0, 64, 16) for name in NAMES), Gpus("A100", 24 * GB, 2))
CLUSTER = Cluster(PROBLEM.models, COSTS, "A100")
TERMS = Terms()


def unit(*models: str, pool: int = GB, degree: int = 1) -> UnitLoad:
    count = len(models)
    return UnitLoad(
        0, tuple(range(degree)), degree, pool, models, (1.0,) * count, (100,) * count, (50,) * count,
        (1 / count,) * count, (1,) * count,
    )  # fmt: skip


def requests(count: int, gap: float, models: tuple[str, ...] = NAMES) -> Workload:
    return Workload(
        [Item(i * gap, models[i % len(models)], 40 + i % 7, 5 + i % 11) for i in range(count)], {}
    )


def test_units_do_what_their_worlds_do_alone_and_requests_keep_their_places() -> None:
    workload = requests(60, 0.01)
    whole = CLUSTER.run([unit("m0", "m2"), unit("m1")], workload, TERMS)
    assert (whole.records.outcome == Outcome.SERVED).all()
    for one in (unit("m0", "m2"), unit("m1")):
        mine = [i for i, item in enumerate(workload.items) if item.model in one.models]
        cost = CLUSTER.table(one)
        config = unit_config(one, TERMS, {model.name: model for model in PROBLEM.models})
        part = Workload([workload.items[i] for i in mine], {})
        alone = World(make_scheduler(config, cost), cost, part).run()
        np.testing.assert_array_equal(whole.records.end[mine], alone.end)
        np.testing.assert_array_equal(whole.records.first[mine], alone.first)
    assert [run.load.models for run in whole.units] == [("m0", "m2"), ("m1",)]


def test_a_model_without_a_unit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="asks for m2, which no unit"):
        CLUSTER.run([unit("m0", "m1")], requests(6, 1.0), TERMS)
    with pytest.raises(ConfigError, match="places other, which nobody knows"):
        CLUSTER.table(unit("other"))
    with pytest.raises(ConfigError, match="no pool is left"):
        CLUSTER.run([unit(*NAMES, pool=10)], requests(6, 1.0), TERMS)


def test_a_split_pool_lends_nothing() -> None:
    """One busy model beside two idle ones: it may use a third of the pool, or all of it."""
    workload = Workload([Item(0.0, "m0", 300, 200) for _ in range(40)], {})
    small = unit(*NAMES, pool=60 * 16 * 8 * 16384)  # sixty rows of 16 layers and 8 KV heads
    shared, split = (CLUSTER.run([small], workload, Terms(split=s)).records for s in (False, True))
    assert (split.outcome == Outcome.SERVED).all()
    assert float(split.end.max()) > 1.5 * float(shared.end.max())


def test_costs_of_a_unit_are_its_degree_s() -> None:
    two = Cluster(PROBLEM.models, Roofline("a100"), "A100").table(unit("m0", degree=2))
    assert two.model("m0").shape.kv_heads == 4


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_on_a_mesh_the_law_holds_for_each_of_its_devices(degree: int) -> None:
    """Batches beside each other move no more bytes than one device does, of weights, K and V its part; a
    step takes longer than its part of one device's, by what ranks tell each other."""
    roofline, model = Roofline("a100"), PROBLEM.models[0]
    table = Cluster(PROBLEM.models, roofline, "A100").table(unit("m0", "m1", degree=degree))
    memory, read = table.device.memory, 64 * 1024
    assert memory is not None
    one, two = (table.parts(name, table.decode(name, 64, 1024, 50), read, 50, 64) for name in ("m0", "m1"))
    part = roofline.reading(model.cost, degree).weights
    assert part == pytest.approx(roofline.reading(model.cost, 1).weights / degree)
    assert one.moved == pytest.approx(part + read * model.shape.kv_bytes(degree), rel=1e-3)
    running = [one, two] * 4 * degree
    slowed = factors(running, memory)
    assert min(slowed) > 1.0
    speeds = [batch.moved / (batch.seconds * x) for batch, x in zip(running, slowed, strict=True)]
    assert sum(speeds) == pytest.approx(memory.limit, rel=1e-3)
    whole = roofline.decode(model.cost, 1, 100, 64, 1024.0).seconds
    assert roofline.decode(model.cost, degree, 100, 64, 1024.0).seconds > whole / degree * (degree > 1)
