"""To whom a request goes: everybody once, the least wait first, a known beginning within bounds, wakes
last."""

from hypothesis import given
from hypothesis import strategies as st

from muxd.ray.reports import ModelReport
from muxd.ray.routing import SLACK, Candidate, candidate, order

seconds = st.floats(0, 100, allow_nan=False)
candidates = st.lists(
    st.builds(
        Candidate,
        st.text("abcdef", min_size=1, max_size=3),
        seconds,
        st.booleans(),
        seconds,
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda one: one.host,
)


@given(candidates)
def test_every_host_is_tried_once(given: list[Candidate]) -> None:
    assert sorted(order(given)) == sorted(one.host for one in given)


@given(candidates, seconds)
def test_a_known_beginning_costs_a_prompt_no_more_than_the_slack(
    given: list[Candidate], slack: float
) -> None:
    by_host = {one.host: one for one in given}
    residents = [one for one in given if one.resident]
    if not residents:
        return
    first = by_host[order(given, slack)[0]]
    free = [one for one in residents if not one.full]
    assert first.resident
    assert not (first.full and free)
    if free:
        assert first.wait <= min(one.wait for one in free) + slack


@given(candidates)
def test_without_known_beginnings_the_least_wait_is_first(given: list[Candidate]) -> None:
    fresh = [Candidate(one.host, one.wait, full=one.full) for one in given]
    by_host = {one.host: one for one in fresh}
    ranks = [(by_host[host].full, by_host[host].wait) for host in order(fresh)]
    assert ranks == sorted(ranks)


@given(candidates)
def test_nobody_wakes_before_every_copy_that_is_there_was_asked(given: list[Candidate]) -> None:
    by_host = {one.host: one for one in given}
    found = [by_host[host] for host in order(given)]
    assert [one.resident for one in found] == sorted((one.resident for one in found), reverse=True)
    wakes = [one.wake for one in found if not one.resident]
    assert wakes == sorted(wakes)


def test_the_host_that_knows_most_goes_first_while_its_wait_is_bearable() -> None:
    quiet, knowing = Candidate("quiet", 0.0), Candidate("knowing", SLACK, known=3)
    assert order([quiet, knowing]) == ["knowing", "quiet"]
    busier = Candidate("knowing", SLACK + 0.1, known=3)
    assert order([quiet, busier]) == ["quiet", "knowing"]
    assert order([quiet, Candidate("knowing", 0.0, known=3, full=True)]) == ["quiet", "knowing"]


def test_a_model_that_is_on_its_way_is_cheaper_than_one_that_sleeps_and_a_small_one_than_a_large() -> None:
    waking = candidate("waking", ModelReport("waking"), 0.0, 0)
    small = candidate("small", ModelReport("asleep", weights_bytes=1 << 30), 0.0, 0)
    large = candidate("large", ModelReport("asleep", weights_bytes=8 << 30), 0.0, 0)
    assert waking is not None
    assert small is not None
    assert large is not None
    assert order([large, small, waking]) == ["waking", "small", "large"]


def test_a_model_that_waiting_does_not_bring_is_at_no_host() -> None:
    states = ("unloaded", "unloading", "failed", "draining")
    assert [candidate("a", ModelReport(state), 0.0, 0) for state in states] == [None] * 4
