"""The rows of one model: which are held, how often, which are cached, and by which head blocks.

Owned by ``pool.ledger``, which alone decides whether a model may grow; nobody else calls this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muxd.errors import MuxdError
from muxd.pool.cache import Cache, Stamp

Ids = NDArray[np.int32]


class LedgerError(MuxdError):
    """The caller's books and the ledger's disagree: a defect of muxd, never the user's doing."""

    code = "ledger_defect"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows just taken. The arrays belong to the caller."""

    ids: Ids  # int32[n], row ids of the model
    blocks: Ids  # int32[n, blocks_per_row], head-block ids, layer-major


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model holds, may hold and has cached.

    ``rows`` and ``cached_rows`` in rows of the model, ``*_blocks`` in head blocks. The token counts only
    grow: of admitted prompts, tokens in full rows (``asked``) and those found computed (``matched``).
    """

    rows: int
    blocks: int
    min_blocks: int
    max_blocks: int
    cached_rows: int = 0
    cached_blocks: int = 0
    asked_tokens: int = 0
    matched_tokens: int = 0


class Account:
    """One model's block table, reference counts, row ids and cache.

    A row id is held (``references > 0``), cached (none, but idle in ``cache``) or unused; only then is its
    line in ``table`` -1.
    """

    def __init__(
        self,
        name: str,
        blocks_per_row: int,
        max_rows: int,
        min_blocks: int,
        max_blocks: int,
        row_tokens: int,
        state_rows: int = 0,
    ):
        self.name = name
        self.width = blocks_per_row
        self.max_rows = max_rows
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.row_tokens = row_tokens
        self.least = 1 + state_rows  # rows that a sequence cannot do without
        self.seconds_per_row = 0.0  # what recomputing a row costs
        self.asked_tokens = self.matched_tokens = 0
        self.rows = 0  # held
        self.table: Ids = np.full((max_rows, blocks_per_row), -1, np.int32)
        self.references: Ids = np.zeros(max_rows, np.int32)
        self.cache = Cache(max_rows)
        # A stack whose top is the lowest id, so that ids stay small and the worker's table dense.
        self._unused: Ids = np.arange(max_rows - 1, -1, -1, dtype=np.int32)
        self.unused = max_rows  # unused ids are _unused[:unused]

    @property
    def blocks(self) -> int:
        """Head blocks held."""
        return self.rows * self.width

    @property
    def cached_rows(self) -> int:
        """Rows kept without a holder."""
        return len(self.cache.idle)

    @property
    def next_idle(self) -> tuple[float, int]:
        """Priority (seconds a block, inflated) of the cached row to go first, and when it was given back."""
        stamp = next(iter(self.cache.idle.values()))
        return stamp.level + self.seconds_per_row / self.width, stamp.call

    @property
    def guaranteed(self) -> int:
        """``min_blocks`` in whole rows: a part of a row is of no use to anybody."""
        return self.min_blocks // self.width * self.width

    @property
    def unfilled(self) -> int:
        """Guaranteed head blocks not held yet."""
        return max(0, self.guaranteed - self.blocks)

    def usage(self) -> Usage:
        """What the account holds, may hold and has cached."""
        cached = self.cached_rows
        return Usage(
            self.rows, self.blocks, self.min_blocks, self.max_blocks,
            cached, cached * self.width, self.asked_tokens, self.matched_tokens,
        )  # fmt: skip

    def hold(self, blocks: Ids) -> Ids:
        """Name ``blocks`` (int32[n, width]) with n unused row ids, each referenced once."""
        rest = self.unused - len(blocks)
        ids = self._unused[rest : self.unused][::-1].copy()
        self.unused = rest
        self.table[ids] = blocks
        self.references[ids] = 1
        self.rows += len(ids)
        return ids

    def share(self, row_ids: Ids) -> None:
        """One more reference to each (an id listed twice counts twice)."""
        rows, times = self._held(row_ids, "share")
        self.references[rows] += times

    def adopt(self, rows: Sequence[int]) -> Ids:
        """One more reference to each of these registered rows, held or cached, each listed once."""
        ids = np.array(rows, dtype=np.int32)
        self.rows += int((self.references[ids] == 0).sum())
        self.references[ids] += 1
        self.cache.revive(rows)
        return ids

    def count(self, *, asked: int, matched: int) -> None:
        """Rows that a sequence looked for and found."""
        self.asked_tokens += asked * self.row_tokens
        self.matched_tokens += matched * self.row_tokens

    def release(self, row_ids: Ids, stamp: Stamp) -> Ids:
        """One reference less to each. Rows without any are cached if registered; the head blocks (int32[k])
        of the others are returned."""
        rows, times = self._held(row_ids, "release")
        if (short := rows[self.references[rows] < times]).size:
            raise LedgerError(
                f"model {self.name}: row {short[0]} released more often than it is held "
                f"({self.references[short[0]]} references)"
            )
        self.references[rows] -= times
        freed = rows[self.references[rows] == 0]
        self.rows -= freed.size
        if (known := self.cache.registered[freed]).any():
            lost = self.cache.keep(freed[known].tolist(), stamp)
            freed = np.concatenate([freed[~known], np.array(lost, dtype=np.int32)])
        return self.drop(freed)

    def drop(self, rows: Ids) -> Ids:
        """These ids are unused from now on; returns their head blocks."""
        blocks: Ids = self.table[rows].reshape(-1)
        self.table[rows] = -1
        self._unused[self.unused : self.unused + rows.size] = rows[::-1]
        self.unused += rows.size
        return blocks

    def register(self, rows: Sequence[int], keys: Sequence[bytes], start: int) -> None:
        """``rows[i]`` holds what ``keys[i]`` names, from ``start`` on. Changes nothing when it raises."""
        if not 0 <= start <= len(keys) <= len(rows):
            raise LedgerError(f"model {self.name}: {len(keys)} keys for {len(rows)} rows from {start} on")
        fresh = rows[start : len(keys)]
        _, times = self._held(np.array(fresh, dtype=np.int32), "registration")
        if (times > 1).any():
            raise LedgerError(f"model {self.name}: registration of rows {fresh}, one of them twice")
        for row, key in zip(fresh, keys[start:], strict=True):
            if self.cache.key_of(row) not in (None, key):
                raise LedgerError(f"model {self.name}: row {row} is registered under another key")
        for depth, row in enumerate(fresh, start):
            self.cache.register(row, keys, depth)

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
        used = np.zeros(self.max_rows, np.bool_)
        used[held] = True
        used[list(self.cache.idle)] = True
        if held.size != self.rows:
            found.append(f"counts {self.rows} rows, {held.size} are referenced")
        if (self.references < 0).any():
            found.append(f"negative references at rows {np.flatnonzero(self.references < 0)[:8].tolist()}")
        if self.references[list(self.cache.idle)].any():
            found.append("rows are cached and held at once")
        if not np.array_equal(np.sort(self._unused[: self.unused]), np.flatnonzero(~used)):
            found.append("the unused row ids are not exactly the rows neither held nor cached")
        return [f"model {self.name}: {fault}" for fault in [*found, *self.cache.faults()]]
