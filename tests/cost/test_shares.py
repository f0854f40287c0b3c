"""How models divide a device: by the rule alone, and by scheduler and plan alike."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.placements import COSTS, GB, load

from muxd.clock import VirtualClock
from muxd.cost.analytic import rungs
from muxd.cost.shares import equal_part, most_beside, prefill_part
from muxd.engine.shares import Shares
from muxd.placement.estimator import Estimator
from muxd.placement.planner import finished
from muxd.placement.problem import EQUAL, Gpus, Mesh, Problem, units
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.records import Records
from muxd.sim.virtual_unit import VirtualUnit
from muxd.sim.workload import Workload

ladders = st.sets(st.integers(1, 99), max_size=8).map(lambda found: sorted({*found, 100}))


@given(st.integers(1, 40), ladders)
def test_as_many_run_beside_each_other_as_there_are_models_if_any_share_allows_it(
    models: int, ladder: list[int]
) -> None:
    part = equal_part(models, ladder)
    assert part in ladder
    larger = [rung for rung in ladder if rung > part]
    assert models * part <= 100 or part == ladder[0]
    assert all(models * rung > 100 for rung in larger)


@given(st.integers(1, 40), ladders)
def test_a_prefill_leaves_a_models_part_unless_its_own_is_more(models: int, ladder: list[int]) -> None:
    part, own = prefill_part(models, ladder), equal_part(models, ladder)
    assert part >= own
    assert part + own <= 100 or part in (own, ladder[-1])
    assert most_beside(own, ladder) <= part
    assert not any(part < rung and rung + own <= 100 for rung in ladder)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_a_plan_says_the_shares_that_the_scheduler_gives(count: int) -> None:
    models = tuple(load(f"m{i}", "llama-3.2-1b", 1.0) for i in range(count))
    problem = Problem(models, Gpus("A100", 80 * GB, 1))
    estimator = Estimator(problem, COSTS, rungs=rungs())
    chosen = tuple(range(count))
    shares = estimator.shares(1, chosen)
    assert shares is not None
    plan = finished("by hand", estimator, (Mesh(0, 1, chosen, shares),))
    unit = msgspec.structs.replace(units(plan)[0], decode_shares=(EQUAL,) * count)
    scheduler, cost = Cluster(models, COSTS, "A100", rungs(), gpu=True).parts(unit, Terms())
    VirtualUnit(scheduler, cost, VirtualClock(), Records(Workload([], {}))).start()
    assert tuple(lane.spec.share for lane in scheduler.lanes.values()) == shares
    ahead = max(shares[0], Shares(rungs()).most_beside(shares))  # as policies/mux.py has it
    assert {member.prefill_share for member in plan.members} == {ahead}
