"""Which head blocks there are: the pool's own, and lent ones that come and go. Owned by ``pool.ledger``.

Lent blocks are nobody's by right: guarantees, quotas and what a sequence may need are measured by the pool's
own.
"""

import numpy as np

from muxd.pool.account import Account, Ids, LedgerError


class Present:
    """Block ids in [0, ``own``) always, some of [``own``, ``reach``) at times."""

    def __init__(self, own: int, reach: int):
        self.own, self.reach = own, max(own, reach)
        self.mask = np.arange(self.reach) < own
        self.lent = 0
        self.leaving = 0  # recalled, and still held
        self._recalled = np.zeros(self.reach, np.bool_)

    @property
    def total(self) -> int:
        """Blocks there are, those that are leaving included."""
        return self.own + self.lent

    def lend(self, first: int, count: int) -> Ids:
        """They exist from now on; returns them, to be freed. Raises LedgerError."""
        span = self._span(first, count)
        if self.mask[span].any():
            raise LedgerError(f"head blocks {first} to {first + count} are in the pool already")
        self.mask[span] = True
        self.lent += count
        return np.arange(first + count - 1, first - 1, -1, dtype=np.int32)

    def recall(self, first: int, count: int) -> None:
        """From now on they leave wherever ``stay`` meets them. Raises LedgerError."""
        span = self._span(first, count)
        if not self.mask[span].all() or self._recalled[span].any():
            raise LedgerError(f"head blocks {first} to {first + count} are not all there to be given up")
        self._recalled[span] = True
        self.leaving += count

    def stay(self, blocks: Ids) -> Ids:
        """Blocks that came free, less the recalled ones, which are gone."""
        if not self.leaving:
            return blocks
        going = self._recalled[blocks]
        gone = blocks[going]
        self.mask[gone] = self._recalled[gone] = False
        self.leaving -= gone.size
        self.lent -= gone.size
        return blocks[~going]

    def keeping(self, account: Account, rows: Ids, columns: Ids | None = None) -> Ids:
        """Those of the account's ``rows`` that have a recalled block, or one among ``columns``."""
        if not self.leaving:
            return rows[:0]
        blocks = account.table[rows] if columns is None else account.table[np.ix_(rows, columns)]
        return rows[(self._recalled[blocks] & (blocks >= 0)).any(axis=1)]

    def _span(self, first: int, count: int) -> slice:
        if count < 1 or not self.own <= first <= self.reach - count:
            raise LedgerError(
                f"head blocks {first} to {first + count} do not lie in [{self.own}, {self.reach})"
            )
        return slice(first, first + count)
