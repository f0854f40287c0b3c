"""A search can be ended whenever one likes, and has a plan; left alone it always finds the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.placements import COSTS, GB, QUICK, load, problems

from muxd.errors import ConfigError
from muxd.placement.appraiser import layout_value
from muxd.placement.estimator import Estimator
from muxd.placement.planner import default_effort, found
from muxd.placement.problem import Gpus, Problem, check_layout
from muxd.placement.search import Enough


def crowd(rate: float) -> Problem:
    sizes = ("llama-3-8b", "llama-3.2-1b", "llama-3.2-3b")
    models = tuple(load(f"m{i}", sizes[i % 3], rate / (i + 1)) for i in range(9))
    return Problem(models, Gpus("A100", 80 * GB, 4))


class After:
    """Has enough when it is told for the ``times``-th time, and ever after."""

    def __init__(self, times: int):
        self.left = times

    def __call__(self, steps: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Enough


@settings(max_examples=examples(25))
@given(problems(), st.integers(0, 30))
def test_whenever_it_is_ended_there_is_a_plan_no_worse_than_the_first(problem: Problem, times: int) -> None:
    try:
        appraiser = Estimator(problem, COSTS)
        layouts = found(appraiser, QUICK, After(times))
        first = found(appraiser, QUICK, After(0))[0]
    except (ConfigError, Enough):  # nothing fits, or only greedy would find a place
        return
    for layout in layouts:
        check_layout(problem, layout)
    values = [layout_value(appraiser, layout) for layout in layouts]
    assert values == sorted(values, reverse=True)
    assert values[0] >= layout_value(appraiser, first)


def test_the_same_input_gives_the_same_plans() -> None:
    once, again = (found(Estimator(crowd(30.0), COSTS), QUICK) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(("rate", "ends"), [(0.5, True), (300.0, False)])
def test_it_ends_by_itself_when_everybody_is_on_time(rate: float, ends: bool) -> None:
    steps: list[int] = []
    appraiser = Estimator(crowd(rate), COSTS)
    best = found(appraiser, QUICK, steps.append)[0]
    assert (layout_value(appraiser, best) >= 0.995 * appraiser.bound) == ends
    walk = QUICK.steps * 9
    assert sum(steps) <= walk if ends else sum(steps) == QUICK.total(9)
    assert default_effort(9).total(9) >= walk
