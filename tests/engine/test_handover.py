"""What a pair of workers is told; tests/engine/test_scheduler_properties.py shows that it always suffices."""

import numpy as np
import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec

from muxd.engine.handover import Handover
from muxd.messages import Chunk, Decode, NewRows, Prefill, Sampling

WARM = Sampling(temperature=0.7, seed=3)


def pack(*numbers: int) -> bytes:
    return np.array(numbers, dtype="<i4").tobytes()


def rows(ids: list[int], first: int) -> NewRows:
    """Two blocks a row."""
    return NewRows(pack(*ids), pack(*range(first, first + 2 * len(ids))))


def test_a_sequence_joins_with_everything_known_of_it_and_only_once() -> None:
    pair = Handover()
    one = Chunk(7, 0, pack(1, 2, 3), pack(0, 1), False, WARM, 5, first=True, adapter=2)
    two = Chunk(7, 3, pack(4, 5), b"", True, WARM, 5)
    phase, first = pair.place(Prefill(1, 50, rows([0, 1], 10), [one], []))
    assert phase == "prefill"
    pair.completed(first, [])
    pair.completed(pair.place(Prefill(2, 50, NewRows(), [two], []))[1], [99])
    phase, step = pair.place(Decode(3, 50, rows([2], 14), [7], [(7, 2)], []))
    assert phase == "decode"
    assert isinstance(step, Decode)
    [joined] = step.joined
    assert (joined.seq, joined.prompt_tokens, joined.sampling, joined.adapter) == (7, 5, WARM, 2)
    assert joined.tokens == pack(1, 2, 3, 4, 5, 99)
    assert joined.rows == pack(0, 1)
    assert step.rows == NewRows(pack(0, 1, 2), pack(10, 11, 12, 13, 14, 15)), "rows it was never told of"
    again = pair.place(Decode(4, 50, NewRows(), [7], [], []))[1]
    assert isinstance(again, Decode)
    assert again.joined == []
    assert again.rows == NewRows()


def test_each_worker_forgets_what_it_knows_and_rows_named_again_replace_the_old() -> None:
    pair = Handover()
    chunk = Chunk(7, 0, pack(1), pack(0), True, WARM, 1, first=True)
    pair.completed(pair.place(Prefill(1, 50, rows([0], 10), [chunk], []))[1], [99])
    pair.place(Decode(2, 50, NewRows(), [7], [], []))
    # Preempted: row 0 has new blocks and the sequence begins again.
    _, begun = pair.place(Prefill(3, 50, rows([0], 20), [chunk], [7]))
    assert begun.forget == [7], "handed over: of no use to the prefill worker any more"
    assert begun.rows == rows([0], 20)
    pair.completed(begun, [98])
    _, step = pair.place(Decode(4, 50, NewRows(), [7], [], []))
    assert isinstance(step, Decode)
    assert step.forget == [7]
    assert step.joined[0].tokens == pack(1, 98)
    assert step.rows == rows([0], 20)


def test_a_token_of_a_sequence_that_is_forgotten_means_nothing() -> None:
    pair = Handover()
    chunk = Chunk(7, 0, pack(1), pack(0), True, WARM, 1, first=True)
    _, begun = pair.place(Prefill(1, 50, rows([0], 10), [chunk], []))
    pair.place(Decode(2, 50, NewRows(), [], [], [7]))
    pair.completed(begun, [99])
    again, told = pair.place(Prefill(3, 50, rows([0], 20), [chunk], []))
    assert (again, told.forget) == ("prefill", [7])


@pytest.mark.parametrize(("split", "beside"), [(True, False), (True, True), (False, False)])
def test_a_prompt_of_a_split_model_computes_beside_its_own_answers(split: bool, beside: bool) -> None:
    together = ["a/prefill", "a/decode"] if split else ["a"]
    unit = BenchUnit([Spec("a", share=50, split=split, beside=beside)], total_blocks=600)
    unit.arrive("a", 8, 40)
    unit.finish(unit.busy()[0])
    unit.arrive("a", 8, 40)
    assert unit.busy() == (together[1:] if split else together)
    unit.finish(unit.busy()[0])
    assert unit.busy() == together
    if split:
        assert {unit.workers[name].busy.share for name in together} == {50}  # type: ignore[union-attr]
