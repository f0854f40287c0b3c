"""What windows have passed is there for others while the sequence runs, and what they hold is counted so."""

import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec

from muxd.engine.settings import Settings
from muxd.pool.windowed import Windowed

SEEN = Windowed(9, (0, 2))  # four tokens a row, three blocks
SMALL = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4)


def a_unit(total: int, windowed: Windowed | None = SEEN, **other: object) -> BenchUnit:
    specs = [Spec("a", blocks=3, windowed=windowed), Spec("b", blocks=2, **other)]  # type: ignore[arg-type]
    return BenchUnit(specs, total, settings=SMALL)


@pytest.mark.parametrize("windowed", [SEEN, None])
def test_a_prompt_that_waits_for_rows_gets_what_another_has_passed(windowed: Windowed | None) -> None:
    """Six whole rows of 24 tokens are 18 blocks; behind them four need one block each."""
    unit = a_unit(24, windowed)
    first = unit.arrive("a", 24, 2)
    other = unit.arrive("b", 20, 1)
    assert first.rows
    assert not other.rows
    unit.finish("a")
    assert unit.ledger.held("a") == (14 if windowed else 18)  # 16 of its tokens are computed
    unit.finish("a")
    assert bool(other.rows) == bool(windowed)
    unit.run()
    assert unit.outcome == {first.id: "served", other.id: "served"}
    assert not unit.preempted


def test_a_long_answer_holds_its_window_and_one_block_a_row() -> None:
    unit = a_unit(60)
    unit.arrive("a", 4, 100)
    most = 0
    while unit.busy():
        unit.finish("a")
        most = max(most, unit.ledger.held("a"))
    assert most <= 26 + 2 * 4  # of 26 rows all have a block, four at most all three
    assert unit.ledger.held_blocks == 0


def test_two_long_answers_grow_beside_each_other_where_whole_rows_would_not_fit() -> None:
    unit = a_unit(100)  # two of 26 whole rows would be 156
    both = [unit.arrive("a", 4, 100), unit.arrive("a", 5, 99)]
    unit.run()
    assert not unit.preempted
    assert [len(sequence.tokens) for sequence in both] == [104, 104]


def test_the_next_turn_finds_the_last_one_and_a_fork_finds_what_is_left() -> None:
    unit = a_unit(200)
    unit.arrive("a", 40, 20, same=40)
    unit.run()
    fork = unit.arrive("a", 30, 4, same=24)
    assert fork.cached == 24
    assert fork.faded == 4
    unit.run()
    again = unit.arrive("a", 60, 4, same=40)
    assert again.cached == 40
    unit.run()
    assert unit.ledger.held_blocks == 0


def test_who_holds_least_of_what_it_needs_is_not_most_over_its_quota() -> None:
    """Preemption counts blocks that come back, not rows: ``a`` has more rows than ``b`` and fewer blocks."""
    unit = a_unit(80)
    a = unit.arrive("a", 4, 60)
    while len(a.tokens) < 60:
        unit.finish("a")
    lane = unit.scheduler.lanes["a"]
    assert lane.blocks_of(a) == len(a.rows) * 3 - a.faded * 2 == unit.ledger.held("a")
    unit.run()


def test_a_lost_worker_and_a_recall_leave_nothing_behind() -> None:
    unit = BenchUnit([Spec("a", blocks=3, windowed=SEEN)], 60, settings=SMALL, lendable=30)
    sequence = unit.arrive("a", 30, 30)
    while sequence.faded < 6:
        unit.finish("a")
    unit.lose("a")
    assert sequence.faded == 0
    unit.revive("a")
    unit.run()
    assert unit.outcome == {sequence.id: "served"}
    assert unit.ledger.held_blocks == 0
