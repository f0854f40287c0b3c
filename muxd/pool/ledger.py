"""Who holds which head block: one free stack for all models, quotas, reference counts, cached rows.

Pure: numpy only, no torch, no clock, no I/O. Called by the engine: ``rows`` (admit, take, register, fade,
release, set_cost) and ``memory`` (add_model, set_quota, remove_model).
``design.md`` beside it tells the rules.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from muxd.errors import ConfigError
from muxd.pool import audit, quotas, reclaim
from muxd.pool.account import Account, Grant, Ids, LedgerError, Rows, Usage
from muxd.pool.cache import Stamp
from muxd.pool.present import Present
from muxd.pool.windowed import Windowed

__all__ = ["Grant", "Ledger", "LedgerError", "Rows", "Usage"]


class Ledger:
    """Every head block of one pool: free, cached, or held by exactly one row of one model.

    The rule: a model may always grow to its ``min_blocks``; beyond, only into blocks that no other model's
    unfilled guarantee needs, and never above ``max_blocks``. Cached blocks are as good as free for it.
    """

    def __init__(self, total_blocks: int, reach: int = 0):
        """``reach``: block ids that ``lend`` may ever name lie below it."""
        if not 0 < total_blocks < 2**31:
            raise ConfigError(
                f"pool.bytes: the pool has {total_blocks} head blocks; it needs 1 to {2**31 - 1} "
                "(block ids are int32): change pool.bytes or pool.block_bytes"
            )
        self.total_blocks = total_blocks
        self._present = Present(total_blocks, reach)
        self._stack: Ids = np.empty(self._present.reach, np.int32)
        self._stack[:total_blocks] = np.arange(total_blocks - 1, -1, -1)
        self._free = total_blocks  # free blocks are _stack[:_free]
        self._held = 0  # blocks that a holder needs; what is neither free nor held is cached
        self._reserved = 0  # sum of unfilled guarantees
        self._level = 0.0  # inflation of GreedyDual-Size: the highest priority reclaimed so far
        self._calls = 0  # those that let go of rows, or of parts of some
        self._accounts: dict[str, Account] = {}
        self._story: deque[tuple[str, str, int]] = deque(maxlen=64)  # the last calls, for the audit

    @property
    def free_blocks(self) -> int:
        """Head blocks with nothing in them."""
        return self._free

    @property
    def cached_blocks(self) -> int:
        """Head blocks nobody holds, kept because a later prompt may want them; free to whoever asks."""
        return self._present.total - self._free - self._held

    @property
    def reach(self) -> int:
        """Block ids lie below it."""
        return self._present.reach

    @property
    def present_blocks(self) -> int:
        """Head blocks there are now: the pool's own and lent ones, every one free, cached or held."""
        return self._present.total

    @property
    def lent_blocks(self) -> int:
        """Head blocks there are beyond the pool itself."""
        return self._present.lent

    @property
    def leaving_blocks(self) -> int:
        """Recalled head blocks that are still held."""
        return self._present.leaving

    @property
    def held_blocks(self) -> int:
        """Head blocks of held rows, all models', less windowed ones that nobody sees."""
        return self._held

    @property
    def unheld_blocks(self) -> int:
        """Head blocks free or cached."""
        return self._present.total - self._held

    @property
    def owed_blocks(self) -> int:
        """Head blocks that guarantees need and borrowers still hold.

        Above 0 only after a guarantee was raised over what is free or cached; shrinks as rows come back. The
        scheduler preempts borrowers while it lasts; nobody can borrow more meanwhile.
        """
        return max(0, self._reserved - self.unheld_blocks)

    def add_model(
        self,
        name: str,
        blocks_per_row: int,
        max_rows: int,
        min_blocks: int = 0,
        max_blocks: int | None = None,
        *,
        row_tokens: int = 1,
        state_rows: int = 0,
        windowed: Windowed | None = None,
    ) -> None:
        """Open an account. Raises ConfigError when the quotas of all models cannot hold together.

        ``row_tokens``: tokens of a row, for windows and the token counts of ``Usage``; without it they are
        rows. ``state_rows``: that each of its sequences holds beside those of its tokens. ``windowed``: which
        blocks of a row nobody needs once a sequence has gone on.
        """
        if name in self._accounts:
            raise LedgerError(f"model {name} has an account already")
        if blocks_per_row < 1 or max_rows < 1 or min_blocks // blocks_per_row > max_rows:
            raise LedgerError(
                f"model {name}: {max_rows} rows of {blocks_per_row} blocks cannot hold {min_blocks} blocks"
            )
        top = self.total_blocks if max_blocks is None else max_blocks
        account = Account(name, blocks_per_row, max_rows, min_blocks, top, row_tokens, state_rows, windowed)
        quotas.check(self.total_blocks, [*self._accounts.values(), account])
        self._accounts[name] = account
        self._reserved += account.unfilled
        self._story.append(("add_model", name, max_rows))

    def remove_model(self, name: str) -> None:
        """Close an account and drop what it cached. Raises LedgerError while rows are held."""
        account = self._account(name)
        if account.rows:
            raise LedgerError(f"model {name} still holds {account.rows} rows; release them before removal")
        self.drop_cache(name)
        del self._accounts[name]
        self._reserved -= account.unfilled
        self._story.append(("remove_model", name, 0))

    # ---- memory that comes and goes -----------------------------------------------------------------

    def lend(self, first: int, count: int) -> None:
        """Head blocks [first, first + count) exist from now on: to be borrowed, guaranteed to nobody, open to
        a model whose ceiling is the whole pool. Raises LedgerError unless new and within ``reach``."""
        self._to_stack(self._present.lend(first, count))
        self._story.append(("lend", "", count))

    def recall(self, first: int, count: int) -> None:
        """Give them up again: free and cached ones leave at once, held ones as soon as they are released.

        The memory may go when ``leaving_blocks`` is 0; ``leaving`` names the rows to be waited for. May leave
        ``owed_blocks``. Raises LedgerError unless all are there and lent.
        """
        self._present.recall(first, count)
        for account in self._accounts.values():
            self._purge(account)
        free = self._stack[: self._free].copy()
        self._free = 0
        self._to_stack(free)
        self._story.append(("recall", "", count))

    def leaving(self, model: str) -> Ids:
        """Row ids int32[n] that hold recalled blocks."""
        account = self._account(model)
        return self._present.keeping(account, np.flatnonzero(account.references).astype(np.int32))

    def _purge(self, account: Account) -> None:
        """What nobody holds may not keep recalled blocks: the windowed ones of a row go alone; for a cached
        row's its model's cache goes, so that no chain has a gap."""
        if not self._present.leaving:
            return
        if account.faded:
            parts = np.array(list(account.faded.parts), dtype=np.int32)
            kept = self._present.keeping(account, parts, account.faded.columns)
            self._to_stack(account.hollow_out(kept.tolist()))
        if self._present.keeping(account, np.array(list(account.cache.idle), dtype=np.int32)).size:
            self.drop_cache(account.name)

    # ---- rows ---------------------------------------------------------------------------------------

    def available(self, model: str) -> int:
        """Rows that ``take`` would grant now. O(1)."""
        return self._growth(self._account(model))

    def held(self, model: str) -> int:
        """Head blocks the model holds. O(1)."""
        return self._account(model).blocks

    def guarantee(self, model: str) -> int:
        """The model's ``min_blocks``. O(1)."""
        return self._account(model).min_blocks

    def limit(self, model: str) -> int:
        """Rows the model could hold if everybody else kept to their guarantees, lent blocks apart: a sequence
        that needs more might never be admitted."""
        return quotas.limit(self.total_blocks, self._account(model), self._accounts.values())

    def take(self, model: str, n_rows: int) -> Rows | None:
        """``n_rows`` rows, each referenced once, or None: not now. Changes nothing when None."""
        account = self._account(model)
        if n_rows < 0:
            raise LedgerError(f"model {model}: cannot take {n_rows} rows")
        if n_rows > self._growth(account):
            return None
        rows = self._take(account, n_rows)
        self._story.append(("take", model, n_rows))
        return rows

    def grants(self, wanted: Mapping[str, int]) -> bool:
        """Whether ``take`` would surely grant so many rows to each model, in any order and in any portions,
        while nothing else happens. False where that is close."""
        accounts = [(self._account(model), rows) for model, rows in wanted.items()]
        return quotas.grants(self.total_blocks, self.unheld_blocks - self._reserved, accounts)

    def spare(self, wanted: Mapping[str, int]) -> bool:
        """Whether so many rows can be taken without giving up a cached one."""
        accounts = [(self._account(model), rows) for model, rows in wanted.items()]
        blocks = sum([account.width * rows for account, rows in accounts])
        return blocks <= self._free and all(rows <= account.unused for account, rows in accounts)

    def fits(self, model: str, keys: Sequence[bytes], n_rows_total: int) -> bool:
        """Whether ``admit`` would grant this now. Looks at ``keys`` only when they decide."""
        account = self._account(model)
        growth = self._growth(account)
        if n_rows_total <= growth:
            return True
        shared = account.match(keys[:n_rows_total])
        return self._may_adopt(account, shared, n_rows_total - len(shared))

    def matched(self, model: str, keys: Sequence[bytes]) -> int:
        """Rows of the chain that are known now: what ``admit`` would share."""
        return len(self._account(model).match(keys))

    def admit(self, model: str, keys: Sequence[bytes], n_rows_total: int) -> Grant | None:
        """``n_rows_total`` rows for a sequence whose first rows are named ``keys``, or None: not now.

        Rows known under the first keys are shared (one reference more), the rest is taken. Cached rows that
        come back to life count as growth like new ones. Where layers have windows, no more rows are shared
        than leave the window before the rest whole; those before that are passed already. Changes nothing
        when None.
        """
        account = self._account(model)
        if n_rows_total < 0:
            raise LedgerError(f"model {model}: cannot take {n_rows_total} rows")
        keys = keys[:n_rows_total]
        shared = account.match(keys)
        fresh = n_rows_total - len(shared)
        if not self._may_adopt(account, shared, fresh):
            return None
        before = account.blocks, account.unfilled
        adopted = account.adopt(shared, self._stamp())  # first: what is held cannot be reclaimed for the rest
        self._rebook(account, *before)
        rows = self._take(account, fresh)
        account.count(asked=len(keys), matched=len(shared))
        self._story.append(("admit", model, n_rows_total))
        return Grant(adopted, rows)

    def register(self, model: str, rows: Sequence[int], keys: Sequence[bytes], start: int = 0) -> None:
        """Rows computed to the end may be shared from now on: ``rows[i]`` is what ``keys[i]`` names.

        ``rows`` and ``keys`` count from the sequence's first row (``rows`` may be longer); those before
        ``start`` are not looked at. A key that another row has stays with it, unless that lacks windowed
        blocks. Raises LedgerError, changing nothing, unless the rows are held and not registered otherwise.
        """
        self._to_stack(self._account(model).register(rows, keys, start))
        self._story.append(("register", model, len(keys) - start))

    def set_cost(self, model: str, seconds_per_row: float) -> None:
        """What computing a row of the model again costs; at once the weight of all its cached rows."""
        if not 0 <= seconds_per_row < float("inf"):
            raise LedgerError(f"model {model}: a row cannot cost {seconds_per_row} seconds")
        self._account(model).seconds_per_row = seconds_per_row

    def drop_cache(self, model: str) -> None:
        """Forget all computed rows of the model: cached ones are free, held ones will be.

        For an unload, and for a lost worker: its successor does not know where the rows are.
        """
        self._to_stack(self._account(model).clear())
        self._story.append(("drop_cache", model, 0))

    def share(self, model: str, row_ids: Ids) -> None:
        """A holder more for each row. Raises LedgerError, changing nothing, unless all are held and seen."""
        self._account(model).share(row_ids)
        self._story.append(("share", model, len(row_ids)))

    def fade(self, model: str, row_ids: Ids) -> None:
        """A holder of these rows has gone on so far that its layers with windows see them no more.

        When all holders of a row have, its windowed blocks are cached, if it is registered, or free. Raises
        LedgerError naming model and row, changing nothing, when a row is not seen that often.
        """
        account = self._account(model)
        before = account.blocks, account.unfilled
        self._to_stack(account.fade(row_ids, self._stamp()))
        self._rebook(account, *before)
        self._purge(account)
        self._story.append(("fade", model, len(row_ids)))

    def release(self, model: str, row_ids: Ids, passed: int = 0) -> None:
        """One holder less for each row; without holders it is cached if registered, else its blocks are free.

        ``passed``: so many of the first have faded for this holder. Raises LedgerError naming model and row,
        changing nothing, when a row is not held, or seen, that often.
        """
        account = self._account(model)
        before = account.blocks, account.unfilled
        self._to_stack(account.release(row_ids, self._stamp(), passed))
        self._rebook(account, *before)
        self._purge(account)
        self._story.append(("release", model, len(row_ids)))

    def set_quota(self, model: str, min_blocks: int, max_blocks: int | None = None) -> None:
        """Move a model's quota. Held rows stay: a lower ``max_blocks`` stops growth, a higher
        ``min_blocks`` may leave ``owed_blocks``. Raises ConfigError, changing nothing, on bad quotas."""
        account = self._account(model)
        before, own = (account.min_blocks, account.max_blocks), account.unfilled
        account.min_blocks = min_blocks
        account.max_blocks = self.total_blocks if max_blocks is None else max_blocks
        try:
            quotas.check(self.total_blocks, self._accounts.values())
        except ConfigError:
            account.min_blocks, account.max_blocks = before
            raise
        self._reserved += account.unfilled - own
        self._story.append(("set_quota", model, min_blocks))

    def usage(self) -> dict[str, Usage]:
        """Per model, in the order of ``add_model``."""
        return {a.name: a.usage() for a in self._accounts.values()}

    def audit(self) -> None:
        """Raise LedgerError with the full story unless every block is free, cached or held exactly once.

        For tests after every step and for the daemon when it is idle.
        """
        faults = audit.faults(
            self._present.mask, self._stack[: self._free], self._accounts.values(),
            reserved=self._reserved, held=self._held, level=self._level,
        )  # fmt: skip
        if faults:
            free = f"{self._free} of {self.present_blocks} blocks free, {self.cached_blocks} cached"
            raise LedgerError(
                f"pool audit: {'; '.join(faults)}. {free}; {audit.told(self.usage(), self._story)}"
            )

    # ---- cached rows are reclaimed before anybody is refused --------------------------------------------

    def _take(self, account: Account, n_rows: int) -> Rows:
        """New rows, which must be within the model's growth: what is not free is reclaimed."""
        if n_rows > account.unused:
            self._reclaimed(reclaim.own(account, n_rows - account.unused, self._level))
        need = n_rows * account.width
        if need > self._free:
            self._reclaimed(reclaim.cheapest(self._accounts.values(), need - self._free, self._level))
        before = account.blocks, account.unfilled
        rest = self._free - need
        blocks = self._stack[rest : self._free].reshape(n_rows, account.width).copy()
        self._free = rest
        ids = account.hold(blocks)
        self._rebook(account, *before)
        return Rows(ids, blocks)

    def _reclaimed(self, given: tuple[list[Ids], float]) -> None:
        """Head blocks that were given up, and the inflation since."""
        blocks, self._level = given
        for part in blocks:
            self._to_stack(part)

    # ---- books --------------------------------------------------------------------------------------

    def _growth(self, account: Account) -> int:
        return min(self._room(account) // account.width, account.max_rows - account.rows)

    def _may_adopt(self, account: Account, shared: Sequence[int], fresh: int) -> bool:
        rows, blocks = account.growth(shared)
        there = account.rows + rows + fresh <= account.max_rows
        return there and blocks + fresh * account.width <= self._room(account)

    def _room(self, account: Account) -> int:
        return quotas.room(self.total_blocks, self.unheld_blocks, self._reserved, account)

    def _stamp(self) -> Stamp:
        self._calls += 1
        return Stamp(self._level, self._calls)

    def _to_stack(self, blocks: Ids) -> None:
        blocks = self._present.stay(blocks)
        self._stack[self._free : self._free + blocks.size] = blocks
        self._free += blocks.size

    def _rebook(self, account: Account, blocks: int, unfilled: int) -> None:
        """After the account has changed from ``blocks`` held and ``unfilled``."""
        self._held += account.blocks - blocks
        self._reserved += account.unfilled - unfilled

    def _account(self, model: str) -> Account:
        try:
            return self._accounts[model]
        except KeyError:
            raise LedgerError(
                f"no model {model} in the pool, only: {', '.join(self._accounts) or 'none'}"
            ) from None
