"""The rows of one model that hold a known prefix, and the order in which those nobody holds are given up.

Owned by ``pool.account``. Rows of one model cost the same, so between them plain LRU is right; what a row
of one model is worth beside a row of another is decided in ``pool.ledger`` with the stamps kept here.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Stamp(NamedTuple):
    """When a row was last given back: the ledger's inflation then, and the number of that call."""

    level: float
    call: int


class _Entry(NamedTuple):
    key: bytes
    parent: bytes | None  # key of the row before it in the chain
    depth: int  # rows before it


class Cache:
    """Registered rows: held ones and idle ones (without references, kept for whoever asks next).

    Of every idle row the whole chain before it is registered, and its idle ancestors are given up after it:
    chains shrink from the tail, and nothing is kept that no match could find.
    """

    def __init__(self, max_rows: int):
        self.registered: NDArray[np.bool_] = np.zeros(max_rows, np.bool_)  # by row id
        self.idle: OrderedDict[int, Stamp] = OrderedDict()  # row ids, next to go first
        self._rows: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Rows of the longest known prefix of the chain."""
        found = []
        for key in keys:
            if (row := self._rows.get(key)) is None:
                break
            found.append(row)
        return found

    def row_of(self, key: bytes) -> int | None:
        """Which row holds what the key names."""
        return self._rows.get(key)

    def key_of(self, row: int) -> bytes | None:
        """What the row is registered under."""
        entry = self._entries.get(row)
        return entry.key if entry else None

    def register(self, row: int, keys: Sequence[bytes], depth: int) -> None:
        """``row`` holds what ``keys[depth]`` names. When another row does already, that one stays the one."""
        key = keys[depth]
        if self._rows.setdefault(key, row) == row:
            self._entries[row] = _Entry(key, keys[depth - 1] if depth else None, depth)
            self.registered[row] = True

    def keep(self, rows: Iterable[int], stamp: Stamp) -> list[int]:
        """Registered rows whose last reference has gone. Returns those not worth keeping, forgotten here:
        some row before them is gone, no match could reach them."""
        whole: set[bytes] = set()
        lost = []
        for row in sorted(rows, key=lambda row: self._entries[row].depth):
            if self._reach(self._entries[row].key, whole):
                self.idle[row] = stamp
            else:
                self._forget(row)
                lost.append(row)
        touched = [row for row in (self._rows[key] for key in whole) if row in self.idle]
        for row in self.deepest_first(touched):
            self.idle[row] = stamp
            self.idle.move_to_end(row)
        return lost

    def deepest_first(self, rows: Iterable[int]) -> list[int]:
        """Registered rows, each before those that its chain needs."""
        return sorted(rows, key=lambda row: (-self._entries[row].depth, row))

    def forget(self, row: int) -> bool:
        """Another row gets its name. True: nobody held it."""
        self._forget(row)
        return self.idle.pop(row, None) is not None

    def idle_among(self, rows: Iterable[int]) -> int:
        """How many of ``rows`` nobody holds."""
        return sum(row in self.idle for row in rows)

    def revive(self, rows: Iterable[int]) -> None:
        """Somebody holds them again."""
        for row in rows:
            self.idle.pop(row, None)

    def pop(self) -> int:
        """Give up the idle row whose turn it is."""
        row, _ = self.idle.popitem(last=False)
        self._forget(row)
        return row

    def clear(self) -> list[int]:
        """Forget every key; returns the rows that were idle."""
        rows = list(self.idle)
        self.registered[:] = False
        self.idle.clear()
        self._rows.clear()
        self._entries.clear()
        return rows

    def _reach(self, key: bytes | None, whole: set[bytes]) -> bool:
        """Whether the chain up to ``key`` is registered; if so its keys join ``whole``."""
        path = []
        while key is not None and key not in whole:
            row = self._rows.get(key)
            if row is None:
                return False
            path.append(key)
            key = self._entries[row].parent
        whole.update(path)
        return True

    def _forget(self, row: int) -> None:
        del self._rows[self._entries.pop(row).key]
        self.registered[row] = False

    def faults(self) -> list[str]:
        """What is wrong in here, for the audit."""
        found = []
        marked = np.flatnonzero(self.registered).tolist()
        if marked != sorted(self._entries) or {r: e.key for r, e in self._entries.items()} != {
            row: key for key, row in self._rows.items()
        }:
            found.append("index and registered rows disagree")
        if not self.idle.keys() <= self._entries.keys():
            return [*found, f"idle rows without a key: {sorted(self.idle.keys() - self._entries.keys())[:8]}"]
        stamps = list(self.idle.values())
        if stamps != sorted(stamps):
            found.append("idle rows out of order")
        return found + self._broken_chains()

    def _broken_chains(self) -> list[str]:
        seen: set[int] = set()
        whole: set[bytes] = set()
        for row in self.idle:
            seen.add(row)
            if not self._reach(self._entries[row].key, whole):
                return [f"idle row {row} cannot be reached: a row before it is gone"]
            if (above := self._idle_above(row)) in seen:
                return [f"idle row {above} would be given up before row {row}, which needs it"]
        return []

    def _idle_above(self, row: int) -> int | None:
        """The nearest idle ancestor of a row whose chain is whole."""
        parent = self._entries[row].parent
        while parent is not None and (above := self._rows[parent]) not in self.idle:
            parent = self._entries[above].parent
        return None if parent is None else above
