"""The state machine of ``fleet/state.py``: every path, and that no sequence of events corners it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.fleet.state import (
    AnnounceLost,
    AnnounceReady,
    BecameReady,
    Died,
    Lacked,
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


def test_too_many_deaths_within_the_window_make_the_model_rest_and_come_back_by_itself() -> None:
    life = ready()
    for now in (3, 4, 5, 6):
        assert life.handle(Died("x"), now)[0] == AnnounceLost("x", final=False)
    assert life.handle(Died("x"), 7) == [AnnounceLost("x", final=True, retry_after=10.0), Spawn(10.0)]
    assert (life.state, life.retry_after) == (State.RESTING, 10.0)
    life.handle(Spawned({"both": 12}), 17)
    assert life.state is State.RESTING
    assert life.handle(BecameReady(), 18) == [AnnounceReady()]
    assert (life.state, life.retry_after) == (State.READY, None)


def test_a_rest_is_twice_as_long_until_a_worker_has_lived_for_a_while() -> None:
    life = Life(Limits(max_failures=1, window=100, first_rest=10, max_rest=35))
    life.handle(Loading(), 0)
    rests = []
    for now in (1, 20, 60, 120):
        rests += [i.delay for i in life.handle(Died("x"), now) if isinstance(i, Spawn)]
    assert rests == [10, 20, 35, 35]
    life.handle(BecameReady(), 200)
    assert Spawn(10) in life.handle(Died("x"), 301)


def test_deaths_that_a_request_is_to_blame_for_do_not_count_nor_does_its_first() -> None:
    life = ready()
    for now in range(0, 100, 2):
        assert life.handle(Died("x"), now)[0] == AnnounceLost("x", final=False)
        life.handle(BecameReady(), now)
        assert Spawn(0.25) in life.handle(Died("x", explained=True), now + 1)
        life.handle(BecameReady(), now + 1)
    assert life.state is State.READY


def test_what_the_daemon_lacks_is_tried_again_for_ever_and_told_nobody() -> None:
    life = ready()
    life.handle(Died("x"), 3)
    delays = [life.handle(Lacked("Too many open files"), 4 + n) for n in range(20)]
    assert [i.delay for one in delays for i in one if isinstance(i, Spawn)][:4] == [0.25, 0.5, 1, 2]
    assert all(isinstance(i, Spawn) and i.delay <= 10 for one in delays for i in one)
    assert (life.state, life.detail) == (State.RESTARTING, "Too many open files")
    life.handle(Spawned({"both": 12}), 90)
    assert life.handle(BecameReady(), 91) == [AnnounceReady()]
    assert life.handle(Died("x"), 92)[0] == AnnounceLost("x", final=False)


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
    st.sampled_from(
        [
            Spawned({"both": 1}),
            BecameReady(),
            Died("x"),
            Died("y", final=True),
            Stop(),
            Died("z", explained=True),
            Lacked("w"),
        ]
    )
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
