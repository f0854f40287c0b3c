"""Measured rates: quiet where nothing changes, right soon where it does."""

from itertools import pairwise
from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from muxd.placement.rates import Rates

PERIOD, MEMORY = 5.0, 60.0


def watched(rate: float, counts: list[int], surprise: float = 4.0) -> list[float]:
    """The measured rate after each look, ``counts`` arrivals between two."""
    rates, found = Rates({"m": rate}, MEMORY, surprise), []
    for number, count in enumerate(counts):
        for _ in range(count):
            rates.arrived("m")
        found.append(rates.look(PERIOD * (number + 1))["m"])
    return found


def test_steady_arrivals_are_their_rate_exactly() -> None:
    assert watched(4.0, [20] * 50) == pytest.approx([4.0] * 50)


@pytest.mark.parametrize(("before", "after"), [(0.4, 7.0), (7.0, 0.4), (2.0, 20.0), (50.0, 90.0)])
def test_a_jump_is_seen_at_the_next_look_where_a_fading_mean_takes_a_memory(
    before: float, after: float
) -> None:
    counts = [round(before * PERIOD)] * 20 + [round(after * PERIOD)] * 4
    quick, slow = watched(before, counts), watched(before, counts, surprise=inf)
    assert quick[20:] == pytest.approx([after] * 4, rel=0.02)
    assert abs(slow[-1] - after) > 0.6 * abs(after - before)


@settings(max_examples=examples(30))
@given(st.floats(0.05, 200), st.integers(0, 2**31))
def test_under_poisson_arrivals_the_error_is_what_the_memory_allows(rate: float, seed: int) -> None:
    counts = np.random.default_rng(seed).poisson(rate * PERIOD, 200).tolist()
    errors = [abs(found - rate) for found in watched(rate, counts)]
    assert np.mean(errors) < 2.5 * sqrt(rate / (2 * MEMORY)) + 1e-9


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.floats(0.01, 10))
def test_rates_are_never_negative_and_silence_only_lowers_them(counts: list[int], rate: float) -> None:
    found = watched(rate, [*counts, *[0] * 5])
    assert all(value >= 0 for value in found)
    assert all(b <= a + 1e-12 for a, b in pairwise(found[len(counts) :]))


@given(st.floats(0.5, 50), st.floats(0, 1000), st.integers(1, 30))
def test_who_came_late_has_its_rate_from_the_first_look_on(rate: float, came: float, looks: int) -> None:
    rates, count = Rates({"old": 1.0}, MEMORY), round(rate * PERIOD)
    rates.enter("new", came)
    assert rates.look(came)["new"] == 0.0
    for look in range(1, looks + 1):
        for _ in range(count):
            rates.arrived("new")
        assert rates.look(came + look * PERIOD)["new"] == pytest.approx(count / PERIOD)
    rates.leave("new")
    assert rates.models == {"old"}
    with pytest.raises(KeyError):
        rates.arrived("new")


def test_two_looks_at_once_change_nothing_and_strangers_are_refused() -> None:
    rates = Rates({"m": 1.0}, MEMORY)
    rates.arrived("m")
    assert rates.look(5.0) == rates.look(5.0)
    with pytest.raises(KeyError):
        rates.arrived("other")
