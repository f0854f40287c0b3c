"""Sequences of models whose layers keep a state: its rows come, are counted and go with those of their
tokens."""

import numpy as np
import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.lanes import lane_spec

from muxd.config import ModelConfig
from muxd.cost.profile import Shape
from muxd.engine.assembly import Place, opening
from muxd.engine.handover import Handover
from muxd.engine.lane import Lane
from muxd.engine.settings import Settings
from muxd.errors import ConfigError, NoRow
from muxd.messages import Chunk, Decode, NewRows, Prefill, Sampling
from muxd.models.delta import DeltaNet
from muxd.pool.ledger import Ledger

DELTA = DeltaNet((True, True, True, False), 2, 4, 16, 16, 4)  # 3 x (4 + 2) blocks of 1 KiB


def shape(delta: DeltaNet | None = DELTA) -> Shape:
    """Rows of 2 blocks: one layer of four attends."""
    return Shape(4, 2, 64, 10_000, "float32", row_blocks=2, delta=delta)


def place(blocks: int) -> Place:
    return Place(rungs=(100,), block_bytes=1024, total_blocks=blocks, most_blocks=blocks)


def test_a_lane_is_told_how_many_rows_a_state_takes() -> None:
    spec, terms = opening(ModelConfig("m", "m"), shape(), place(40), 1)
    assert (spec.state_rows, spec.blocks_per_row, spec.capacity_rows, terms.max_rows) == (9, 2, 20, 20)
    assert opening(ModelConfig("m", "m"), shape(None), place(40), 1)[0].state_rows == 0


def test_a_pool_that_holds_no_state_is_refused_by_its_setting() -> None:
    opening(ModelConfig("m", "m"), shape(), place(20), 1)
    with pytest.raises(
        NoRow, match=r"m: the state of one sequence and a row of its tokens are 20 blocks, .* has 19"
    ):
        opening(ModelConfig("m", "m"), shape(), place(19), 1)


def test_the_longest_request_is_what_a_state_leaves() -> None:
    lane = Lane(lane_spec("m", 50, 4, 2, 1000, 8, 100, 20, state_rows=8))
    assert lane.spec.max_context == 12 * 4
    lane.refit(9)
    assert lane.spec.max_context == 4
    lane.refit(1000)
    assert lane.spec.max_context == 1000


def test_an_admission_takes_rows_of_both_kinds_and_the_end_gives_both_back() -> None:
    unit = BenchUnit([Spec("a", blocks=2, row_tokens=4, state_rows=5)], 64)
    sequence = unit.arrive("a", prompt=9, max_tokens=3)
    assert (len(sequence.rows), len(sequence.state)) == (3, 5)
    assert unit.ledger.held_blocks == 2 * 8
    assert unit.ledger.usage()["a"].rows == 8
    unit.run()
    assert unit.ledger.held_blocks == 0


def test_a_quota_that_holds_no_state_is_refused_and_so_is_a_longer_request() -> None:
    unit = BenchUnit([Spec("a", blocks=2, row_tokens=4, state_rows=5)], 64)
    with pytest.raises(
        ConfigError, match=r"a could never hold one sequence with its state \(12 of 64 blocks\)"
    ):
        unit.scheduler.set_quota("a", 0, 11)
    unit.scheduler.set_quota("a", 0, 16)
    assert unit.scheduler.lanes["a"].spec.max_context == 3 * 4
    assert unit.outcome[unit.arrive("a", prompt=12).id] == "refused"
    assert unit.arrive("a", prompt=11).id not in unit.outcome
    unit.run()


def test_a_ledger_knows_how_many_rows_nobody_can_do_without() -> None:
    ledger = Ledger(20)
    ledger.add_model("b", 1, 20, min_blocks=12)
    with pytest.raises(ConfigError, match="a could never hold one sequence with its state"):
        ledger.add_model("a", 2, 10, state_rows=4)
    ledger.add_model("a", 2, 10, state_rows=3)


def test_who_is_preempted_gives_its_state_back_and_begins_again() -> None:
    """``BenchUnit`` checks that no token goes twice through a state."""
    specs = [Spec("a", blocks=1, state_rows=2), Spec("b", blocks=1, min_blocks=6)]
    unit = BenchUnit(specs, 20, settings=Settings(0.5, 16, look_ahead=4))
    sequences = [unit.arrive("a", prompt=4, max_tokens=24) for _ in range(3)]
    sequences.append(unit.arrive("b", prompt=4, max_tokens=16))
    unit.run()
    assert unit.preempted
    assert [len(unit.emitted[s.id]) for s in sequences] == [24, 24, 24, 16]
    assert set(unit.outcome.values()) == {"served"}


def test_a_lost_worker_costs_a_state_and_no_token() -> None:
    unit = BenchUnit([Spec("a", state_rows=3, split=True)], 64)
    sequence = unit.arrive("a", prompt=10, max_tokens=12)
    for _ in range(5):
        unit.finish(unit.busy()[0])
    unit.lose("a")
    assert not sequence.held
    unit.revive("a")
    unit.run()
    assert len(unit.emitted[sequence.id]) == 12


def test_the_process_that_decodes_is_told_the_rows_of_a_state() -> None:
    def pack(*numbers: int) -> bytes:
        return np.array(numbers, dtype="<i4").tobytes()

    pair, greedy = Handover(), Sampling(temperature=0.0)
    chunks = [
        Chunk(7, 0, pack(1, 2), pack(0), False, greedy, 4, first=True, state=pack(5, 6)),
        Chunk(7, 2, pack(3, 4), b"", True, greedy, 4),
    ]
    for number, chunk in enumerate(chunks):
        _, told = pair.place(Prefill(number, 50, NewRows(), [chunk], []))
        pair.completed(told, [9] * chunk.last)
    _, step = pair.place(Decode(3, 50, NewRows(), [7], [], []))
    assert isinstance(step, Decode)
    assert step.joined[0].state == pack(5, 6)
