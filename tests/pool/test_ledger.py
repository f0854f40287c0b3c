"""Single behaviours of the ledger that a caller relies on."""

import gc
import subprocess
import sys

import numpy as np
import pytest

from muxd.errors import ConfigError
from muxd.pool.ledger import Ledger, LedgerError


def two_models(total: int = 100) -> Ledger:
    ledger = Ledger(total)
    ledger.add_model("small", blocks_per_row=3, max_rows=40, min_blocks=30)
    ledger.add_model("large", blocks_per_row=10, max_rows=10, min_blocks=20)
    return ledger


def test_a_row_is_one_slice_of_the_free_stack() -> None:
    ledger = two_models()
    rows = ledger.take("small", 2)
    assert rows is not None
    assert rows.ids.tolist() == [0, 1]
    assert sorted(rows.blocks.ravel().tolist()) == [0, 1, 2, 3, 4, 5]
    rows.blocks[:] = -7  # the caller's copy, not the ledger's
    ledger.audit()


def test_borrowing_stops_where_another_guarantee_begins() -> None:
    ledger = two_models()
    assert ledger.available("small") == 80 // 3
    assert ledger.take("small", 27) is None
    assert ledger.take("small", 26) is not None
    assert ledger.take("small", 1) is None
    assert ledger.take("large", 2) is not None  # its guarantee was kept for it


def test_not_now_changes_nothing() -> None:
    ledger = two_models()
    before = ledger.usage(), ledger.free_blocks
    assert ledger.take("large", 11) is None
    assert (ledger.usage(), ledger.free_blocks) == before


def test_max_blocks_caps_growth_and_lowering_it_takes_nothing_away() -> None:
    ledger = two_models()
    ledger.take("small", 20)
    ledger.set_quota("small", 0, 30)
    assert ledger.usage()["small"].blocks == 60
    assert ledger.available("small") == 0
    ledger.release("small", np.arange(11, dtype=np.int32))
    assert ledger.available("small") == 1


def test_a_raised_guarantee_is_owed_until_borrowers_give_back() -> None:
    ledger = two_models()
    ledger.take("small", 26)  # 78 blocks, 22 free
    ledger.set_quota("large", 50)
    assert ledger.owed_blocks == 28
    assert ledger.available("large") == 2  # what is free goes to it at once
    assert ledger.available("small") == 0
    ledger.release("small", np.arange(10, dtype=np.int32))
    assert ledger.owed_blocks == 0
    assert ledger.available("large") == 5
    assert ledger.available("small") == 0


def test_models_below_raised_guarantees_do_not_wait_for_each_other() -> None:
    ledger = two_models()
    ledger.add_model("third", blocks_per_row=1, max_rows=100)
    ledger.take("third", 50)
    ledger.release("third", np.arange(20, dtype=np.int32))
    ledger.set_quota("small", 45)
    ledger.set_quota("large", 50)  # 95 guaranteed, 70 free
    assert ledger.owed_blocks == 25
    assert (ledger.available("small"), ledger.available("large")) == (15, 5)
    assert ledger.available("third") == 0
    assert ledger.take("small", 15) is not None
    assert ledger.owed_blocks == 25  # filling a guarantee owes nobody more
    assert ledger.available("large") == 2


def test_shared_rows_are_freed_with_their_last_holder() -> None:
    ledger = two_models()
    rows = ledger.take("small", 4)
    assert rows is not None
    ledger.share("small", rows.ids[:2])
    ledger.release("small", rows.ids)
    assert ledger.usage()["small"].rows == 2
    ledger.release("small", rows.ids[:2])
    assert ledger.free_blocks == 100


def test_a_wrong_release_names_model_and_row_and_changes_nothing() -> None:
    ledger = two_models()
    rows = ledger.take("small", 3)
    assert rows is not None
    with pytest.raises(LedgerError, match="model small: row 1 released more often"):
        ledger.release("small", np.array([0, 1, 1, 2], np.int32))
    with pytest.raises(LedgerError, match="model small: release of row 9, which is not held"):
        ledger.release("small", np.array([0, 9], np.int32))
    with pytest.raises(LedgerError, match="model small: share of row 40, but ids end at 39"):
        ledger.share("small", np.array([0, 40], np.int32))
    assert ledger.usage()["small"].rows == 3
    ledger.audit()


@pytest.mark.parametrize("mins", [(60, 41), (0, 100)])
def test_quotas_that_cannot_hold_together_are_refused_by_name(mins: tuple[int, int]) -> None:
    ledger = Ledger(100)
    ledger.add_model("modest", 3, 40, min_blocks=mins[0])
    with pytest.raises(ConfigError, match=r"modest.*quota\.min"):
        ledger.add_model("greedy", 10, 10, min_blocks=mins[1])
    assert list(ledger.usage()) == ["modest"]
    with pytest.raises(ConfigError, match="modest"):
        ledger.set_quota("modest", 50, 40)
    assert ledger.usage()["modest"].min_blocks == mins[0]


