"""Single behaviours of cached rows that the scheduler relies on."""

import numpy as np
import pytest
from support.naive_pool import keys_of

from muxd.pool.ledger import Grant, Ledger, LedgerError


def pool(total: int = 100) -> Ledger:
    ledger = Ledger(total)
    ledger.add_model("small", blocks_per_row=2, max_rows=50, row_tokens=16)
    ledger.add_model("large", blocks_per_row=10, max_rows=10, row_tokens=16)
    return ledger


def computed(ledger: Ledger, model: str, path: str) -> Grant:
    """A sequence with every row full and registered."""
    grant = ledger.admit(model, keys_of(path), len(path))
    assert grant is not None
    ledger.register(model, rows_of(grant), keys_of(path), grant.shared.size)
    return grant


def rows_of(grant: Grant) -> list[int]:
    return [*grant.shared.tolist(), *grant.rows.ids.tolist()]


def release(ledger: Ledger, model: str, grant: Grant) -> None:
    ledger.release(model, np.array(rows_of(grant), np.int32))
    ledger.audit()


def cache(ledger: Ledger, model: str, path: str) -> None:
    release(ledger, model, computed(ledger, model, path))


def test_a_released_row_is_kept_and_counts_for_nobody() -> None:
    ledger = pool()
    cache(ledger, "small", "abcd")
    use = ledger.usage()["small"]
    assert (use.rows, use.blocks, use.cached_rows, use.cached_blocks) == (0, 0, 4, 8)
    assert (ledger.free_blocks, ledger.cached_blocks) == (92, 8)
    assert ledger.available("large") == 10  # cached blocks are as good as free


def test_a_match_shares_held_rows_and_revives_cached_ones() -> None:
    ledger = pool()
    first = computed(ledger, "small", "ab")
    release(ledger, "small", longer := computed(ledger, "small", "abcd"))
    grant = ledger.admit("small", keys_of("abcxy"), 6)
    assert grant is not None
    assert grant.shared.tolist() == rows_of(longer)[:3]
    assert grant.shared.tolist()[:2] == rows_of(first)
    assert grant.shared.dtype == np.int32
    assert grant.rows.ids.size == 3
    use = ledger.usage()["small"]
    assert (use.rows, use.cached_rows) == (6, 1)  # "d" is still cached
    assert (use.asked_tokens, use.matched_tokens) == ((2 + 4 + 5) * 16, (0 + 2 + 3) * 16)
    ledger.audit()


def test_rows_that_were_not_registered_are_free_at_once() -> None:
    ledger = pool()
    grant = ledger.admit("small", keys_of("abc"), 5)
    assert grant is not None
    ledger.register("small", rows_of(grant), keys_of("ab"))
    release(ledger, "small", grant)
    assert (ledger.free_blocks, ledger.cached_blocks) == (96, 4)
    assert ledger.matched("small", keys_of("abc")) == 2


def test_two_that_computed_the_same_keep_one_copy() -> None:
    ledger = pool()
    one, two = (ledger.admit("small", keys_of("abc"), 3) for _ in range(2))
    assert one is not None
    assert two is not None
    for grant in (one, two):
        ledger.register("small", rows_of(grant), keys_of("abc"))
    release(ledger, "small", one)
    release(ledger, "small", two)
    assert ledger.usage()["small"].cached_rows == 3
    again = ledger.admit("small", keys_of("abc"), 3)
    assert again is not None
    assert again.shared.tolist() == rows_of(one)


def test_reviving_is_growth_and_needs_the_rule() -> None:
    """All of "large" is cached; it may not come back into what "small" is guaranteed."""
    ledger = pool()
    cache(ledger, "large", "abcdef")
    ledger.set_quota("small", 50)
    assert not ledger.fits("large", keys_of("abcdef"), 6)
    assert ledger.admit("large", keys_of("abcdef"), 6) is None
    assert ledger.usage()["large"].cached_rows == 6
    grant = ledger.admit("large", keys_of("abcde"), 5)
    assert grant is not None
    assert grant.shared.size == 5
    assert ledger.fits("large", keys_of("abcde"), 5)  # held by another already: no growth at all
    assert not ledger.fits("large", keys_of("abcde"), 6)
    assert ledger.take("small", 25) is not None
    ledger.audit()


def test_a_grant_never_reclaims_the_rows_it_shares() -> None:
    ledger = pool(20)
    cache(ledger, "small", "abcdefghij")  # the whole pool
    grant = ledger.admit("small", keys_of("abc"), 10)
    assert grant is not None
    assert grant.shared.size == 3
    assert not set(grant.rows.ids.tolist()) & set(grant.shared.tolist())
    assert ledger.matched("small", keys_of("abcdefghij")) == 3
    ledger.audit()


def test_chains_shrink_from_the_tail_oldest_chain_first() -> None:
    ledger = pool(20)
    cache(ledger, "small", "abcd")
    cache(ledger, "small", "wxyz")
    cache(ledger, "small", "abQ")  # "ab" is used again: "cd" is now the oldest, then "wxyz"
    left = []
    for _ in range(5):
        assert ledger.take("small", 1) is not None
        left.append([ledger.matched("small", keys_of(path)) for path in ("abcd", "wxyz", "abQ")])
    assert left == [[4, 4, 3], [3, 4, 3], [2, 4, 3], [2, 3, 3], [2, 2, 3]]


