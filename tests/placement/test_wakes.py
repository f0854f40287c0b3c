"""What is believed of wakes follows what they took, and stays near what is stated whatever it is told."""

from hypothesis import given
from hypothesis import strategies as st

from muxd.engine.learnt import MOST
from muxd.placement.wakes import BOUND, Wakes

amounts = st.floats(0, MOST)
wakes = st.builds(Wakes, amounts, amounts)
stated = st.floats(1e-3, 1e3)


def test_what_was_not_seen_is_as_stated() -> None:
    assert Wakes().seconds(0.5, parked=True) == 0.5
    assert Wakes(cold=3.0).seconds(0.5, parked=True) == 0.5
    assert Wakes(cold=3.0).seconds(0.5, parked=False) == 3.0


@given(wakes, stated, st.booleans())
def test_what_is_believed_is_near_what_is_stated(told: Wakes, stated: float, parked: bool) -> None:
    assert stated / BOUND <= told.seconds(stated, parked=parked) <= stated * BOUND


@given(wakes, st.lists(amounts, max_size=20), stated, st.booleans())
def test_one_kind_is_learnt_within_bounds_and_the_other_left_alone(
    told: Wakes, took: list[float], stated: float, parked: bool
) -> None:
    found = told
    for seconds in took:
        found = found.after(seconds, stated, parked=parked)
        kept = found.parked if parked else found.cold
        assert stated / BOUND * 0.999 <= kept <= stated * BOUND * 1.001
    assert (found.cold == told.cold) if parked else (found.parked == told.parked)


@given(wakes, stated, st.floats(1 / BOUND, BOUND), st.booleans())
def test_where_wakes_take_the_same_that_is_what_is_believed_in_the_end(
    told: Wakes, stated: float, times: float, parked: bool
) -> None:
    took = stated * times
    for _ in range(40):
        told = told.after(took, stated, parked=parked)
    assert abs(told.seconds(stated, parked=parked) - took) <= 0.01 * took


def test_one_that_took_long_by_chance_is_forgotten() -> None:
    usual = Wakes().after(0.3, 0.25, parked=True)
    assert usual.parked == 0.3
    once = usual.after(72.0, 0.25, parked=True)
    assert 0.3 < once.parked < 1.0
    for _ in range(6):
        once = once.after(0.3, 0.25, parked=True)
    assert once.parked < 0.4
