"""Which text process takes a job, over random arrivals and endings."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from muxd.text.turns import LARGE, SUSPECT_FOR, Turns

Job = tuple[str, int]
jobs = st.tuples(st.sampled_from("abcd"), st.sampled_from([10, LARGE, LARGE + 1, 9 * LARGE]))


@given(st.integers(1, 4), st.lists(jobs, max_size=40), st.randoms())
def test_a_small_job_of_a_good_model_always_finds_one_of_several(
    processes: int, arrivals: list[Job], chance: Random
) -> None:
    """Large ones and suspects never have all processes; everybody gets one in the end."""
    turns = Turns(processes)
    running: dict[int, Job] = {}
    turns.suspect("d", 0.0)
    waiting = list(arrivals)
    while waiting or running:
        free = set(range(processes)) - set(running)
        placed = False
        for job in list(waiting):
            number = turns.place(*job, free, 1.0)
            if number is not None:
                assert number in free
                turns.begin(*job)
                running[number] = job
                free.remove(number)
                waiting.remove(job)
                placed = True
        large = [job for job in running.values() if job[1] > LARGE]
        assert len(large) <= max(1, processes - 1)
        assert [job[0] for job in running.values()].count("d") <= 1
        if free:
            assert turns.place("good", 10, free, 1.0) is not None
        assert placed or running  # nobody waits where nothing runs
        over = chance.choice(sorted(running))
        turns.end(*running.pop(over))


@given(st.integers(1, 8), st.text(max_size=5))
def test_a_model_keeps_its_process_while_that_is_free(processes: int, model: str) -> None:
    turns = Turns(processes)
    numbers = range(processes)
    first = turns.place(model, 10, numbers, 0.0)
    turns.begin(model, 10)
    turns.end(model, 10)
    assert turns.place(model, 10, numbers, 0.0) == first


def test_a_suspect_is_trusted_again() -> None:
    turns = Turns(3)
    turns.suspect("a", 0.0)
    turns.begin("a", 10)
    assert turns.place("a", 10, {1}, SUSPECT_FOR - 1) is None
    assert turns.place("a", 10, {1}, SUSPECT_FOR + 1) == 1
