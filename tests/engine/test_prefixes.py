"""Prompts of models whose layers keep a state begin behind a copy of it, where one is there; ``BenchUnit``
checks that it is the state of just those tokens."""

import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec

from muxd.engine.prefixes import LEAST
from muxd.engine.settings import Settings
from muxd.messages import Sampling

KEEPS = Spec("a", blocks=1, row_tokens=4, state_rows=2)
SETTINGS = Settings(drain_timeout=0.5, prefill_tokens=48, look_ahead=4)


def unit_of(*specs: Spec, blocks: int = 400) -> BenchUnit:
    return BenchUnit(list(specs) or [KEEPS], blocks, settings=SETTINGS)


def test_a_later_prompt_begins_at_the_last_whole_row_of_an_earlier_one() -> None:
    unit = unit_of()
    unit.arrive("a", prompt=101, same=101, max_tokens=3)
    unit.run()
    copies = [
        chunk.mark
        for _, _, command in unit.launches
        for chunk in getattr(command, "chunks", ())
        if chunk.copy
    ]
    assert copies == [100]
    longer, shorter = (
        unit.arrive("a", prompt=130, same=110, max_tokens=3),
        unit.arrive("a", prompt=99, same=99),
    )
    assert (longer.cached, shorter.cached) == (100, 0)
    unit.run()
    again = unit.arrive("a", prompt=130, same=130, max_tokens=3)
    assert again.cached == 100, "the first of the two had other tokens from there on"
    unit.run()
    assert set(unit.outcome.values()) == {"served"}


def test_an_answer_is_a_prefix_as_far_as_its_prompt() -> None:
    unit = unit_of()
    first = unit.arrive("a", prompt=LEAST + 1, max_tokens=9)
    unit.run()
    again = unit.arrive("a", prompt=LEAST + 1, max_tokens=9)
    assert (again.cached, first.cached) == (0, 0), "another's tokens"
    unit.run()


def test_few_tokens_are_computed_again() -> None:
    unit = unit_of()
    for _ in range(2):
        assert unit.arrive("a", prompt=LEAST, same=LEAST).cached == 0
        unit.run()
    assert not any(chunk.copy for _, _, command in unit.launches for chunk in getattr(command, "chunks", ()))


def test_scored_prompts_and_switched_off_caches_begin_at_their_first_token() -> None:
    for spec, sampling in (
        (KEEPS, Sampling(prompt_logprobs=1)),
        (Spec("a", state_rows=2, prefix_cache=False), None),
    ):
        unit = unit_of(spec)
        unit.arrive("a", prompt=101, same=101, max_tokens=3)
        unit.run()
        asked = {"sampling": sampling} if sampling else {}
        again = unit.arrive("a", prompt=101, same=101, max_tokens=0 if sampling else 3, **asked)  # type: ignore[arg-type]
        assert again.cached == 0
        unit.run()


def test_prompts_that_begin_alike_at_once_leave_few_copies() -> None:
    unit = unit_of()
    for _ in range(3):
        unit.arrive("a", prompt=101, same=101, max_tokens=3)
    unit.run()
    copies = (unit.ledger.usage()["a"].cached_rows - 25) / KEEPS.state_rows
    assert copies in (1, 2), "one chain; a copy at its end, and one where somebody met it under way"


def test_copies_go_when_others_need_the_room() -> None:
    unit = unit_of(KEEPS, Spec("b", blocks=1, row_tokens=4, state_rows=2), blocks=60)
    unit.arrive("a", prompt=101, same=101, max_tokens=3)
    unit.run()
    unit.arrive("b", prompt=180, max_tokens=3)
    unit.run()
    assert unit.arrive("a", prompt=101, same=101, max_tokens=3).cached == 0
    unit.run()
    assert set(unit.outcome.values()) == {"served"}


def test_where_a_copy_leaves_no_room_a_prompt_is_computed_from_its_first_token() -> None:
    """It would wait for ever: what holds the copy is what it waits for."""
    unit = unit_of(blocks=31)
    unit.arrive("a", prompt=101, same=101, max_tokens=1)
    unit.run()
    assert unit.arrive("a", prompt=110, same=101, max_tokens=4).id not in unit.outcome
    unit.run()
    assert unit.outcome == {0: "served", 1: "served"}


@pytest.mark.parametrize("split", [False, True])
def test_a_lost_worker_takes_its_copies_along(split: bool) -> None:
    unit = unit_of(Spec("a", blocks=1, row_tokens=4, state_rows=2, split=split))
    unit.arrive("a", prompt=101, same=101, max_tokens=3)
    unit.run()
    unit.lose("a")
    unit.revive("a")
    assert unit.arrive("a", prompt=101, same=101, max_tokens=3).cached == 0
    unit.run()
    assert unit.arrive("a", prompt=101, same=101, max_tokens=3).cached == 100
    unit.run()


def test_prompts_of_one_kind_leave_a_copy_where_they_part() -> None:
    """The first has none there, the second leaves one, and all others find it."""
    unit = unit_of()
    found = []
    for _ in range(4):
        found.append(unit.arrive("a", prompt=140, same=90, max_tokens=2))
        unit.run()
    assert [sequence.cached for sequence in found] == [0, 0, 88, 88]
