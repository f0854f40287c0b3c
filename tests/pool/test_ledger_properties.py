"""The ledger against a plain-Python model of it, over random histories of models, sequences and prefixes."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.examples import examples
from support.naive_pool import NO_WINDOW, NaivePool, Running, Window, keys_of

from muxd.errors import ConfigError
from muxd.pool.ledger import Ledger, LedgerError
from muxd.pool.windowed import Windowed

NAMES = ["a", "b", "c", "d"]
ROW_TOKENS = 4
LOANS, LOAN = 3, 7  # extents that may come and go, and head blocks of each
SECONDS = st.sampled_from([0.0, 0.25, 1.0, 3.5, 40.0])


class LedgerHistory(RuleBasedStateMachine):
    @initialize(total=st.integers(1, 60), widths=st.lists(st.integers(1, 3), max_size=2))
    def start(self, total: int, widths: list[int]) -> None:
        self.ledger = Ledger(total, total + LOANS * LOAN)
        self.naive = NaivePool(total)
        self.loans: set[int] = set()
        self.running: list[Running] = []
        for model, width in zip(NAMES, widths, strict=False):
            self.add(model, width, 8 + total % 12, 0, None, 0.5 * width, (total % 9, {total % width}))

    # -- models -------------------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from(NAMES),
        width=st.sampled_from([1, 2, 3, 7]),
        rows=st.integers(8, 30),
        low=st.integers(0, 20),
        high=st.one_of(st.none(), st.integers(0, 60)),
        seconds=SECONDS,
        window=st.tuples(st.integers(0, 17), st.sets(st.integers(0, 6), min_size=1)),
    )
    def add(
        self,
        model: str,
        width: int,
        rows: int,
        low: int,
        high: int | None,
        seconds: float,
        window: tuple[int, set[int]],
    ) -> None:
        """``window``: tokens, 0 for none, and columns of a row, as far as there are such."""
        if model in self.naive.quota or low // width > rows:
            return
        tokens, columns = window[0], sorted(column for column in window[1] if column < width)
        windowed = Windowed(tokens, tuple(columns)) if tokens and columns else None
        quota = (width, rows, low, self.naive.total if high is None else high)
        fit = self.naive.quotas_fit({**self.naive.quota, model: quota})
        try:
            self.ledger.add_model(model, width, rows, low, high, row_tokens=ROW_TOKENS, windowed=windowed)
        except ConfigError:
            assert not fit
        else:
            assert fit
            self.naive.add(model, quota, Window(tokens, columns, ROW_TOKENS) if windowed else NO_WINDOW)
            self.costs(model, seconds)

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        model = self.some_model(data)
        if self.naive.held(model):
            with pytest.raises(LedgerError, match=f"model {model} still holds"):
                self.ledger.remove_model(model)
        else:
            self.ledger.remove_model(model)
            self.naive.remove(model)
            self.running = [it for it in self.running if it.model != model]

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), low=st.integers(0, 40), high=st.one_of(st.none(), st.integers(0, 60)))
    def set_quota(self, data: st.DataObject, low: int, high: int | None) -> None:
        model = self.some_model(data)
        width, max_rows, _, _ = self.naive.quota[model]
        if low // width > max_rows:
            return
        quota = (width, max_rows, low, self.naive.total if high is None else high)
        wanted = {**self.naive.quota, model: quota}
        try:
            self.ledger.set_quota(model, low, high)
        except ConfigError:
            assert not self.naive.quotas_fit(wanted)
        else:
            assert self.naive.quotas_fit(wanted)
            self.naive.quota = wanted

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), seconds=SECONDS)
    def set_cost(self, data: st.DataObject, seconds: float) -> None:
        self.costs(self.some_model(data), seconds)

    def costs(self, model: str, seconds: float) -> None:
        self.ledger.set_cost(model, seconds)
        self.naive.cost[model] = seconds

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data())
    def drop_cache(self, data: st.DataObject) -> None:
        model = self.some_model(data)
        self.ledger.drop_cache(model)
        self.naive.drop_cache(model)

    # -- memory that comes and goes ---------------------------------------------------------------------

    @rule(loan=st.integers(0, LOANS - 1))
    def lend(self, loan: int) -> None:
        first = self.naive.total + loan * LOAN
        blocks = set(range(first, first + LOAN))
        if blocks & self.naive.lent:
            with pytest.raises(LedgerError, match="in the pool already"):
                self.ledger.lend(first, LOAN)
            return
        self.ledger.lend(first, LOAN)
        self.naive.lent |= blocks
        self.loans.add(loan)

    @rule(loan=st.integers(0, LOANS - 1))
    def recall(self, loan: int) -> None:
        first = self.naive.total + loan * LOAN
        if loan not in self.loans:
            with pytest.raises(LedgerError, match="not all there"):
                self.ledger.recall(first, LOAN)
            return
        self.ledger.recall(first, LOAN)
        self.loans.remove(loan)
        self.naive.leaving |= set(range(first, first + LOAN))
        self.naive.settle()

    # -- rows -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), n=st.integers(0, 12))
    def take(self, data: st.DataObject, n: int) -> None:
        self.taken(self.some_model(data), n)

    def taken(self, model: str, n: int) -> bool:
        allowed, owed_before = self.naive.may_grow(model, n), self.naive.owed()
        rows = self.ledger.take(model, n)
        assert (rows is not None) == allowed
        if rows is None:
            return False
        assert rows.ids.dtype == rows.blocks.dtype == np.int32
        assert rows.blocks.shape == (n, self.naive.quota[model][0])
        self.naive.make_room(model, n)
        self.naive.granted(model, rows.ids.tolist(), rows.blocks.tolist())
        assert self.naive.owed() <= owed_before
        return True

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), rows=st.lists(st.integers(0, 4), min_size=4, max_size=4))
    def take_what_is_granted(self, data: st.DataObject, rows: list[int]) -> None:
        """Of several models together, in any order and portions; no cache shrinks where rows are spare."""
        wanted = dict(zip(self.naive.quota, rows, strict=False))
        if not self.ledger.grants(wanted):
            return
        spare, cached = self.ledger.spare(wanted), self.ledger.cached_blocks
        portions = [model for model, count in wanted.items() for _ in range(count)]
        for model in data.draw(st.permutations(portions)):
            assert self.taken(model, 1)
        assert not spare or cached == self.ledger.cached_blocks

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), path=st.text("ab", max_size=7), more=st.integers(-2, 3))
    def admit(self, data: st.DataObject, path: str, more: int) -> None:
        self.admitted(self.some_model(data), path, more)

    @precondition(lambda self: self.naive.quota)
    @rule(data=st.data(), path=st.text("abc", min_size=1, max_size=7), ends=st.sampled_from([0, 1, 1]))
    def compute(self, data: st.DataObject, path: str, ends: int) -> None:
        """A sequence whose rows are all full; most end and leave them cached."""
        if (it := self.admitted(self.some_model(data), path, 0)) is not None:
            self.registered(it, len(path), it.registered)
            self.faded(it, self.naive.window[it.model].passed(len(path)))
            if ends:
                self.finished(it)

    def admitted(self, model: str, path: str, more: int) -> Running | None:
        keys, n = keys_of(path), max(0, len(path) + more)
        shared = self.naive.match(model, keys[:n])
        fresh = n - len(shared)
        needs = self.naive.needs(model, shared, fresh)
        allowed, owed_before = self.naive.may_grow(model, *needs), self.naive.owed()
        assert self.ledger.fits(model, keys, n) == allowed
        grant = self.ledger.admit(model, keys, n)
        assert (grant is not None) == allowed
        if grant is None:
            return None
        assert grant.shared.tolist() == shared
        self.naive.adopt(model, shared)
        self.naive.make_room(model, fresh)
        self.naive.granted(model, grant.rows.ids.tolist(), grant.rows.blocks.tolist())
        self.naive.tokens[model, "asked"] += len(keys[:n]) * ROW_TOKENS
        self.naive.tokens[model, "matched"] += len(shared) * ROW_TOKENS
        assert self.naive.owed() <= owed_before
        passed = self.naive.window[model].passed(len(shared))
        rows = [*shared, *grant.rows.ids.tolist()]
        self.running.append(Running(model, path, rows, len(shared), passed))
        return self.running[-1]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        it = data.draw(st.sampled_from(self.running))
        most = min(len(it.path), len(it.rows))
        stop = data.draw(st.integers(min(it.registered, most), most))
        self.registered(it, stop, data.draw(st.integers(0, min(it.registered, stop))))

    def registered(self, it: Running, stop: int, first: int) -> None:
        keys = keys_of(it.path)[:stop]
        self.ledger.register(it.model, it.rows, keys, first)
        for row, key in list(zip(it.rows, keys, strict=False))[first:]:
            self.naive.name(it.model, row, key)
        it.registered = stop

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 4))
    def go_on(self, data: st.DataObject, count: int) -> None:
        """What the sequence holds of its first rows fades, whether they have names or not."""
        it = data.draw(st.sampled_from(self.running))
        if self.naive.window[it.model] is not NO_WINDOW:
            self.faded(it, it.passed + count)
            return
        with pytest.raises(LedgerError, match="no layer has a window"):
            self.ledger.fade(it.model, np.array(it.rows, np.int32))

    def faded(self, it: Running, passed: int) -> None:
        rows = it.rows[it.passed : passed]
        if rows:
            self.ledger.fade(it.model, np.array(rows, np.int32))
            self.naive.fade(it.model, rows)
            it.passed += len(rows)

    @precondition(lambda self: any(it.passed for it in self.running))
    @rule(data=st.data())
    def go_on_wrongly(self, data: st.DataObject) -> None:
        """More holders would have passed a row than see it."""
        it = data.draw(st.sampled_from([it for it in self.running if it.passed]))
        row = it.rows[it.passed - 1]
        rows = [row] * (self.naive.rows[it.model][row].seers + 1)
        for call in (self.ledger.fade, self.ledger.share)[: 2 - bool(rows[1:])]:
            with pytest.raises(LedgerError, match=rf"model {it.model}: \w+ of row {row}, which was passed"):
                call(it.model, np.array(rows, np.int32))

    @precondition(lambda self: any(it.registered for it in self.running))
    @rule(data=st.data(), kind=st.sampled_from(["other key", "short", "outside", "not held"]))
    def register_wrongly(self, data: st.DataObject, kind: str) -> None:
        it = data.draw(st.sampled_from([it for it in self.running if it.registered]))
        rows, keys = it.rows[: it.registered], keys_of(it.path)[: it.registered]
        if kind == "other key":
            if rows[-1] not in self.naive.index(it.model).values():
                return  # another row had the key first, or the cache was dropped
            keys[-1] = b"other"
        elif kind == "short":
            rows = rows[:-1]
        elif kind == "outside":
            rows[-1] = self.naive.quota[it.model][1]
        else:
            unheld = set(range(self.naive.quota[it.model][1])) - set(self.naive.held(it.model))
            if not unheld:
                return
            rows[-1] = min(unheld)
        with pytest.raises(LedgerError, match=rf"model {it.model}: "):
            self.ledger.register(it.model, rows, keys)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.finished(data.draw(st.sampled_from(self.running)))

    def finished(self, it: Running) -> None:
        self.running.remove(it)
        self.ledger.release(it.model, np.array(it.rows, np.int32), it.passed)
        self.naive.release(it.model, it.rows, it.passed)

    @precondition(lambda self: any(map(self.naive.held, self.naive.quota)))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        model, rows = self.some_rows(data)
        rows = [row for row in rows if self.naive.rows[model][row].seers]
        self.ledger.share(model, np.array(rows, np.int32))
        for row in rows:
            self.naive.rows[model][row].references += 1
            self.naive.rows[model][row].seers += 1

    @precondition(lambda self: any(map(self.naive.held, self.naive.quota)))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Any rows: whoever ran on them is no longer looked after."""
        model, rows = self.some_rows(data)
        passed, seen = [], []
        for row, n in Counter(rows).items():
            it = self.naive.rows[model][row]
            blind = data.draw(st.integers(0, min(n, it.references - it.seers)))
            passed += [row] * blind
            seen += [row] * min(n - blind, it.seers)
        rows = passed + seen
        self.ledger.release(model, np.array(rows, np.int32), len(passed))
        self.naive.release(model, rows, len(passed))
        self.running = [it for it in self.running if it.model != model or not set(rows) & set(it.rows)]

    @precondition(lambda self: any(map(self.naive.held, self.naive.quota)))
    @rule(data=st.data(), kind=st.sampled_from(["too often", "not held", "outside"]))
    def release_wrongly(self, data: st.DataObject, kind: str) -> None:
        model, rows = self.some_rows(data)
        max_rows = self.naive.quota[model][1]
        unheld = [row for row in range(max_rows) if row not in self.naive.held(model)]
        if kind == "too often":
            rows += [rows[0]] * self.naive.rows[model][rows[0]].references
        elif kind == "not held" and unheld:
            rows.append(data.draw(st.sampled_from(unheld)))
        else:
            rows.append(data.draw(st.sampled_from([-1, max_rows])))
        with pytest.raises(LedgerError, match=rf"model {model}: .*row -?\d+"):
            self.ledger.release(model, np.array(rows, np.int32))

    def some_model(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.naive.quota)))

    def some_rows(self, data: st.DataObject) -> tuple[str, list[int]]:
        model = data.draw(st.sampled_from(sorted(m for m in self.naive.quota if self.naive.held(m))))
        rows = st.sampled_from(sorted(self.naive.held(model)))
        return model, data.draw(st.lists(rows, min_size=1, max_size=6))

    # -- what always holds ----------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.ledger.audit()
        naive = self.naive
        assert self.ledger.cached_blocks == naive.cached_blocks()
        assert self.ledger.free_blocks == naive.unheld() - naive.cached_blocks()
        assert self.ledger.owed_blocks == naive.owed()
        assert (self.ledger.lent_blocks, self.ledger.leaving_blocks) == (len(naive.lent), len(naive.leaving))
        assert self.ledger._level == naive.level
        usage = self.ledger.usage()
        assert list(usage) == list(naive.quota)
        for model, seen in usage.items():
            held = {row: set(naive.rows[model][row].blocks.values()) for row in naive.held(model)}
            holding = [row for row, blocks in held.items() if naive.leaving & blocks]
            assert sorted(self.ledger.leaving(model).tolist()) == sorted(holding)
            assert (seen.rows, seen.blocks) == (len(naive.held(model)), naive.blocks(model))
            assert (seen.min_blocks, seen.max_blocks) == naive.quota[model][2:]
            assert seen.cached_rows == len(naive.cached(model))
            assert seen.cached_blocks == naive.there(model) - naive.blocks(model)
            assert seen.asked_tokens == naive.tokens[model, "asked"]
            assert seen.matched_tokens == naive.tokens[model, "matched"]

    @invariant()
    def exactly_the_rows_that_were_kept_are_found(self) -> None:
        for model in self.naive.quota:
            known = self.naive.index(model)
            for key in known:
                keys = keys_of(key.decode())
                assert self.ledger.matched(model, keys) == len(self.naive.match(model, keys))
            for row in self.naive.cached(model):
                held = self.naive.rows[model][row].key
                assert held is not None
                assert self.naive.whole(model, held)

    @invariant()
    def nobody_below_its_guarantee_is_refused_while_another_borrows(self) -> None:
        """With nothing owed, every guarantee can be filled at once; while something is owed (a guarantee
        was just raised over what is free), nobody beyond its own guarantee gets another row."""
        naive, owed, unheld = self.naive, self.naive.owed(), self.naive.unheld()
        for model, (width, max_rows, _, high) in naive.quota.items():
            left = max_rows - len(naive.held(model))  # ids: a hollow row has one, too
            available, unfilled = self.ledger.available(model), naive.unfilled(model)
            assert available <= self.ledger.limit(model) or owed or naive.lent
            assert available >= min(min(unheld, unfilled) // width, left)
            if not owed:
                assert available >= min(unfilled // width, left)
            elif not unfilled:
                assert available == 0
            if high < naive.total:
                assert naive.blocks(model) + available * width <= max(high, naive.blocks(model))
        if not owed:
            assert sum(map(naive.unfilled, naive.quota)) <= unheld


LedgerHistory.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=50)
TestLedgerHistory = LedgerHistory.TestCase
