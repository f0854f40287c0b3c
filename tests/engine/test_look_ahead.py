"""How much of an answer an admission leaves room for follows what is wasted."""

from hypothesis import given
from hypothesis import strategies as st
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.lanes import lane_spec

from muxd.engine.lane import Lane
from muxd.engine.lookahead import LookAhead
from muxd.engine.settings import Settings


def lane() -> Lane:
    return Lane(lane_spec("a", 50, 4, 2, 10_000, 8, 100, 1000))


def test_waste_doubles_it_and_its_absence_brings_it_back() -> None:
    ahead, one = LookAhead(64), lane()
    for _ in range(64):
        ahead.computed(100)
        ahead.wasted(50)
    assert ahead.tokens(one) == 128
    for _ in range(10 * 64):
        ahead.computed(100)
        ahead.answered(one, 500)
    assert ahead.tokens(one) == 64


def test_what_answers_were_seen_to_take_is_enough() -> None:
    ahead, one = LookAhead(64), lane()
    one.learn_answer(150)
    for _ in range(3 * 64):
        ahead.computed(100)
        ahead.wasted(50)
    assert ahead.tokens(one) == 150
    assert ahead.tokens(lane()) == 512, "nothing is known of its answers"


@given(st.integers(0, 500), st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), max_size=600))
def test_it_never_goes_below_what_is_configured(least: int, events: list[tuple[bool, int]]) -> None:
    ahead, one = LookAhead(least), lane()
    for preempted, tokens in events:
        ahead.computed(tokens // 2)
        if preempted:
            ahead.wasted(tokens)
        else:
            ahead.answered(one, tokens)
        assert least <= ahead.tokens(one) <= max(4096, least)


def test_a_pool_that_is_too_small_for_all_is_wasted_less_after_a_while() -> None:
    """Long answers that nobody announces: preemptions of the second half of the run against the first."""
    settings = Settings(drain_timeout=0.5, prefill_tokens=64, look_ahead=4)
    unit = BenchUnit([Spec("a", blocks=1, max_running=40)], 120, settings=settings)
    preempted = []
    for _ in range(2):
        before = len(unit.preempted)
        for _ in range(150):
            unit.arrive("a", 8, 60)
        unit.run(100_000)
        preempted.append(len(unit.preempted) - before)
    assert preempted[1] < 0.7 * preempted[0], preempted
