"""A plan tried out: what is simulated is what is written, bounded, and told of every policy alike."""

import msgspec
import pytest
from support.placements import COSTS, GB, QUICK, load

from muxd.cost.analytic import rungs
from muxd.placement.estimator import Estimator
from muxd.placement.planner import make_plan
from muxd.placement.problem import Gpus, Plan, Problem
from muxd.sim.trial import POLICIES, Trials, beginning, traffic, window


def crowd(rate: float = 1.0, **more: float) -> Problem:
    sizes = ("llama-3-8b", "llama-3.2-1b", "llama-3.2-3b")
    models = tuple(
        msgspec.structs.replace(load(f"m{i}", size, rate, 100, 60), **more) for i, size in enumerate(sizes)
    )
    return Problem(models, Gpus("A100", 80 * GB, 1))


def planned(problem: Problem) -> Plan:
    return make_plan("ours", Estimator(problem, COSTS, rungs=rungs()), QUICK)


def trials(problem: Problem) -> Trials:
    return Trials(problem, COSTS, rungs(), 0.95 * problem.gpus.memory)


def test_every_policy_serves_the_same_requests_and_swapping_is_the_slowest() -> None:
    problem = crowd(2.0)
    plan, workload = planned(problem), traffic(problem, 10.0)
    told: list[int] = []
    found = {policy: trials(problem).run(plan, workload, policy, told.append) for policy in POLICIES}
    assert told == [1] * len(POLICIES)
    for policy, trial in found.items():
        assert (trial.policy, trial.requests) == (policy, len(workload.items))
        assert 0 <= trial.worst <= trial.on_time <= 1
        assert trial.ttft_p50 is not None
        assert trial.ttft_p99 is not None
        assert 0 < trial.ttft_p50 <= trial.ttft_p99
    assert found["mux"].on_time == 1.0
    assert found["swap"].on_time < found["mux"].on_time
    assert trials(problem).run(plan, workload, "mux") == found["mux"], "the same input, the same trial"


@pytest.mark.parametrize(("target", "kept"), [(1e-6, 0.0), (1e6, 1.0)])
def test_targets_of_the_model_count_where_it_has_some(target: float, kept: float) -> None:
    problem = crowd(2.0, ttft_slo=target)
    trial = trials(problem).run(planned(problem), traffic(problem, 5.0), "mux")
    assert (trial.on_time, trial.worst) == (kept, kept)


@pytest.mark.parametrize("rate", [0.01, 1.0, 50.0])
def test_a_window_is_a_few_hundred_requests_at_most(rate: float) -> None:
    problem = crowd(rate)
    seconds = window(problem, planned(problem), 300)
    assert 0 < 3 * rate * seconds <= 300 + 1e-6
    assert 3 * rate * seconds > 50


def test_of_a_workload_its_beginning_is_taken() -> None:
    whole = traffic(crowd(5.0), 20.0)
    part = beginning(whole, 4.0)
    assert part.items == [item for item in whole.items if item.time < 4.0]
    assert part.duration == 4.0
