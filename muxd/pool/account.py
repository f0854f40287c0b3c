"""The rows of one model: which are held, how often, which are cached, and by which head blocks.

Owned by ``pool.ledger``, which alone decides whether a model may grow; nobody else calls this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from muxd.errors import MuxdError
from muxd.pool.cache import Cache, Stamp
from muxd.pool.faded import Faded
from muxd.pool.windowed import Windowed

Ids = NDArray[np.int32]
_NONE: Ids = np.empty(0, np.int32)


class LedgerError(MuxdError):
    """The caller's books and the ledger's disagree: a defect of muxd, never the user's doing."""

    code = "ledger_defect"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows just taken. The arrays belong to the caller."""

    ids: Ids  # int32[n], row ids of the model
    blocks: Ids  # int32[n, blocks_per_row], head-block ids, layer-major


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What ``admit`` gives: a sequence's block table is ``shared``, then ``rows.ids``."""

    shared: Ids  # int32[k], rows that hold the first k keys: nothing to compute, never to be written
    rows: Rows  # the others, newly taken


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model holds, may hold and has cached.

    ``rows`` and ``cached_rows`` in rows of the model, ``*_blocks`` in head blocks: those of faded rows that
    nobody sees are not held, and cached while they are there. The token counts only grow: of admitted
    prompts, tokens in full rows (``asked``) and those found computed (``matched``).
    """

    rows: int
    blocks: int
    min_blocks: int
    max_blocks: int
    cached_rows: int = 0
    cached_blocks: int = 0
    asked_tokens: int = 0
    matched_tokens: int = 0


class Reclaimed(IntEnum):
    """What can be given up, in the order in which equal ones are."""

    PART = 0  # the windowed blocks of a faded row
    ROW = 1  # a cached row


Head = tuple[float, int, Reclaimed, "Account"]  # priority and call of the stamp: no two accounts have a call


class Account:
    """One model's block table, reference counts, row ids and cache.

    A row id is held (``references > 0``), cached (none, but idle in ``cache``) or unused; only then is its
    line in ``table`` -1. Of a hollow row (``faded``, where layers have windows) the windowed columns are.
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
        windowed: Windowed | None = None,
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
        self.owned = 0  # head blocks of held and cached rows
        self.table: Ids = np.full((max_rows, blocks_per_row), -1, np.int32)
        self.references: Ids = np.zeros(max_rows, np.int32)
        self.cache = Cache(max_rows)
        self.faded = None if windowed is None else Faded(windowed, max_rows)
        # A stack whose top is the lowest id, so that ids stay small and the worker's table dense.
        self._unused: Ids = np.arange(max_rows - 1, -1, -1, dtype=np.int32)
        self.unused = max_rows  # unused ids are _unused[:unused]

    @property
    def blocks(self) -> int:
        """Head blocks held: those that a holder still needs."""
        faded = self.faded
        return self.rows * self.width - (faded.unseen * faded.blocks if faded else 0)

    @property
    def cached_rows(self) -> int:
        """Rows kept without a holder."""
        return len(self.cache.idle)

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
        blocks = self.blocks
        return Usage(
            self.rows, blocks, self.min_blocks, self.max_blocks,
            self.cached_rows, self.owned - blocks, self.asked_tokens, self.matched_tokens,
        )  # fmt: skip

    def count(self, *, asked: int, matched: int) -> None:
        """Rows that a sequence looked for and found."""
        self.asked_tokens += asked * self.row_tokens
        self.matched_tokens += matched * self.row_tokens

    # ---- holders --------------------------------------------------------------------------------------

    def hold(self, blocks: Ids) -> Ids:
        """Name ``blocks`` (int32[n, width]) with n unused row ids, each referenced once."""
        rest = self.unused - len(blocks)
        ids = self._unused[rest : self.unused][::-1].copy()
        self.unused = rest
        self.table[ids] = blocks
        self.references[ids] = 1
        self.rows += len(ids)
        self.owned += blocks.size
        if self.faded:
            self.faded.seers[ids] = 1
        return ids

    def share(self, row_ids: Ids) -> None:
        """One more reference to each (an id listed twice counts twice)."""
        rows, times = self._held(row_ids, "share")
        if self.faded:
            self._check_seen(self.faded, rows, np.ones_like(times), "share")
            self.faded.seers[rows] += times
        self.references[rows] += times

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Rows of the longest known prefix behind which a sequence can go on."""
        found = self.cache.match(keys)
        return found[: self.faded.whole(found, self.row_tokens)] if self.faded else found

    def growth(self, shared: Sequence[int]) -> tuple[int, int]:
        """Rows and head blocks held that ``adopt`` would add."""
        idle = self.cache.idle_among(shared)
        if not self.faded:
            return idle, idle * self.width
        passed = self._passed(len(shared))
        late = np.array(shared[passed:], dtype=np.int32)
        seen = self.faded.revived(late, self.references) - self.cache.idle_among(shared[:passed])
        return idle, idle * self.width + seen * self.faded.blocks

    def adopt(self, rows: Sequence[int], stamp: Stamp) -> Ids:
        """One more reference to each of these registered rows, held or cached, each listed once: a prefix
        behind which a sequence goes on."""
        ids = np.array(rows, dtype=np.int32)
        fading = []
        if self.faded:
            passed = self._passed(len(rows))
            fading = self.faded.adopt(ids[:passed], ids[passed:], self.references)
        self.rows += int((self.references[ids] == 0).sum())
        self.references[ids] += 1
        self.cache.revive(rows)
        self._fade(fading, stamp)
        return ids

    def release(self, row_ids: Ids, stamp: Stamp, passed: int) -> Ids:
        """One reference less to each. Rows without any are cached if registered; the head blocks (int32[k])
        of the others are returned."""
        rows, times = self._held(row_ids, "release")
        if (short := rows[self.references[rows] < times]).size:
            raise LedgerError(
                f"model {self.name}: row {short[0]} released more often than it is held "
                f"({self.references[short[0]]} references)"
            )
        seen, seers = self._views(row_ids, passed)
        self.references[rows] -= times
        freed = rows[self.references[rows] == 0]
        self.rows -= freed.size
        blocks = self._fade(self.faded.leave(seen, seers, freed), stamp) if self.faded else _NONE
        if (known := self.cache.registered[freed]).any():
            lost = self.cache.keep(freed[known].tolist(), stamp)
            freed = np.concatenate([freed[~known], np.array(lost, dtype=np.int32)])
        return np.concatenate([blocks, self.drop(freed)])

    def fade(self, row_ids: Ids, stamp: Stamp) -> Ids:
        """One seer less of each; returns head blocks that are free now. Changes nothing when it raises."""
        rows, times = self._held(row_ids, "fading")
        if not self.faded:
            raise LedgerError(f"model {self.name}: fading of rows, but no layer has a window")
        self._check_seen(self.faded, rows, times, "fading")
        return self._fade(self.faded.leave(rows, times, rows[:0]), stamp)

    def drop(self, rows: Ids) -> Ids:
        """These ids are unused from now on; returns their head blocks."""
        blocks: Ids = self.table[rows].reshape(-1)
        if self.faded:
            blocks = blocks[blocks >= 0]
            self.faded.forget(rows)
        self.table[rows] = -1
        self._unused[self.unused : self.unused + rows.size] = rows[::-1]
        self.unused += rows.size
        self.owned -= blocks.size
        return blocks

    def register(self, rows: Sequence[int], keys: Sequence[bytes], start: int) -> Ids:
        """``rows[i]`` holds what ``keys[i]`` names, from ``start`` on. Changes nothing when it raises.

        A whole row takes the name of a hollow one; returns head blocks that are free by that.
        """
        if not 0 <= start <= len(keys) <= len(rows):
            raise LedgerError(f"model {self.name}: {len(keys)} keys for {len(rows)} rows from {start} on")
        fresh = rows[start : len(keys)]
        _, times = self._held(np.array(fresh, dtype=np.int32), "registration")
        if (times > 1).any():
            raise LedgerError(f"model {self.name}: registration of rows {fresh}, one of them twice")
        for row, key in zip(fresh, keys[start:], strict=True):
            if self.cache.key_of(row) not in (None, key):
                raise LedgerError(f"model {self.name}: row {row} is registered under another key")
        lost = []
        for depth, row in enumerate(fresh, start):
            if self.faded and not self.faded.hollow[row]:
                lost += self._supplant(self.faded, keys[depth])
            self.cache.register(row, keys, depth)
        return self.drop(np.array(lost, dtype=np.int32)) if lost else _NONE

    def _supplant(self, faded: Faded, key: bytes) -> list[int]:
        """A whole row is there for the key: a hollow one loses the name, and is returned if nobody holds
        it."""
        row = self.cache.row_of(key)
        if row is None or not faded.hollow[row]:
            return []
        return [row] if self.cache.forget(row) else []

    # ---- giving up ------------------------------------------------------------------------------------

    def heads(self) -> list[Head]:
        """What there is to be given up, the next of each kind."""
        return [head for kind in Reclaimed if (head := self.head(kind)) is not None]

    def head(self, kind: Reclaimed) -> Head | None:
        """The next of that kind: its priority (seconds a block, inflated), and when it was let go."""
        going = self.cache.idle if kind is Reclaimed.ROW else self.faded.parts if self.faded else None
        if not going:
            return None
        stamp = next(iter(going.values()))
        return stamp.level + self.seconds_per_row / self.width, stamp.call, kind, self

    def pop(self, kind: Reclaimed) -> tuple[int, int]:
        """Give up the next of that kind: its row, and how many head blocks ``hollow_out`` or ``drop`` will
        return for it; the first are to be called before the second."""
        if kind is Reclaimed.PART:
            assert self.faded
            row, _ = self.faded.parts.popitem(last=False)
            self.faded.hollow[row] = True
            return row, self.faded.blocks
        row = self.cache.pop()
        if not self.faded:
            return row, self.width
        self.faded.parts.pop(row, None)
        return row, self.width - self.faded.blocks * bool(self.faded.hollow[row])

    def hollow_out(self, rows: Sequence[int]) -> Ids:
        """Their windowed blocks are nobody's from now on; returns them."""
        if not (self.faded and rows):
            return _NONE
        places = np.ix_(np.array(rows, dtype=np.int32), self.faded.columns)
        blocks: Ids = self.table[places].reshape(-1)
        self.table[places] = -1
        self.faded.hollow[places[0]] = True
        for row in rows:
            self.faded.parts.pop(row, None)
        self.owned -= blocks.size
        return blocks

    def clear(self) -> Ids:
        """Forget every name: returns the head blocks of cached rows, and of faded ones the windowed ones."""
        held = [row for row in self.faded.parts if self.references[row]] if self.faded else []
        parts = self.hollow_out(held)
        return np.concatenate([parts, self.drop(np.array(self.cache.clear(), dtype=np.int32))])

    def _fade(self, rows: list[int], stamp: Stamp) -> Ids:
        """Nobody sees them any more. What a prompt could find stays until it is taken, the deepest row first:
        the beginning of a chain is of use without the rest. Of rows without a name the blocks are returned.
        """
        if not (self.faded and rows):
            return _NONE
        registered = self.cache.registered
        for row in self.cache.deepest_first([row for row in rows if registered[row]]):
            self.faded.parts.setdefault(row, stamp)
        return self.hollow_out([row for row in rows if not registered[row]])

    # ---- checks -----------------------------------------------------------------------------------------

    def _passed(self, rows: int) -> int:
        """Of the first ``rows`` of a sequence, those that what comes behind them does not see."""
        assert self.faded
        return self.faded.windowed.passed(rows * self.row_tokens, self.row_tokens)

    def _views(self, row_ids: Ids, passed: int) -> tuple[Ids, Ids]:
        """Distinct rows that whoever releases ``row_ids`` sees, all but the first ``passed``, and how often
        each is listed. LedgerError where those have not been passed so often, or the others have."""
        if not self.faded:
            if passed:
                raise LedgerError(f"model {self.name}: {passed} rows passed, but no layer has a window")
            return _NONE, _NONE
        gone, times = self._listed(row_ids[:passed])
        if (wrong := self.faded.short(gone, times, self.references, passed=True)).size:
            raise LedgerError(f"model {self.name}: release of row {wrong[0]}, which was not passed so often")
        seen, times = self._listed(row_ids[passed:])
        self._check_seen(self.faded, seen, times, "release")
        return seen, times

    def _check_seen(self, faded: Faded, rows: Ids, times: Ids, verb: str) -> None:
        if (wrong := faded.short(rows, times, self.references, passed=False)).size:
            raise LedgerError(f"model {self.name}: {verb} of row {wrong[0]}, which was passed already")

    def _held(self, row_ids: Ids, verb: str) -> tuple[Ids, Ids]:
        """Distinct rows and how often each is listed; LedgerError unless all are held."""
        rows, times = self._listed(row_ids)
        if rows.size and (rows[0] < 0 or rows[-1] >= self.max_rows):
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise LedgerError(f"model {self.name}: {verb} of row {wrong}, but ids end at {self.max_rows - 1}")
        if (unheld := rows[self.references[rows] == 0]).size:
            raise LedgerError(f"model {self.name}: {verb} of row {unheld[0]}, which is not held")
        return rows, times

    @staticmethod
    def _listed(row_ids: Ids) -> tuple[Ids, Ids]:
        """Distinct rows and how often each is listed."""
        rows, times = np.unique(np.asarray(row_ids, dtype=np.int32), return_counts=True)
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
        there = np.broadcast_to(used[:, None], self.table.shape).copy()
        if self.faded:
            there[np.ix_(self.faded.hollow, self.faded.columns)] = False
            found += self.faded.faults(self.references, set(self.cache.idle), self.cache.registered)
        if self.owned != there.sum() or ((self.table >= 0) != there).any():
            found.append(f"owns {self.owned} blocks, and its rows should have {there.sum()}")
        return [f"model {self.name}: {fault}" for fault in [*found, *self.cache.faults()]]
