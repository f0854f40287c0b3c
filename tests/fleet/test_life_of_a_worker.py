"""The state machine of ``fleet/state.py``: every path, and that no sequence of events corners it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.fleet.state import (
    AnnounceLost,
    AnnounceReady,
    BecameReady,
    Died,
    Life,
    Limits,
    Loading,
    Spawn,
    Spawned,
    State,
    Stop,
)


def ready() -> Life:
    life = Life()
    life.handle(Loading(), 0)
    life.handle(Spawned({"both": 11}), 1)
    assert life.handle(BecameReady(), 2) == [AnnounceReady()]
    return life


def test_a_death_is_announced_before_the_next_spawn() -> None:
    life = ready()
    assert life.handle(Died("killed"), 3) == [AnnounceLost("killed", final=False), Spawn(0.25)]
    assert (life.state, life.restarts, life.pid, life.detail) == (State.RESTARTING, 1, None, "killed")


def test_delays_double_up_to_the_longest() -> None:
    life = Life(Limits(max_failures=9, window=1000, first_delay=1, max_delay=5))
    life.handle(Loading(), 0)
    delays = [i.delay for t in range(5) for i in life.handle(Died("x"), t) if isinstance(i, Spawn)]
    assert delays == [1, 2, 4, 5, 5]


def test_too_many_deaths_within_the_window_are_final() -> None:
    life = ready()
    for now in (3, 4, 5, 6):
        assert life.handle(Died("x"), now)[0] == AnnounceLost("x", final=False)
    assert life.handle(Died("x"), 7) == [AnnounceLost("x", final=True)]
    assert life.state is State.FAILED


def test_old_deaths_are_forgotten() -> None:
    life = ready()
    for now in range(0, 2000, 200):
        assert AnnounceLost("x", final=False) in life.handle(Died("x"), now)
    assert life.state is State.RESTARTING


def test_a_refusal_is_final_at_once() -> None:
    life = ready()
    assert life.handle(Died("no such architecture", final=True), 3) == [
        AnnounceLost("no such architecture", final=True)
    ]
    assert (life.state, life.detail) == (State.FAILED, "no such architecture")


def test_an_impossible_event_tells_the_story() -> None:
    with pytest.raises(RuntimeError, match="cannot happen while cold"):
        Life().handle(BecameReady(), 0)


events = st.lists(
    st.sampled_from([Spawned({"both": 1}), BecameReady(), Died("x"), Died("y", final=True), Stop()])
)


@given(events)
def test_ready_and_lost_alternate_and_nothing_happens_after_the_end(drawn: list) -> None:  # type: ignore[type-arg]
    life = Life()
    life.handle(Loading(), 0)
    serving, ended = False, False
    for now, event in enumerate(drawn):
        try:
            instructions = life.handle(event, float(now))
        except RuntimeError:
            continue
        if ended:
            assert not any(isinstance(i, Spawn | AnnounceReady) for i in instructions)
        for instruction in instructions:
            if isinstance(instruction, AnnounceReady):
                assert not serving
                serving = True
            elif isinstance(instruction, AnnounceLost):
                serving = False
        ended = life.state in (State.FAILED, State.STOPPED)
