"""Rows that windows have passed, by hand: four tokens a row, three head blocks, two of them windowed.

The window is nine tokens: behind six rows (24 tokens) the next token sees those from 16 on, rows 4 and 5.
"""

from collections.abc import Callable

import numpy as np
import pytest
from support.naive_pool import keys_of

from muxd.pool.faded import Faded
from muxd.pool.ledger import Grant, Ledger, LedgerError
from muxd.pool.windowed import Windowed

SEEN = Windowed(9, (0, 2))
WIDTH, HOLLOW = 3, 1  # head blocks of a row, and of one without its windowed ones
LONG = "abcdef"


def a_ledger(blocks: int = 60, **quota: int) -> Ledger:
    ledger = Ledger(blocks, blocks + 30)
    ledger.add_model("m", WIDTH, 60, **quota, row_tokens=4, windowed=SEEN)
    return ledger


def begin(ledger: Ledger, path: str, *, named: bool = True) -> Grant:
    """A sequence whose rows are all computed."""
    grant = ledger.admit("m", keys_of(path), len(path))
    assert grant is not None
    if named:
        ledger.register("m", rows_of(grant), keys_of(path))
    return grant


def rows_of(grant: Grant) -> list[int]:
    return [*grant.shared.tolist(), *grant.rows.ids.tolist()]


