"""Rates measured online: right from the first seconds, and they follow a shift."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxd.engine.popularity import Demand, Popularity


@settings(deadline=None)
@given(st.floats(0.05, 50), st.floats(1, 300), st.floats(0.2, 8), st.integers(0, 99))
def test_a_steady_rate_is_measured_however_young_the_measure(
    rate: float, memory: float, ages: float, seed: int
) -> None:
    popularity, draw, now = Popularity(memory, 100.0), Random(seed), 100.0
    end = 100.0 + max(ages * memory, 40 / rate)
    while (now := now + 1 / rate) <= end:
        popularity.arrived("a", draw.choice([10, 30]), now)
        popularity.ended("a", 7, now)
    found = popularity.demand("a", end)
    kept = rate * memory * (1 - 2.718281828 ** (-(end - 100.0) / memory))
    if kept >= 10:
        assert found.rate == pytest.approx(rate, rel=0.15)
        assert 10 <= found.prompt <= 30
        assert found.output == pytest.approx(7)


def test_a_shift_shows_and_silence_fades() -> None:
    popularity = Popularity(10.0, 0.0)
    for tick in range(1000):
        now = tick / 10
        popularity.arrived("a" if now < 50 else "b", 5, now)
    assert popularity.demand("a", 100.0).rate < 0.1 < popularity.demand("b", 100.0).rate
    assert popularity.demand("b", 100.0).rate == pytest.approx(10, rel=0.05)
    assert popularity.demand("b", 200.0).rate < 0.01
    assert popularity.demand("never", 1.0) == Demand(0.0, 0.0, 0.0)
    assert Popularity(1.0, 5.0).demand("a", 5.0).rate == 0.0
