"""When the replanner looks, and what it makes of a decision."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.placements import COSTS, GB, SIZES, load

from muxd.config import PlacementConfig
from muxd.fleet.replanner import drifted, watch
from muxd.placement import live
from muxd.placement.live import Live, Room
from muxd.placement.memory import Budget
from muxd.placement.replan import Decision, Policy
from muxd.placement.replanner import Replanner, View, Watch

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


def looked(
    memory: int,
    rates: tuple[float, float],
    places: dict[str, int],
    pins: dict[str, int],
    since: float = 1e9,
    size: str = SIZES[2],
) -> tuple[Decision, dict[str, int]]:
    """What a look at two models on two devices decides, and the places it was about."""
    replanner, seen = Replanner(POLICY), []
    replanner.moved(0.0)

    def view(wanted: Mapping[str, float]) -> View:
        models = [load(name, size, max(1e-3, rate)) for name, rate in wanted.items()]
        seen.append(Live(models, Room(2, memory * GB, 20 * GB), COSTS, Budget()))
        return live.view(seen[0], places, pins)

    decision = replanner.look(dict(zip("ab", rates, strict=True)), view, since)
    return decision, live.places(seen[0].problem, decision.proposed)


def test_noise_in_a_quiet_daemon_is_drift_but_no_reason_to_move() -> None:
    assert drifted({"a": 0.0, "b": 0.0}, {"a": 0.01, "b": 0.0}, 0.05)
    decision, _ = looked(80, (0.01, 0.001), {"a": 0, "b": 0}, {}, size=SIZES[0])
    assert not decision.adopt


@pytest.mark.parametrize(("since", "reason"), [(1e9, "adopt"), (1.0, "cooldown")])
def test_two_busy_models_on_one_device_part(since: float, reason: str) -> None:
    places = {"a": 0, "b": 0}
    decision, proposed = looked(80, (40.0, 40.0), places, {}, since)
    assert decision.reason == reason
    assert proposed["a"] != proposed["b"]
    decision, proposed = looked(80, (40.0, 40.0), places, places, since)
    assert (decision.adopt, proposed) == (False, places)


def test_a_place_that_does_not_fit_is_left_at_once() -> None:
    decision, proposed = looked(45, (1.0, 1.0), {"a": 1, "b": 1}, {}, 0.0)
    assert decision.adopt
    assert proposed["a"] != proposed["b"]


def test_what_the_daemon_and_the_simulator_assume_by_default_is_the_same() -> None:
    config, policy = PlacementConfig(), Policy()
    assert watch(config) == Watch()
    assert (config.least_gain, config.horizon, config.cooldown) == (
        policy.least_gain, policy.horizon, policy.cooldown,
    )  # fmt: skip
