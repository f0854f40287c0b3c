"""Who holds which head block: one free stack for all models, quotas, reference counts, an audit.

Pure: numpy only, no torch, no clock, no I/O. Called by the scheduler (take, share, release), the quota
controller (set_quota) and the daemon at load and unload of a model. ``design.md`` beside it tells the rule.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from muxd.errors import ConfigError
from muxd.pool.account import Account, Ids, LedgerError, Rows

__all__ = ["Ledger", "LedgerError", "Rows", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model holds and may hold. ``rows`` in rows of the model, the rest in head blocks."""

    rows: int
    blocks: int
    min_blocks: int
    max_blocks: int


class Ledger:
    """Every head block of one pool, free or held by exactly one row of one model.

    The rule: a model may always grow to its ``min_blocks``; beyond, only into blocks that no other model's
    unfilled guarantee needs, and never above ``max_blocks``.
    """

    def __init__(self, total_blocks: int):
        if not 0 < total_blocks < 2**31:
            raise ConfigError(
                f"pool.bytes: the pool has {total_blocks} head blocks; it needs 1 to {2**31 - 1} "
                "(block ids are int32): change pool.bytes or pool.block_bytes"
            )
        self.total_blocks = total_blocks
        self._stack: Ids = np.arange(total_blocks - 1, -1, -1, dtype=np.int32)
        self._free = total_blocks  # free blocks are _stack[:_free]
        self._reserved = 0  # sum of unfilled guarantees
        self._accounts: dict[str, Account] = {}
        self._story: deque[tuple[str, str, int]] = deque(maxlen=64)  # the last calls, for the audit

    @property
    def free_blocks(self) -> int:
        """Head blocks nobody holds."""
        return self._free

    @property
    def owed_blocks(self) -> int:
        """Head blocks that guarantees need and borrowers still hold.

        Above 0 only after a guarantee was raised over what is free; shrinks as rows come back. The scheduler
        preempts borrowers while it lasts; nobody can borrow more meanwhile.
        """
        return max(0, self._reserved - self._free)

    def add_model(
        self,
        name: str,
        blocks_per_row: int,
        max_rows: int,
        min_blocks: int = 0,
        max_blocks: int | None = None,
    ) -> None:
        """Open an account. Raises ConfigError when the quotas of all models cannot hold together."""
        if name in self._accounts:
            raise LedgerError(f"model {name} has an account already")
        if blocks_per_row < 1 or max_rows < 1 or min_blocks // blocks_per_row > max_rows:
            raise LedgerError(
                f"model {name}: {max_rows} rows of {blocks_per_row} blocks cannot hold {min_blocks} blocks"
            )
        top = self.total_blocks if max_blocks is None else max_blocks
        account = Account(name, blocks_per_row, max_rows, min_blocks, top)
        self._check_quotas([*self._accounts.values(), account])
        self._accounts[name] = account
        self._reserved += account.unfilled
        self._story.append(("add_model", name, max_rows))

    def remove_model(self, name: str) -> None:
        """Close an account. Raises LedgerError while rows are held."""
        account = self._account(name)
        if account.rows:
            raise LedgerError(f"model {name} still holds {account.rows} rows; release them before removal")
        del self._accounts[name]
        self._reserved -= account.unfilled
        self._story.append(("remove_model", name, 0))

    def available(self, model: str) -> int:
        """Rows that ``take`` would grant now. O(1)."""
        account = self._account(model)
        own = account.unfilled
        # The first term is the rule. The second matters only while blocks are owed: two models below their
        # guarantees must not wait for each other's reservation, first come is first served.
        growth = max(self._free - (self._reserved - own), min(self._free, own))
        growth = min(growth, account.max_blocks - account.blocks)
        return max(0, min(growth // account.width, account.max_rows - account.rows))

    def limit(self, model: str) -> int:
        """Rows the model could hold if everybody else kept to their guarantees: more can never fit."""
        return self._limit(self._account(model), self._accounts.values())

    def take(self, model: str, n_rows: int) -> Rows | None:
        """``n_rows`` rows, each referenced once, or None: not now. Changes nothing when None."""
        account = self._account(model)
        if n_rows < 0:
            raise LedgerError(f"model {model}: cannot take {n_rows} rows")
        if n_rows > self.available(model):
            return None
        own, rest = account.unfilled, self._free - n_rows * account.width
        blocks = self._stack[rest : self._free].reshape(n_rows, account.width).copy()
        ids = account.hold(blocks)
        self._free = rest
        self._reserved += account.unfilled - own
        self._story.append(("take", model, n_rows))
        return Rows(ids, blocks)

    def share(self, model: str, row_ids: Ids) -> None:
        """One more holder for each row. Raises LedgerError, changing nothing, unless all are held."""
        self._account(model).share(row_ids)
        self._story.append(("share", model, len(row_ids)))

    def release(self, model: str, row_ids: Ids) -> None:
        """One holder less for each row; without holders its blocks are free.

        Raises LedgerError naming model and row, changing nothing, when a row is not held that often.
        """
        account = self._account(model)
        own = account.unfilled
        blocks = account.release(row_ids)
        self._stack[self._free : self._free + blocks.size] = blocks
        self._free += blocks.size
        self._reserved += account.unfilled - own
        self._story.append(("release", model, len(row_ids)))

    def set_quota(self, model: str, min_blocks: int, max_blocks: int | None = None) -> None:
        """Move a model's quota. Held rows stay: a lower ``max_blocks`` stops growth, a higher
        ``min_blocks`` may leave ``owed_blocks``. Raises ConfigError, changing nothing, on bad quotas."""
        account = self._account(model)
        before, own = (account.min_blocks, account.max_blocks), account.unfilled
        account.min_blocks = min_blocks
        account.max_blocks = self.total_blocks if max_blocks is None else max_blocks
        try:
            self._check_quotas(self._accounts.values())
        except ConfigError:
            account.min_blocks, account.max_blocks = before
            raise
        self._reserved += account.unfilled - own
        self._story.append(("set_quota", model, min_blocks))

    def usage(self) -> dict[str, Usage]:
        """Per model, in the order of ``add_model``."""
        return {a.name: Usage(a.rows, a.blocks, a.min_blocks, a.max_blocks) for a in self._accounts.values()}

    def audit(self) -> None:
        """Raise LedgerError with the full story unless every block is free or held exactly once.

        O(total_blocks) in numpy: for tests after every step and for the daemon when it is idle.
        """
        accounts = self._accounts.values()
        parts = [self._stack[: self._free], *(a.table[a.references > 0].reshape(-1) for a in accounts)]
        seen = np.concatenate(parts)
        faults = [fault for account in accounts for fault in account.faults()]
        if ((seen < 0) | (seen >= self.total_blocks)).any():
            faults.append("block ids outside the pool")
        else:
            owners = np.bincount(seen, minlength=self.total_blocks)
            for ids, what in ((owners == 0, "lost"), (owners > 1, "owned twice")):
                if ids.any():
                    faults.append(f"{ids.sum()} blocks {what}: {np.flatnonzero(ids)[:8].tolist()}")
        if self._free + sum(a.blocks for a in accounts) != self.total_blocks:
            faults.append("free and held blocks do not add up to the pool")
        if self._reserved != (unfilled := sum(a.unfilled for a in accounts)):
            faults.append(f"{self._reserved} blocks reserved, guarantees need {unfilled}")
        if faults:
            raise LedgerError(f"pool audit: {'; '.join(faults)}. {self._tell()}")

    def _tell(self) -> str:
        books = ", ".join(f"{name}: {usage}" for name, usage in self.usage().items())
        calls = ", ".join(f"{call}({model}, {n})" for call, model, n in self._story)
        return f"{self._free} of {self.total_blocks} blocks free; {books}; last calls: {calls}"

    def _account(self, model: str) -> Account:
        try:
            return self._accounts[model]
        except KeyError:
            raise LedgerError(
                f"no model {model} in the pool, only: {', '.join(self._accounts) or 'none'}"
            ) from None

    def _limit(self, account: Account, accounts: Iterable[Account]) -> int:
        others = sum(a.guaranteed for a in accounts if a is not account)
        blocks = min(account.max_blocks, self.total_blocks - others)
        return max(0, min(blocks // account.width, account.max_rows))

    def _check_quotas(self, accounts: Iterable[Account]) -> None:
        accounts = list(accounts)
        for a in accounts:
            if not 0 <= a.min_blocks <= a.max_blocks <= self.total_blocks:
                raise ConfigError(
                    f"quota of model {a.name}: min {a.min_blocks}, max {a.max_blocks} blocks; "
                    f"needs 0 <= min <= max <= {self.total_blocks} (the pool)"
                )
        if sum(a.min_blocks for a in accounts) > self.total_blocks:
            parts = ", ".join(f"{a.name} {a.min_blocks}" for a in accounts if a.min_blocks)
            raise ConfigError(
                f"quota.min of the models add up to more than the pool ({parts}; pool {self.total_blocks} "
                "blocks): lower a model's quota.min or raise pool.bytes"
            )
        for a in accounts:
            if not self._limit(a, accounts):
                raise ConfigError(
                    f"model {a.name} could never hold one row ({a.width} of {self.total_blocks} blocks): "
                    "raise pool.bytes or its quota.max, or lower the quota.min of others"
                )