def test_what_is_cheaper_to_compute_again_goes_first_whatever_its_age() -> None:
    """1 s for 10 blocks is cheaper than 0.5 s for 2: the younger "large" goes before the older "small"."""
    ledger = pool(60)
    ledger.set_cost("small", 0.5)
    ledger.set_cost("large", 1.0)
    cache(ledger, "small", "abcde")
    cache(ledger, "large", "abcde")
    assert ledger.take("small", 1) is not None
    assert [ledger.usage()[model].cached_rows for model in ("small", "large")] == [5, 4]
    assert ledger.take("large", 4) is not None
    assert [ledger.usage()[model].cached_rows for model in ("small", "large")] == [5, 0]
    assert ledger.take("small", 5) is not None  # 8 blocks were left over; one cached row had to go
    assert [ledger.usage()[model].cached_rows for model in ("small", "large")] == [4, 0]


def test_a_dear_row_that_nobody_asks_for_is_overtaken() -> None:
    """A block of "small" costs 0.25 s, one of "large" 0.1 s. Two reclaims of "large" inflate to 0.2, and its
    row given back then is worth 0.3."""
    ledger = pool(14)
    ledger.set_cost("small", 0.5)
    ledger.set_cost("large", 1.0)
    cache(ledger, "small", "zy")
    ages = []
    for path in "abcdef":
        cache(ledger, "large", path)
        ages.append(ledger.usage()["small"].cached_rows)
    assert ages == [2, 2, 2, 0, 0, 0]


def test_without_costs_all_models_share_one_lru_list() -> None:
    ledger = pool(24)
    cache(ledger, "small", "a")
    cache(ledger, "large", "a")
    cache(ledger, "small", "b")
    cache(ledger, "small", "a")  # used again
    keys = {path: keys_of(path) for path in "ab"}
    seen = []
    for _ in range(12):
        assert ledger.take("small", 1) is not None
        known = [("large", keys["a"]), ("small", keys["b"]), ("small", keys["a"])]
        seen.append([ledger.matched(model, key) for model, key in known])
    assert seen == [[1, 1, 1]] * 5 + [[0, 1, 1]] * 5 + [[0, 0, 1], [0, 0, 0]]


def test_a_model_out_of_row_ids_reclaims_its_own() -> None:
    ledger = Ledger(100)
    ledger.add_model("few", blocks_per_row=1, max_rows=4)
    cache(ledger, "few", "abc")
    rows = ledger.take("few", 3)
    assert rows is not None
    assert ledger.matched("few", keys_of("abc")) == 1
    assert ledger.available("few") == 1
    ledger.audit()


def test_dropping_a_cache_frees_what_is_cached_and_what_is_held_when_it_returns() -> None:
    ledger = pool()
    held = computed(ledger, "small", "ab")
    cache(ledger, "small", "abcd")
    ledger.drop_cache("small")
    assert (ledger.cached_blocks, ledger.matched("small", keys_of("ab"))) == (0, 0)
    ledger.audit()
    release(ledger, "small", held)
    assert ledger.free_blocks == 100


def test_removal_drops_what_the_model_cached() -> None:
    ledger = pool()
    cache(ledger, "large", "abc")
    ledger.remove_model("large")
    assert (ledger.free_blocks, ledger.cached_blocks) == (100, 0)
    ledger.audit()


def test_a_row_behind_a_reclaimed_one_is_not_kept() -> None:
    """Two computed the same rows at once; the registered copies are reclaimed while the second still runs
    on its own, and what it registered behind them could not be found by anybody."""
    ledger = pool(14)
    one, two = (ledger.admit("small", keys_of("abc"[:n]), n) for n in (2, 3))
    assert one is not None
    assert two is not None
    ledger.register("small", rows_of(one), keys_of("ab"))
    ledger.register("small", rows_of(two), keys_of("abc"))
    release(ledger, "small", one)
    taken = ledger.take("small", 4)
    assert taken is not None
    assert ledger.matched("small", keys_of("abc")) == 0
    release(ledger, "small", two)
    assert ledger.cached_blocks == 0


def wrong_registrations() -> dict[str, tuple[list[int], list[bytes], int, str]]:
    keys = keys_of("ab")
    return {
        "other key": ([0, 1], [keys[0], b"zz"], 0, "row 1 is registered under another key"),
        "twice": ([0, 1, 2, 2], keys_of("abcd"), 2, "one of them twice"),
        "not held": ([0, 1, 7], keys_of("abc"), 2, "registration of row 7, which is not held"),
        "outside": ([0, 1, 50], keys_of("abc"), 2, "registration of row 50, but ids end at 49"),
        "short": ([0], keys, 0, "2 keys for 1 rows from 0 on"),
        "start": ([0, 1], keys, 3, "2 keys for 2 rows from 3 on"),
    }


@pytest.mark.parametrize("kind", list(wrong_registrations()))
def test_a_wrong_registration_names_model_and_row_and_changes_nothing(kind: str) -> None:
    rows, keys, start, message = wrong_registrations()[kind]
    ledger = pool()
    computed(ledger, "small", "ab")
    ledger.take("small", 1)
    before = ledger.usage()
    with pytest.raises(LedgerError, match=f"model small: .*{message}"):
        ledger.register("small", rows, keys, start)
    assert ledger.usage() == before
    assert ledger.matched("small", keys_of("abcd")) == 2
    ledger.audit()


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_an_impossible_cost_is_a_defect(seconds: float) -> None:
    with pytest.raises(LedgerError, match="model small: a row cannot cost"):
        pool().set_cost("small", seconds)


def test_the_audit_sees_a_level_that_fell_and_a_chain_out_of_order() -> None:
    ledger = pool()
    cache(ledger, "small", "abc")
    ledger._level = -1.0
    with pytest.raises(LedgerError, match="inflation fell to -1"):
        ledger.audit()
    ledger._level = 0.0
    ledger._accounts["small"].cache.idle.move_to_end(2)
    with pytest.raises(LedgerError, match="would be given up before row 2, which needs it"):
        ledger.audit()
