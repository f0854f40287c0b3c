"""When the replanner looks, and what it makes of a decision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.placements import COSTS, GB, SIZES, load

from muxd.fleet.replanner import decided, drifted
from muxd.placement.live import Live, Room
from muxd.placement.memory import Budget
from muxd.placement.replan import Policy

POLICY = Policy(steps=50)
rates = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 50), min_size=1)


@given(rates, st.floats(0.001, 1))
def test_the_same_rates_have_not_drifted_other_models_have(before: dict[str, float], part: float) -> None:
    assert not drifted(before, before, part)
    assert drifted(before, {**before, "new": 0.0}, part)


@given(rates, st.floats(0.01, 1), st.floats(1.01, 5))
def test_drift_is_a_part_of_all_requests(before: dict[str, float], part: float, factor: float) -> None:
    total = sum(before.values())
    name = next(iter(before))
    if total > 1e-6:
        assert drifted(before, {**before, name: before[name] + factor * part * total}, part)
        assert not drifted(before, {**before, name: before[name] + part * total / factor}, part)


def test_noise_in_a_quiet_daemon_is_drift_but_no_reason_to_move() -> None:
    assert drifted({"a": 0.0, "b": 0.0}, {"a": 0.01, "b": 0.0}, 0.05)
    models = [load("a", SIZES[0], 0.01), load("b", SIZES[0], 0.001)]
    appraiser = Live(models, Room(2, 80 * GB, 20 * GB), COSTS, Budget())
    decision, _ = decided(appraiser, {"a": 0, "b": 0}, {}, POLICY, 1e9)
    assert not decision.adopt


@pytest.mark.parametrize(("since", "reason"), [(1e9, "adopt"), (1.0, "cooldown")])
def test_two_busy_models_on_one_device_part(since: float, reason: str) -> None:
    models = [load("a", SIZES[2], 40.0), load("b", SIZES[2], 40.0)]
    appraiser = Live(models, Room(2, 80 * GB, 20 * GB), COSTS, Budget())
    decision, proposed = decided(appraiser, {"a": 0, "b": 0}, {}, POLICY, since)
    assert decision.reason == reason
    assert proposed["a"] != proposed["b"]
    decision, proposed = decided(appraiser, {"a": 0, "b": 0}, {"a": 0, "b": 0}, POLICY, since)
    assert (decision.adopt, proposed) == (False, {"a": 0, "b": 0})


def test_a_place_that_does_not_fit_is_left_at_once() -> None:
    models = [load("a", SIZES[2], 1.0), load("b", SIZES[2], 1.0)]
    appraiser = Live(models, Room(2, 45 * GB, 20 * GB), COSTS, Budget())
    decision, proposed = decided(appraiser, {"a": 1, "b": 1}, {}, POLICY, 0.0)
    assert decision.adopt
    assert proposed["a"] != proposed["b"]
