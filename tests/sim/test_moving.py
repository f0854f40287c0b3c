"""A plan that changes while it serves: nobody is lost, and a move costs what it costs a daemon."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.placements import COSTS, GB, load

from muxd.placement.appraiser import canonical
from muxd.placement.estimator import Estimator
from muxd.placement.problem import Gpus, Layout, Mesh, Problem, check_layout
from muxd.placement.replan import Policy, relabelled
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.itinerary import Itinerary, Stage
from muxd.sim.moving import Move, Moved, run_moving, units
from muxd.sim.records import Outcome
from muxd.sim.workload import Item, Workload

NAMES = ("m0", "m1", "m2")
MODELS = tuple(load(name, "llama-3.2-1b", 1.0, 64, 16) for name in NAMES)
PROBLEM = Problem(MODELS, Gpus("A100", 24 * GB, 2))
CLUSTER = Cluster(MODELS, COSTS, "A100")
POLICY = Policy(start=2.0, bandwidth=1e9)
LOAD = 2.0 + MODELS[0].weights / 1e9


def requests(count: int, gap: float, models: tuple[str, ...] = NAMES) -> Workload:
    return Workload(
        [Item(i * gap, models[i % len(models)], 40 + i % 7, 5 + i % 11) for i in range(count)], {}
    )


def mesh(host: int, *models: int, gpus: int = 1) -> Mesh:
    return Mesh(host, gpus, models, (50,) * len(models))


APART = canonical((mesh(0, 0, 1), mesh(0, 2)))
OTHER = canonical((mesh(0, 0), mesh(0, 1, 2)))
SWAPPED = canonical((mesh(0, 0, 2), mesh(0, 1)))


def moving(stages: list[Stage], workload: Workload, *, tight: bool = False, free: bool = False) -> Moved:
    """``tight``: no mesh has memory for a copy beside its pool, unless somebody has left."""
    itinerary = Itinerary(Estimator(PROBLEM, COSTS), stages)
    if not tight:
        itinerary.sites = [type(site)(site.host, site.gpus, site.pool // 2) for site in itinerary.sites]
    return run_moving(CLUSTER, itinerary, workload, Terms(), POLICY, free=free)


def of(moved: Moved, model: str) -> Move:
    (found,) = [move for move in moved.moves if move.model == model]
    return found


def waits(moved: Moved, model: str) -> np.ndarray:
    mine = [i for i, item in enumerate(moved.records.workload.items) if item.model == model]
    return (moved.records.first - moved.records.sent)[mine]


def test_a_plan_that_does_not_change_is_a_cluster() -> None:
    workload = requests(60, 0.02)
    itinerary = Itinerary(Estimator(PROBLEM, COSTS), [Stage(0.0, APART), Stage(0.5, APART)])
    moved = run_moving(CLUSTER, itinerary, workload, Terms(), POLICY)
    assert moved.moves == []
    still = CLUSTER.run(list(units(itinerary).values()), workload, Terms()).records
    np.testing.assert_array_equal(moved.records.end, still.end)
    np.testing.assert_array_equal(moved.records.first, still.first)


def test_where_memory_permits_a_model_serves_until_its_copy_is_loaded() -> None:
    moved = moving([Stage(0.0, APART), Stage(2.0, OTHER)], requests(600, 0.02))
    move = of(moved, "m1")
    assert (move.parked, move.gap) == (False, 0.0)
    assert move.switched == pytest.approx(2.0 + LOAD)
    assert max(waits(moved, name).max() for name in NAMES) < 1.0, "nobody has noticed"


def test_two_models_that_change_places_cost_a_gap_of_the_quieter_one_alone() -> None:
    """m1 and m2 change places where no third fits; m2 is asked for less."""
    stage = Stage(2.0, SWAPPED, {"m1": 9.0, "m2": 0.5})
    problem_moves = moving([Stage(0.0, APART), stage], requests(900, 0.02), tight=True)
    loud, quiet = of(problem_moves, "m1"), of(problem_moves, "m2")
    assert (loud.parked, quiet.parked) == (False, True)
    assert loud.switched == pytest.approx(quiet.drained + LOAD)
    assert quiet.switched == pytest.approx(max(loud.drained, loud.switched) + LOAD)
    assert quiet.gap == pytest.approx(quiet.switched - 2.0)
    assert waits(problem_moves, "m1").max() < 1.0
    assert quiet.gap * 0.9 < waits(problem_moves, "m2").max() < quiet.gap + 1.0
    assert (problem_moves.records.sent == [i.time for i in problem_moves.records.workload.items]).all()


def test_a_model_loads_only_when_the_one_before_it_has_drained() -> None:
    """m2 has an answer of a thousand tokens to finish where m1 shall go."""
    items = [Item(0.9, "m2", 50, 1000), Item(1.5, "m1", 20, 5), Item(1.6, "m2", 20, 5)]
    moved = moving([Stage(0.0, APART), Stage(1.0, SWAPPED, {"m1": 9.0})], Workload(items, {}), tight=True)
    assert of(moved, "m2").drained == moved.records.end[0] > 3.0
    assert of(moved, "m1").switched == pytest.approx(moved.records.end[0] + LOAD)
    assert moved.records.first[1] < 2.0, "m1 is served where it was"
    assert moved.records.first[2] > of(moved, "m2").switched, "m2 waits for its new place"


def test_requests_that_have_not_begun_are_taken_along_and_running_ones_are_not() -> None:
    """Sixty long requests of m1 at once, more than the pool holds: the rest wait in its queue."""
    items = [Item(0.0, "m1", 300, 900) for _ in range(600)]
    moved = moving([Stage(0.0, APART), Stage(0.2, OTHER)], Workload(items, {}))
    move = of(moved, "m1")
    assert (moved.records.outcome == Outcome.SERVED).all()
    late = int((moved.records.first > move.switched).sum())
    assert 0 < move.resent <= late
    assert move.drained > move.switched


def test_free_moves_take_no_time() -> None:
    moved = moving([Stage(0.0, APART), Stage(2.0, SWAPPED)], requests(300, 0.02), tight=True, free=True)
    assert [move.switched for move in moved.moves] == [2.0, 2.0]
    assert not any(move.parked for move in moved.moves)


def layouts() -> st.SearchStrategy[Layout]:
    """Every way to put three models on two devices of one host: two meshes of one, or one of two."""

    def made(places: list[int]) -> Layout:
        if places[0] == 2:
            return (mesh(0, 0, 1, 2, gpus=2),)
        apart = (tuple(i for i in range(3) if places[i] == side) for side in (0, 1))
        return canonical(mesh(0, *models) for models in apart)

    return st.lists(st.integers(0, 2), min_size=3, max_size=3).map(
        lambda places: made([2] * 3 if 2 in places else places)
    )


@settings(max_examples=examples(25))
@given(st.lists(layouts(), min_size=1, max_size=4), st.floats(0.02, 0.2), st.booleans())
def test_no_request_is_lost_or_served_before_its_model_is_there(
    found: list[Layout], gap: float, tight: bool
) -> None:
    stages: list[Stage] = []
    for i, layout in enumerate(found):
        if stages:
            layout = relabelled(PROBLEM, stages[-1].layout, layout)
        check_layout(PROBLEM, layout)
        stages.append(Stage(8.0 * i, layout))
    moved = moving(stages, requests(120, gap), tight=tight)
    assert (moved.records.outcome == Outcome.SERVED).all()
    assert (moved.records.first <= moved.records.end).all()
    assert len(moved.moves) <= 3 * (len(stages) - 1)
    for move in (move for move in moved.moves if move.parked):
        mine = [i for i, item in enumerate(moved.records.workload.items) if item.model == move.model]
        sent, first = moved.records.sent[mine], moved.records.first[mine]
        inside = (sent > move.asked) & (sent < move.switched)
        assert (first[inside] > move.switched).all()
    for one, two in pairwise(moved.moves):
        assert one.asked <= two.asked
