"""Whose text is read next, over random arrivals, endings and budgets."""

from collections import defaultdict
from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from muxd.text.text_queue import TextQueue

BUDGET = 1000
keys = st.sampled_from(["a", "b", "c", "", None])
sizes = st.integers(1, 400)


@dataclass(eq=False)
class Job:
    key: str | None
    size: int
    weight: float = 1.0


@given(st.lists(st.tuples(keys, sizes, st.sampled_from([0.5, 1.0, 4.0])), max_size=60), st.randoms())
def test_every_job_ends_once_and_nothing_is_held_after_the_last(
    arrivals: list[tuple[str | None, int, float]], chance: Random
) -> None:
    """Whether it was begun, begun again, or left while it waited."""
    line: TextQueue[Job] = TextQueue(BUDGET)
    running: list[Job] = []
    here = 0
    for key, size, weight in arrivals:
        job = Job(key, size, weight)
        if line.lets_in(key, size):
            line.add(job)
            here += size
        what = chance.choice(["begin", "again", "end", "leave", "nothing"])
        waiting = list(line.order())
        assert all(one in line for one in waiting)
        assert not any(one in line for one in running)
        if what == "begin" and waiting:
            line.begin(waiting[0])
            running.append(waiting[0])
        elif what == "again" and running:
            line.again(one := running.pop())
            assert next(mine for mine in line.order() if mine.key == one.key) is one
        elif what in ("end", "leave") and (those := running if what == "end" else waiting):
            one = chance.choice(those)
            line.end(one)
            here -= one.size
            running = [other for other in running if other is not one]
        assert line.held == here <= 2 * BUDGET
    for one in [*line.order(), *running]:
        line.end(one)
    assert (line.held, list(line.order())) == (0, [])


@given(st.lists(sizes, min_size=1, max_size=40))
def test_of_one_key_the_first_is_the_first(arrivals: list[int]) -> None:
    line: TextQueue[Job] = TextQueue(10**9)
    jobs = [Job("a", size) for size in arrivals]
    for job in jobs:
        line.add(job)
    assert list(line.order()) == jobs


@given(st.integers(2, 200), st.integers(0, 199), sizes, sizes)
def test_who_comes_beside_a_flood_waits_for_one_job_of_it(
    flood: int, begun: int, each: int, own: int
) -> None:
    line: TextQueue[Job] = TextQueue(10**9)
    for _ in range(flood):
        line.add(Job("flood", each))
    for _ in range(min(begun, flood - 1)):
        line.begin(next(line.order()))
    other = Job("other", own)
    line.add(other)
    before = 0
    while (first := next(line.order())) is not other:
        line.begin(first)
        before += 1
    assert before <= 1


@given(st.lists(st.tuples(st.sampled_from("ab"), sizes), min_size=80, max_size=120))
def test_two_keys_are_read_alike_and_by_their_weights(arrivals: list[tuple[str, int]]) -> None:
    line: TextQueue[Job] = TextQueue(10**9)
    weights = {"a": 1.0, "b": 3.0}
    for key, size in arrivals:
        line.add(Job(key, size, weights[key]))
    read: defaultdict[str | None, float] = defaultdict(float)
    while len({one.key for one in line.order()}) == 2:
        job = next(line.order())
        line.begin(job)
        read[job.key] += job.size / job.weight
        assert abs(read["a"] - read["b"]) <= 400


def test_who_holds_little_is_let_in_where_who_floods_is_not() -> None:
    line: TextQueue[Job] = TextQueue(BUDGET)
    for _ in range(10):
        assert line.lets_in("flood", 100)
        line.add(Job("flood", 100))
    assert not line.lets_in("flood", 1)
    assert line.lets_in("other", BUDGET // 2)
    assert not line.lets_in("other", BUDGET // 2 + 1)
    line.add(Job("other", BUDGET // 2))
    assert line.lets_in("third", BUDGET // 3)
    assert not line.lets_in("other", 1)
    line.add(Job("third", BUDGET // 3))
    assert not line.lets_in("fourth", BUDGET // 4), "twice the budget is the end"


def test_the_first_may_be_of_any_size() -> None:
    assert TextQueue[Job](BUDGET).lets_in("a", 50 * BUDGET)