def ids(rows: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(rows, np.int32)


def finish(ledger: Ledger, grant: Grant, passed: int = 4) -> None:
    ledger.release("m", ids(rows_of(grant)), passed)


def squeeze(ledger: Ledger, rows: int) -> None:
    """Somebody needs so many rows for a moment."""
    taken = ledger.take("m", rows)
    assert taken is not None
    ledger.release("m", taken.ids)


@pytest.mark.parametrize(
    ("window", "row_tokens", "computed", "passed"),
    [
        *((9, 4, 8, 0), (9, 4, 12, 1), (9, 4, 24, 4), (9, 4, 27, 4), (9, 4, 28, 5)),
        *((1, 4, 4, 1), (1, 1, 5, 5), (7, 16, 21, 0), (7, 16, 31, 0), (7, 16, 32, 1)),
    ],
)
def test_a_row_is_passed_when_its_last_token_is_out_of_sight_behind_the_last_full_row(
    window: int, row_tokens: int, computed: int, passed: int
) -> None:
    assert Windowed(window, (0,)).passed(computed, row_tokens) == passed
    named = computed // row_tokens * row_tokens
    first = max(0, named - window + 1)  # that the token at ``named`` sees; the one at ``computed`` sees fewer
    assert first // row_tokens == passed


def test_the_largest_window_counts_and_columns_are_those_of_windowed_layers() -> None:
    assert Windowed.of([4, None, 9], [2, 2, 1]) == Windowed(9, (0, 1, 4))
    assert Windowed.of([None, 9, 9], [1, 0, 2]) == Windowed(9, (1, 2))
    assert Windowed.of([None, None], [2, 2]) is None
    assert Windowed.of((), [2, 2]) is None


def test_what_has_no_name_is_free_as_soon_as_it_is_passed() -> None:
    ledger = a_ledger()
    grant = begin(ledger, LONG, named=False)
    ledger.fade("m", grant.rows.ids[:4])
    assert ledger.free_blocks == 60 - 2 * WIDTH - 4 * HOLLOW
    assert ledger.held("m") == ledger.held_blocks == 2 * WIDTH + 4 * HOLLOW
    assert ledger.cached_blocks == 0
    ledger.audit()
    finish(ledger, grant)
    assert ledger.free_blocks == 60
    ledger.audit()


def test_what_has_a_name_stays_until_somebody_needs_the_room() -> None:
    ledger = a_ledger(blocks=24)
    grant = begin(ledger, LONG)
    ledger.fade("m", grant.rows.ids[:4])
    assert ledger.cached_blocks == 8
    assert ledger.available("m") == (24 - 10) // WIDTH
    assert ledger.matched("m", keys_of("abz")) == 2  # it could go on behind any of them
    squeeze(ledger, 4)  # six blocks are free, and six windowed ones are taken: the deepest rows' first
    assert [ledger.matched("m", keys_of(LONG[:n])) for n in range(7)] == [0, 1, 1, 1, 1, 1, 6]
    ledger.audit()


def test_a_prompt_is_cut_back_to_where_its_window_is_whole() -> None:
    ledger = a_ledger(blocks=24)
    first = begin(ledger, LONG)
    ledger.fade("m", first.rows.ids[:4])
    squeeze(ledger, 4)
    whole, cut = ledger.admit("m", keys_of(LONG), 6), ledger.admit("m", keys_of("abcdz"), 2)
    assert whole is not None
    assert cut is not None
    assert whole.shared.tolist() == first.rows.ids.tolist()
    assert cut.shared.tolist() == first.rows.ids[:1].tolist()
    ledger.release("m", whole.shared, 4)  # it passed four of them before it began
    ledger.release("m", ids(rows_of(cut)))
    finish(ledger, first)
    ledger.audit()


def test_a_cached_row_that_is_only_passed_costs_what_is_left_of_it() -> None:
    """Reviving six rows of which two are seen: two whole ones, and a block of each other."""
    ledger = a_ledger()
    finish(ledger, begin(ledger, LONG), passed=0)
    assert ledger.held_blocks == 0
    again = begin(ledger, LONG)
    assert again.shared.size == 6
    assert ledger.held("m") == 2 * WIDTH + 4 * HOLLOW
    assert ledger.cached_blocks == 8
    finish(ledger, again)
    ledger.audit()


def test_a_shared_row_fades_when_its_last_holder_has_passed_it() -> None:
    ledger = a_ledger()
    first = begin(ledger, "ab")
    other = begin(ledger, "abx")
    row = first.rows.ids[:1]
    ledger.fade("m", row)
    assert ledger.held("m") == 3 * WIDTH
    ledger.fade("m", row)
    assert ledger.held("m") == 2 * WIDTH + HOLLOW
    with pytest.raises(LedgerError, match="fading of row 0, which was passed already"):
        ledger.fade("m", row)
    ledger.release("m", ids(rows_of(first)), 1)
    finish(ledger, other, 1)
    assert ledger.held_blocks == 0
    ledger.audit()


def test_who_leaves_last_of_those_that_see_a_row_fades_it() -> None:
    ledger = a_ledger()
    first, other = begin(ledger, "a"), begin(ledger, "a")
    ledger.fade("m", first.rows.ids)
    finish(ledger, other, 0)
    assert ledger.held("m") == HOLLOW
    finish(ledger, first, 1)
    ledger.audit()


def test_who_sees_a_faded_row_again_needs_room_for_it() -> None:
    ledger = a_ledger(blocks=WIDTH)
    first = begin(ledger, "a")
    ledger.fade("m", first.rows.ids)
    assert ledger.held("m") == HOLLOW
    ledger.add_model("other", 1, 9)
    assert ledger.take("other", 1) is not None  # takes a block, and the row is hollow
    assert ledger.matched("m", keys_of("a")) == 0
    ledger.audit()
    roomy = a_ledger()
    first = begin(roomy, "a")
    roomy.fade("m", first.rows.ids)
    roomy.add_model("other", 1, 99)
    assert roomy.take("other", 57) is not None
    assert not roomy.fits("m", keys_of("ab"), 2)
    assert roomy.admit("m", keys_of("a"), 1) is not None
    assert roomy.held("m") == WIDTH
    roomy.audit()


def test_who_computes_a_hollow_row_again_gets_its_name() -> None:
    """Else nobody could begin behind it as long as the hollow one is there."""
    ledger = a_ledger(blocks=37)
    first = begin(ledger, LONG)
    ledger.fade("m", first.rows.ids[:4])
    squeeze(ledger, 9)
    assert ledger.matched("m", keys_of("abcd")) == 0
    second = begin(ledger, "abcd")
    assert second.shared.size == 0
    assert ledger.matched("m", keys_of("abcd")) == 4
    assert ledger.matched("m", keys_of(LONG)) == 6  # the chain goes over to the first's last two
    finish(ledger, first)
    ledger.audit()
    assert ledger.usage()["m"].cached_rows == 2  # its hollow ones had no name any more
    finish(ledger, second, 0)
    assert ledger.usage()["m"].cached_rows == 6
    ledger.audit()


def test_a_cached_hollow_row_makes_way_for_a_whole_one() -> None:
    ledger = a_ledger(blocks=37)
    first = begin(ledger, LONG)
    ledger.fade("m", first.rows.ids[:4])
    squeeze(ledger, 9)
    finish(ledger, first)
    assert ledger.usage()["m"].cached_rows == 6
    second = begin(ledger, "abcd")
    assert ledger.usage()["m"].cached_rows == 2
    assert ledger.usage()["m"].rows == 4
    finish(ledger, second, 0)
    ledger.audit()


def test_a_lost_worker_takes_what_was_kept_for_others() -> None:
    ledger = a_ledger()
    grant = begin(ledger, LONG)
    ledger.fade("m", grant.rows.ids[:4])
    ledger.drop_cache("m")
    assert ledger.cached_blocks == 0
    assert ledger.free_blocks == 60 - 2 * WIDTH - 4 * HOLLOW
    finish(ledger, grant)
    assert ledger.free_blocks == 60


def test_recalled_windowed_blocks_of_a_passed_row_leave_at_once() -> None:
    """And nobody has to compute again for them."""
    ledger = a_ledger(blocks=18)
    ledger.lend(18, 18)
    held = begin(ledger, LONG)
    assert (held.rows.blocks >= 18).all()  # what came to the stack last is taken first
    ledger.fade("m", held.rows.ids[:4])
    ledger.recall(18, 18)
    assert sorted(ledger.leaving("m").tolist()) == sorted(held.rows.ids.tolist())
    assert ledger.leaving_blocks == 2 * WIDTH + 4 * HOLLOW
    ledger.audit()
    finish(ledger, held)
    assert ledger.leaving_blocks == 0
    ledger.audit()


def test_a_guarantee_is_of_what_is_needed() -> None:
    """Who has passed rows is below its guarantee again, and may take what that still lacks."""
    ledger = a_ledger(blocks=24, min_blocks=18)
    grant = begin(ledger, LONG, named=False)
    ledger.fade("m", grant.rows.ids[:4])
    ledger.add_model("other", 1, 99)
    assert ledger.available("other") == 24 - 18
    assert ledger.take("other", 6) is not None
    assert ledger.available("m") == 2
    ledger.audit()


def corruptions() -> dict[str, tuple[str, Callable[[Ledger], None]]]:
    def seers(ledger: Ledger) -> None:
        faded_of(ledger).seers[0] = 2

    def unseen(ledger: Ledger) -> None:
        faded_of(ledger).unseen += 1

    def hollow(ledger: Ledger) -> None:
        faded_of(ledger).hollow[1] = True

    def gone(ledger: Ledger) -> None:
        faded_of(ledger).parts.popitem()

    def order(ledger: Ledger) -> None:
        faded_of(ledger).parts.move_to_end(next(iter(faded_of(ledger).parts)))

    def owned(ledger: Ledger) -> None:
        ledger._accounts["m"].owned -= 1

    return {
        "seers": ("a row has more seers than holders", seers),
        "unseen": ("counts 3 faded rows, 2 are", unseen),
        "hollow": ("a row is to be hollowed out that is seen, hollow or without a name", hollow),
        "gone": ("the rows to be hollowed out are not all faded ones and some cached ones", gone),
        "order": ("rows to be hollowed out are out of order", order),
        "owned": ("model m: owns 17 blocks, and its rows should have 18", owned),
    }


def faded_of(ledger: Ledger) -> Faded:
    faded = ledger._accounts["m"].faded
    assert faded is not None
    return faded


@pytest.mark.parametrize("kind", list(corruptions()))
def test_the_audit_sees(kind: str) -> None:
    message, corrupt = corruptions()[kind]
    ledger = a_ledger()
    grant = begin(ledger, LONG)
    ledger.fade("m", grant.rows.ids[:1])
    ledger.fade("m", grant.rows.ids[1:2])
    ledger.audit()
    corrupt(ledger)
    with pytest.raises(LedgerError) as caught:
        ledger.audit()
    assert message in caught.value.message


def test_windows_are_only_where_they_were_said() -> None:
    ledger = Ledger(12)
    ledger.add_model("plain", 3, 4)
    rows = ledger.take("plain", 2)
    assert rows is not None
    with pytest.raises(LedgerError, match="model plain: fading of rows, but no layer has a window"):
        ledger.fade("plain", rows.ids)
    with pytest.raises(LedgerError, match="model plain: 1 rows passed, but no layer has a window"):
        ledger.release("plain", rows.ids, 1)
    assert ledger.held("plain") == 6
    sliding = a_ledger()
    taken = sliding.take("m", 1)
    assert taken is not None
    with pytest.raises(LedgerError, match="release of row 0, which was not passed so often"):
        sliding.release("m", taken.ids, 1)
    assert sliding.held("m") == WIDTH
