"""The rows of one model: which are held, how often, and by which head blocks.

Owned by ``pool.ledger``, which alone decides whether a model may grow; nobody else calls this.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muxd.errors import MuxdError

Ids = NDArray[np.int32]


class LedgerError(MuxdError):
    """The caller's books and the ledger's disagree: a defect of muxd, never the user's doing."""

    code = "ledger_defect"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows just taken. The arrays belong to the caller."""

    ids: Ids  # int32[n], row ids of the model
    blocks: Ids  # int32[n, blocks_per_row], head-block ids, layer-major


class Account:
    """One model's block table, reference counts and row ids.

    ``references[row] == 0`` exactly when ``row`` is unused; its line in ``table`` is then -1.
    """

    def __init__(self, name: str, blocks_per_row: int, max_rows: int, min_blocks: int, max_blocks: int):
        self.name = name
        self.width = blocks_per_row
        self.max_rows = max_rows
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.rows = 0
        self.table: Ids = np.full((max_rows, blocks_per_row), -1, np.int32)
        self.references: Ids = np.zeros(max_rows, np.int32)
        # A stack whose top is the lowest id, so that ids stay small and the worker's table dense.
        self._unused: Ids = np.arange(max_rows - 1, -1, -1, dtype=np.int32)

    @property
    def blocks(self) -> int:
        """Head blocks held."""
        return self.rows * self.width

    @property
    def guaranteed(self) -> int:
        """``min_blocks`` in whole rows: a part of a row is of no use to anybody."""
        return self.min_blocks // self.width * self.width

    @property
    def unfilled(self) -> int:
        """Guaranteed head blocks not held yet."""
        return max(0, self.guaranteed - self.blocks)

    def hold(self, blocks: Ids) -> Ids:
        """Name ``blocks`` (int32[n, width]) with n unused row ids, each referenced once."""
        top = self.max_rows - self.rows
        ids = self._unused[top - len(blocks) : top][::-1].copy()
        self.table[ids] = blocks
        self.references[ids] = 1
        self.rows += len(ids)
        return ids

    def share(self, row_ids: Ids) -> None:
        """One more reference to each (an id listed twice counts twice)."""
        rows, times = self._held(row_ids, "share")
        self.references[rows] += times

    def release(self, row_ids: Ids) -> Ids:
        """One reference less to each. Returns the head blocks (int32[k]) nobody refers to any more."""
        rows, times = self._held(row_ids, "release")
        if (short := rows[self.references[rows] < times]).size:
            raise LedgerError(
                f"model {self.name}: row {short[0]} released more often than it is held "
                f"({self.references[short[0]]} references)"
            )
        self.references[rows] -= times
        freed = rows[self.references[rows] == 0]
        blocks: Ids = self.table[freed].reshape(-1)
        self.table[freed] = -1
        top = self.max_rows - self.rows
        self._unused[top : top + freed.size] = freed[::-1]
        self.rows -= freed.size
        return blocks

    def _held(self, row_ids: Ids, verb: str) -> tuple[Ids, Ids]:
        """Distinct rows and how often each is listed; LedgerError unless all are held."""
        rows: Ids
        rows, times = np.unique(np.asarray(row_ids, dtype=np.int32), return_counts=True)
        if rows.size and (rows[0] < 0 or rows[-1] >= self.max_rows):
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise LedgerError(f"model {self.name}: {verb} of row {wrong}, but ids end at {self.max_rows - 1}")
        if (unheld := rows[self.references[rows] == 0]).size:
            raise LedgerError(f"model {self.name}: {verb} of row {unheld[0]}, which is not held")
        return rows, times.astype(np.int32)

    def faults(self) -> list[str]:
        """What is wrong inside this account, for the audit."""
        found = []
        held = np.flatnonzero(self.references)
        unused = np.sort(self._unused[: self.max_rows - self.rows])
        if held.size != self.rows:
            found.append(f"counts {self.rows} rows, {held.size} are referenced")
        if (self.references < 0).any():
            found.append(f"negative references at rows {np.flatnonzero(self.references < 0)[:8].tolist()}")
        if not np.array_equal(unused, np.flatnonzero(self.references == 0)):
            found.append("the unused row ids are not exactly the rows without references")
        return [f"model {self.name}: {fault}" for fault in found]
