"""What a plan is worth: requests on time, and less the later they are."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.placements import COSTS, GB, load

from muxd.placement import promises
from muxd.placement.estimator import Estimator
from muxd.placement.problem import Gpus, Problem

MODEL = load("m", "llama-3-8b", 4.0)
times = st.floats(1e-3, 1e3)
rates = st.floats(0.01, 100)


@given(times, times, st.floats(0, 1), rates)
def test_later_is_never_worth_more_and_on_time_counts_in_full(
    one: float, two: float, speed: float, throughput: float
) -> None:
    early, late = sorted((one, two))
    worths = [promises.worth(MODEL, throughput, x, speed) for x in (early, late)]
    assert worths[0] >= worths[1] > 0
    if throughput >= MODEL.rate and early <= 1:
        assert worths[0] == pytest.approx(MODEL.rate * (1 + promises.SPEED * speed))
    assert worths[0] <= promises.most((MODEL,)) * (1 + 1e-9)


@given(rates, rates)
def test_more_throughput_is_never_worth_less(one: float, two: float) -> None:
    less, more = sorted((one, two))
    assert promises.worth(MODEL, less, 0.5, 0.5) <= promises.worth(MODEL, more, 0.5, 0.5) * (1 + 1e-9)


def test_targets_are_the_models_own_or_five_times_alone_with_room_for_the_tail() -> None:
    assert promises.lateness(MODEL, 0.1, 0.02, 6.0, 2.0) == pytest.approx(1.0), "three times alone"
    first = msgspec.structs.replace(MODEL, ttft_slo=1.0)
    assert promises.lateness(first, 0.6, 9.0, 1e9, 1.0) == pytest.approx(1.0), (
        "the answer's rest has no target"
    )
    both = msgspec.structs.replace(first, tpot_slo=0.1)
    assert promises.lateness(both, 0.3, 0.12, 1e9, 1.0) == pytest.approx(2.0)


def test_a_plan_that_is_faster_is_worth_a_little_more_and_one_that_is_late_much_less() -> None:
    models = tuple(load(f"m{i}", "llama-3-8b", rate) for i, rate in enumerate((1.0, 1.0, 40.0)))
    estimator = Estimator(Problem(models, Gpus("A100", 80 * GB, 4)), COSTS)
    alone, quiet = estimator.value(1, (0,), (100,)), estimator.value(1, (0, 1), (50, 50))
    assert 2 <= quiet < 2 * alone <= 2 * (1 + promises.SPEED)
    busy = estimator.value(1, (0, 2), (50, 50))
    assert busy < estimator.value(1, (2,), (100,)) + 0.9 * alone, "beside it the quiet one is late"
    assert estimator.bound == pytest.approx(42 * (1 + promises.SPEED))
