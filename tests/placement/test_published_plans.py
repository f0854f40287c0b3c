"""The published algorithm finds the published plan, and ours is better by the same arithmetic."""

import pytest
from support.placements import chatlmsys, published_table

from muxd.cost.shapes import CATALOGUE
from muxd.errors import ConfigError
from muxd.placement.appraiser import layout_value
from muxd.placement.estimator import Estimator
from muxd.placement.exact import optimum
from muxd.placement.planner import make_plan
from muxd.placement.problem import Gpus, ModelLoad, Problem
from muxd.placement.released import Released
from muxd.placement.sets import Sets

# MuxServe's repository, benchmark/chatlmsys/yamls/flexsm/*condense2000*.yaml: devices, models, decode shares.
PUBLISHED_X2000 = {
    (8, frozenset({("llm-1", 90), ("llm-14", 30)})),
    (4, frozenset({("llm-11", 90), ("llm-6", 30)})),
    (4, frozenset({("llm-10", 70), ("llm-5", 30)})),
    (4, frozenset({("llm-16", 90), ("llm-7", 30)})),
    (4, frozenset({("llm-3", 90), ("llm-12", 30)})),
    (4, frozenset({("llm-4", 90), ("llm-9", 30)})),
    (2, frozenset({("llm-15", 90), ("llm-2", 30)})),
    (2, frozenset({("llm-8", 80), ("llm-13", 30)})),
}


def test_the_published_grouping_is_found_with_its_shares_and_objective() -> None:
    plan = make_plan("released", Released(chatlmsys(2000), published_table()))
    found = {
        (unit.degree, frozenset((member.model, member.decode_share) for member in unit.members))
        for unit in plan.units
    }
    assert found == PUBLISHED_X2000
    assert plan.objective == pytest.approx(10.646, abs=5e-4)


@pytest.mark.parametrize("condensed", [500, 1200, 2000])
def test_ours_is_better_by_the_published_objective(condensed: int) -> None:
    """By who sits where alone: all have the shares of its algorithm 2."""
    appraiser = Released(chatlmsys(condensed), published_table())
    ours, greedy, released = (
        make_plan(method, appraiser).objective for method in ("ours", "greedy", "released")
    )
    assert ours > 1.003 * max(greedy, released)


def test_annealing_comes_close_to_the_optimum_over_all_partitions() -> None:
    """At candidate shares, where the optimum of all 16 models on 32 devices takes a second."""
    from muxd.placement.planner import Effort, first_layouts
    from muxd.placement.search import Annealing

    appraiser = Released(chatlmsys(2000), published_table())
    sets = Sets(appraiser)
    best = layout_value(appraiser, optimum(sets))
    starts = first_layouts(sets, Effort())
    walks = [Annealing(sets, start, seed).run(20_000) for start in starts for seed in range(3)]
    found = max(layout_value(appraiser, walk) for walk in walks)
    assert 0.97 * best < found <= best * (1 + 1e-9)


@pytest.mark.parametrize("condensed", [500, 1200, 2000])
def test_the_general_estimator_plans_the_published_inputs(condensed: int) -> None:
    """Greedy and the baselines; ours is too long for a test with the large sets it may form."""
    problem = chatlmsys(condensed)
    appraiser = Estimator(problem, published_table())
    plans = {method: make_plan(method, appraiser) for method in ("greedy", "naive", "spatial")}
    assert all(0 < plan.served <= problem.rate * (1 + 1e-9) for plan in plans.values())


def test_models_without_published_constants_are_refused() -> None:
    model = ModelLoad("x", "llama-3-8b", CATALOGUE["llama-3-8b"], 1.0, 161, 337)
    with pytest.raises(ConfigError, match="x: the released estimator knows llama-7b"):
        Released(Problem((model,), Gpus("A100", 80 * 10**9, 8)), published_table())
