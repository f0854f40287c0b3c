"""Several units are several worlds side by side; a changing plan loses nobody and costs what moves cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.placements import COSTS, GB, load

from muxd.cost.analytic import Roofline
from muxd.errors import ConfigError
from muxd.placement.appraiser import canonical
from muxd.placement.estimator import Estimator
from muxd.placement.problem import Gpus, Layout, Mesh, Problem, UnitLoad, check_layout
from muxd.placement.replan import Policy, relabelled
from muxd.sim.build import make_scheduler
from muxd.sim.cluster import Cluster, Terms, unit_config
from muxd.sim.moving import Itinerary, Stage, run_moving
from muxd.sim.records import Outcome, Records
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

NAMES = ("m0", "m1", "m2")
PROBLEM = Problem(tuple(load(name, "llama-3.2-1b", 1.0, 64, 16) for name in NAMES), Gpus("A100", 24 * GB, 2))
CLUSTER = Cluster(PROBLEM.models, COSTS, "A100")
POLICY = Policy(start=2.0, bandwidth=1e9)
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
        cost = CLUSTER.table(one, TERMS.contention)
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
        CLUSTER.table(unit("other"), TERMS.contention)
    with pytest.raises(ConfigError, match="no pool is left"):
        CLUSTER.run([unit(*NAMES, pool=10)], requests(6, 1.0), TERMS)


def test_a_split_pool_lends_nothing() -> None:
    """One busy model beside two idle ones: it may use a third of the pool, or all of it."""
    workload = Workload([Item(0.0, "m0", 300, 200) for _ in range(40)], {})
    small = unit(*NAMES, pool=60 * 16 * 8 * 16384)  # sixty rows of 16 layers and 8 KV heads
    shared, split = (CLUSTER.run([small], workload, Terms(split=s)).records for s in (False, True))
    assert (split.outcome == Outcome.SERVED).all()
    assert float(split.end.max()) > 1.5 * float(shared.end.max())


# ---- plans that change -------------------------------------------------------------------------------


def mesh(host: int, *models: int, gpus: int = 1) -> Mesh:
    return Mesh(host, gpus, models, (50,) * len(models))


def moving(stages: list[Stage], workload: Workload, policy: Policy = POLICY) -> tuple[Itinerary, Records]:
    itinerary = Itinerary(Estimator(PROBLEM, COSTS), stages, policy)
    return itinerary, run_moving(CLUSTER, itinerary, workload, TERMS)


APART = canonical((mesh(0, 0, 1), mesh(0, 2)))
OTHER = canonical((mesh(0, 0), mesh(0, 1, 2)))


def test_a_plan_that_does_not_change_is_a_cluster() -> None:
    workload = requests(60, 0.02)
    itinerary, records = moving([Stage(0.0, APART), Stage(0.5, APART)], workload)
    assert itinerary.moves == 0
    still = CLUSTER.run(itinerary.sites, workload, TERMS).records
    np.testing.assert_array_equal(records.end, still.end)


def test_a_moved_model_waits_for_its_weights_and_the_others_for_nothing() -> None:
    workload = requests(300, 0.02)
    at = 2.0
    itinerary, records = moving([Stage(0.0, APART), Stage(at, OTHER)], workload)
    (stay,) = [stay for stay in itinerary.stays if stay.since == at]
    assert stay.model == "m1"
    assert stay.load == pytest.approx(2.0 + PROBLEM.models[1].weights / 1e9)
    for i, item in enumerate(workload.items):
        wait = records.first[i] - item.time
        if item.model != "m1" or not at <= item.time < at + stay.load:
            continue
        assert records.first[i] >= at + stay.load
        assert records.sent[i] == item.time, "what the client waits counts"
        assert wait >= at + stay.load - item.time
    others = [i for i, item in enumerate(workload.items) if item.model != "m1"]
    assert float((records.first - records.sent)[others].max()) < 1.0


def test_a_model_loads_only_when_the_one_before_it_has_drained() -> None:
    """m1 and m2 change places; m2 has an answer of a thousand tokens to finish."""
    swapped = canonical((mesh(0, 0, 2), mesh(0, 1)))
    items = [Item(0.9, "m2", 50, 1000), Item(1.5, "m1", 20, 5)]
    itinerary, records = moving([Stage(0.0, APART), Stage(1.0, swapped)], Workload(items, {}))
    assert itinerary.moves == 2
    load = next(stay.load for stay in itinerary.stays if stay.model == "m1" and stay.since == 1.0)
    assert records.end[0] > 3.0
    assert records.first[1] >= records.end[0] + load


def layouts() -> st.SearchStrategy[Layout]:
    """Every way to put three models on two devices of one host: two meshes of one, or one of two."""

    def made(places: list[int]) -> Layout:
        if places[0] == 2:
            return (mesh(0, 0, 1, 2, gpus=2),)
        apart = (tuple(i for i in range(3) if places[i] == side) for side in (0, 1))
        return canonical(mesh(0, *models) for models in apart if models)

    return st.lists(st.integers(0, 2), min_size=3, max_size=3).map(
        lambda places: made([2] * 3 if 2 in places else places)
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(layouts(), min_size=1, max_size=4), st.floats(0.02, 0.2))
def test_no_request_is_lost_or_served_before_its_model_is_there(found: list[Layout], gap: float) -> None:
    stages: list[Stage] = []
    for i, layout in enumerate(found):
        if stages:
            layout = canonical(relabelled(PROBLEM, stages[-1].layout, layout))
        check_layout(PROBLEM, layout)
        stages.append(Stage(8.0 * i, layout))
    workload = requests(90, gap)
    itinerary, records = moving(stages, workload)
    assert (records.outcome == Outcome.SERVED).all()
    assert itinerary.moves <= 3 * (len(stages) - 1)
    for stay in itinerary.stays:
        for i, item in enumerate(workload.items):
            later = [s.since for s in itinerary.stays if s.model == stay.model and s.since > stay.since]
            if item.model == stay.model and stay.since <= item.time < min(later, default=1e9):
                assert records.first[i] > stay.since + stay.load


def test_costs_of_a_unit_are_its_degree_s() -> None:
    two = Cluster(PROBLEM.models, Roofline("a100"), "A100").table(unit("m0", degree=2), TERMS.contention)
    assert two.model("m0").shape.kv_heads == 4