def test_limit_is_what_a_request_can_ever_get() -> None:
    ledger = two_models()
    ledger.take("small", 26)
    assert ledger.limit("large") == 7  # 100 - 30 guaranteed to small, whoever holds what now
    ledger.set_quota("large", 20, 45)
    assert ledger.limit("large") == 4


def test_unknown_and_doubled_models_are_defects() -> None:
    ledger = two_models()
    with pytest.raises(LedgerError, match="no model tiny in the pool, only: small, large"):
        ledger.take("tiny", 1)
    with pytest.raises(LedgerError, match="large has an account"):
        ledger.add_model("large", 1, 1)
    with pytest.raises(LedgerError, match="cannot take -1 rows"):
        ledger.take("small", -1)


@pytest.mark.parametrize("total", [0, -1, 2**31])
def test_a_pool_of_impossible_size_names_the_setting(total: int) -> None:
    with pytest.raises(ConfigError, match=r"pool\.bytes"):
        Ledger(total)


def test_the_audit_tells_the_story_of_a_block_owned_twice() -> None:
    ledger = two_models()
    ledger.take("small", 2)
    account = ledger._accounts["small"]
    account.table[0, 0] = account.table[1, 0]
    with pytest.raises(LedgerError) as caught:
        ledger.audit()
    for part in ("1 blocks lost: [", "1 blocks owned twice: [", "94 of 100 blocks free", "take(small, 2)"):
        assert part in caught.value.message


def corruptions() -> dict[str, tuple[str, object]]:
    def references(ledger: Ledger) -> None:
        ledger._accounts["small"].references[5] = 1

    def reserved(ledger: Ledger) -> None:
        ledger._reserved += 1

    def outside(ledger: Ledger) -> None:
        ledger._stack[0] = 100

    return {
        "references": ("model small: counts 2 rows, 3 are referenced", references),
        "reserved": ("45 blocks reserved, guarantees need 44", reserved),
        "outside": ("block ids outside the pool", outside),
    }


@pytest.mark.parametrize("kind", list(corruptions()))
def test_the_audit_sees(kind: str) -> None:
    message, corrupt = corruptions()[kind]
    ledger = two_models()
    ledger.take("small", 2)
    corrupt(ledger)  # type: ignore[operator]
    with pytest.raises(LedgerError) as caught:
        ledger.audit()
    assert message in caught.value.message


def steps(call: object, *args: object) -> int:
    """Python lines executed by ``call``: a loop over rows or heads would show."""
    count = 0

    def trace(frame: object, event: str, arg: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()  # finalizers of other tests are Python lines, too
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call(*args)  # type: ignore[operator]
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def test_work_per_call_does_not_grow_with_rows_or_heads() -> None:
    """1,000 rows of 90 head blocks cost as many Python lines as one row of one block."""
    wide, thin = Ledger(200_000), Ledger(200_000)
    wide.add_model("m", blocks_per_row=90, max_rows=2000)
    thin.add_model("m", blocks_per_row=1, max_rows=2000)
    for method, many, one in (
        ("take", 1000, 1),
        ("share", np.arange(1000, dtype=np.int32), np.zeros(1, np.int32)),
        ("release", np.arange(1000, dtype=np.int32), np.zeros(1, np.int32)),
    ):
        assert steps(getattr(wide, method), "m", many) == steps(getattr(thin, method), "m", one)
    assert wide.usage()["m"].rows == 1000


def test_work_per_named_row_does_not_grow_with_heads() -> None:
    """Naming, caching, reclaiming and finding 50 rows of 90 head blocks costs the lines of 50 of one."""
    keys, other = ([bytes([kind, row]) for row in range(50)] for kind in (1, 2))
    counts = []
    for width in (90, 1):
        ledger = Ledger(75 * width)
        ledger.add_model("m", width, 75)
        rows = ledger.take("m", 50)
        assert rows is not None
        counts.append(
            [
                steps(ledger.register, "m", rows.ids.tolist(), keys),
                steps(ledger.release, "m", rows.ids),
                steps(ledger.admit, "m", other, 50),  # reclaims 25
                steps(ledger.admit, "m", keys, 50),  # finds 25, and there is room for no more
            ]
        )
        assert ledger.matched("m", keys) == 25
        assert ledger.usage()["m"].rows == 50
    assert counts[0] == counts[1]


def test_ledger_device_and_link_need_no_torch() -> None:
    pool = "muxd.pool.ledger, muxd.pool.prefix, muxd.pool.arena"
    modules = f"{pool}, muxd.device.cpu, muxd.link.daemon_end, muxd.link.fds"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
