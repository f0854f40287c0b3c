"""What is measured of the models' requests: right from the first look, and models come and go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.fleet.demand import Demand
from muxd.fleet.popularity import Popularity
from muxd.placement.replanner import Watch

WATCH = Watch()


@given(st.integers(1, 100), st.integers(1, 60), st.floats(0, 1e6))
def test_a_steady_rate_is_measured_however_young_the_measure(count: int, looks: int, began: float) -> None:
    popularity, now = Popularity(WATCH, began), began
    for _ in range(looks):
        now += WATCH.period
        for number in range(count):
            popularity.arrived("a", 10 + 20 * (number % 2), now)
            popularity.ended("a", 7, now)
        found = popularity.look("ab", now)
    assert found["a"].rate == pytest.approx(count / WATCH.period, rel=1e-6)
    assert 9.99 <= found["a"].prompt <= 30.01
    assert found["a"].output == pytest.approx(7)
    assert found["b"] == Demand(0.0, 0.0, 0.0)


def test_a_shift_shows_at_the_next_look_and_so_does_silence() -> None:
    popularity = Popularity(WATCH, 0.0)
    for step in range(1, 41):
        for _ in range(50):
            popularity.arrived("a" if step <= 20 else "b", 5, step * WATCH.period)
        found = popularity.look("ab", step * WATCH.period)
        busy, quiet = ("a", "b") if step <= 20 else ("b", "a")
        assert (found[busy].rate, found[quiet].rate) == pytest.approx((10.0, 0.0))
    assert popularity.look("ab", 300.0)["b"].rate == 0.0


def test_a_look_too_soon_after_another_takes_no_burst_for_a_rate() -> None:
    popularity = Popularity(WATCH, 0.0)
    assert popularity.look("a", 5.0)["a"].rate == 0.0
    for _ in range(20):
        popularity.arrived("a", 5, 5.01)
    assert popularity.look("a", 5.02)["a"].rate == 0.0
    assert popularity.look("a", 10.0)["a"].rate == pytest.approx(4.0)


def test_who_is_gone_is_forgotten_and_who_comes_is_new() -> None:
    popularity = Popularity(WATCH, 0.0)
    popularity.arrived("a", 5, 1.0)
    found = popularity.look("a", 5.0)["a"]
    assert found.rate == pytest.approx(0.2)
    assert found == Demand(found.rate, 5.0, 0.0)
    assert set(popularity.look("b", 10.0)) == {"b"}
    assert popularity.look("ab", 15.0)["a"] == Demand(0.0, 0.0, 0.0)
    for _ in range(10):
        popularity.arrived("a", 5, 16.0)
    assert popularity.look("ab", 20.0)["a"].rate == pytest.approx(2.0)
