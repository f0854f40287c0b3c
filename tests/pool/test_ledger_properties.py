"""The ledger against a plain-Python model of it, over random histories."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muxd.errors import ConfigError
from muxd.pool.ledger import Ledger, LedgerError

NAMES = ["a", "b", "c", "d"]


class LedgerHistory(RuleBasedStateMachine):
    """``held[model][row]`` = [references, blocks], ``quota[model]`` = (width, max_rows, min, max)."""

    @initialize(total=st.integers(1, 60))
    def start(self, total: int) -> None:
        self.ledger = Ledger(total)
        self.total = total
        self.held: dict[str, dict[int, list]] = {}
        self.quota: dict[str, tuple[int, int, int, int]] = {}

    # -- the rule, written a second time from its statement -------------------------------------------

    def blocks(self, model: str) -> int:
        return len(self.held[model]) * self.quota[model][0]

    def unfilled(self, model: str) -> int:
        width, _, low, _ = self.quota[model]
        return max(0, low // width * width - self.blocks(model))

    def free(self) -> int:
        return self.total - sum(self.blocks(m) for m in self.held)

    def owed(self) -> int:
        return max(0, sum(self.unfilled(m) for m in self.held) - self.free())

    def quotas_fit(self, quota: dict[str, tuple[int, int, int, int]]) -> bool:
        if any(not 0 <= low <= high <= self.total for _, _, low, high in quota.values()):
            return False
        if sum(low for _, _, low, _ in quota.values()) > self.total:
            return False
        for model, (width, _, _, high) in quota.items():
            others = sum(low // w * w for m, (w, _, low, _) in quota.items() if m != model)
            if min(high, self.total - others) < width:
                return False
        return True

    # -- events -------------------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from(NAMES),
        width=st.sampled_from([1, 2, 3, 7]),
        rows=st.integers(8, 30),
        low=st.integers(0, 20),
        high=st.one_of(st.none(), st.integers(0, 60)),
    )
    def add(self, model: str, width: int, rows: int, low: int, high: int | None) -> None:
        if model in self.quota or low // width > rows:
            return
        wanted = {**self.quota, model: (width, rows, low, self.total if high is None else high)}
        try:
            self.ledger.add_model(model, width, rows, low, high)
        except ConfigError:
            assert not self.quotas_fit(wanted)
        else:
            assert self.quotas_fit(wanted)
            self.quota, self.held[model] = wanted, {}

    @precondition(lambda self: self.quota)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.quota)))
        if self.held[model]:
            with pytest.raises(LedgerError, match=f"model {model} still holds"):
                self.ledger.remove_model(model)
        else:
            self.ledger.remove_model(model)
            del self.quota[model], self.held[model]

    @precondition(lambda self: self.quota)
    @rule(data=st.data(), n=st.integers(0, 12))
    def take(self, data: st.DataObject, n: int) -> None:
        model = data.draw(st.sampled_from(sorted(self.quota)))
        width, max_rows, _, high = self.quota[model]
        others = sum(self.unfilled(m) for m in self.held if m != model)
        need, held = n * width, self.blocks(model)
        within_rule = need <= self.free() - others or need <= min(self.free(), self.unfilled(model))
        allowed = within_rule and held + need <= high and len(self.held[model]) + n <= max_rows
        owed_before = self.owed()
        rows = self.ledger.take(model, n)
        assert (rows is not None) == (allowed or n == 0)
        if rows is None:
            return
        assert rows.ids.dtype == rows.blocks.dtype == np.int32
        assert rows.blocks.shape == (n, width)
        for row, blocks in zip(rows.ids.tolist(), rows.blocks.tolist(), strict=True):
            assert row not in self.held[model]
            assert 0 <= row < max_rows
            self.held[model][row] = [1, blocks]
        assert self.owed() <= owed_before

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        model, rows = self.some_rows(data)
        self.ledger.share(model, np.array(rows, np.int32))
        for row in rows:
            self.held[model][row][0] += 1

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        model, rows = self.some_rows(data)
        rows = [row for row, n in Counter(rows).items() for _ in range(min(n, self.held[model][row][0]))]
        self.ledger.release(model, np.array(rows, np.int32))
        for row in rows:
            self.held[model][row][0] -= 1
            if self.held[model][row][0] == 0:
                del self.held[model][row]

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), kind=st.sampled_from(["too often", "not held", "outside"]))
    def release_wrongly(self, data: st.DataObject, kind: str) -> None:
        model, rows = self.some_rows(data)
        held, max_rows = self.held[model], self.quota[model][1]
        unheld = [row for row in range(max_rows) if row not in held]
        if kind == "too often":
            rows += [rows[0]] * held[rows[0]][0]
        elif kind == "not held" and unheld:
            rows.append(data.draw(st.sampled_from(unheld)))
        else:
            rows.append(data.draw(st.sampled_from([-1, max_rows])))
        with pytest.raises(LedgerError, match=rf"model {model}: .*row -?\d+"):
            self.ledger.release(model, np.array(rows, np.int32))

    @precondition(lambda self: self.quota)
    @rule(data=st.data(), low=st.integers(0, 40), high=st.one_of(st.none(), st.integers(0, 60)))
    def set_quota(self, data: st.DataObject, low: int, high: int | None) -> None:
        model = data.draw(st.sampled_from(sorted(self.quota)))
        width, max_rows, _, _ = self.quota[model]
        if low // width > max_rows:
            return
        wanted = {**self.quota, model: (width, max_rows, low, self.total if high is None else high)}
        try:
            self.ledger.set_quota(model, low, high)
        except ConfigError:
            assert not self.quotas_fit(wanted)
        else:
            assert self.quotas_fit(wanted)
            self.quota = wanted

    def some_rows(self, data: st.DataObject) -> tuple[str, list[int]]:
        model = data.draw(st.sampled_from(sorted(m for m in self.held if self.held[m])))
        return model, data.draw(st.lists(st.sampled_from(sorted(self.held[model])), min_size=1, max_size=6))

    # -- what always holds ----------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.ledger.audit()
        assert self.ledger.free_blocks == self.free()
        assert self.ledger.owed_blocks == self.owed()
        usage = self.ledger.usage()
        assert list(usage) == list(self.quota)
        for model, seen in usage.items():
            assert (seen.rows, seen.blocks) == (len(self.held[model]), self.blocks(model))
            assert (seen.min_blocks, seen.max_blocks) == self.quota[model][2:]
        every = [block for rows in self.held.values() for _, blocks in rows.values() for block in blocks]
        assert len(every) == len(set(every))

    @invariant()
    def nobody_below_its_guarantee_is_refused_while_another_borrows(self) -> None:
        """With nothing owed, every guarantee can be filled at once; while something is owed (a guarantee
        was just raised over what is free), nobody beyond its own guarantee gets another row."""
        for model, (width, _, _, high) in self.quota.items():
            available = self.ledger.available(model)
            assert available <= self.ledger.limit(model) or self.owed()
            assert available >= min(self.free(), self.unfilled(model)) // width
            if not self.owed():
                assert available * width >= self.unfilled(model)
            elif not self.unfilled(model):
                assert available == 0
            assert self.blocks(model) + available * width <= max(high, self.blocks(model))
        if not self.owed():
            assert sum(self.unfilled(m) for m in self.held) <= self.free()


LedgerHistory.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestLedgerHistory = LedgerHistory.TestCase
