"""Of one model with windows: who still sees which row in its windowed layers, and what may be taken of rows.

Owned by ``pool.account``. Every holder of a row sees it until it says that it has passed it. A held row that
nobody sees is *faded*: its holders need its windowed blocks no more. While it has a name they stay, in
``parts``, for a prompt that branches off there; once they are taken the row is *hollow*. A cached row has its
windowed blocks with it, unless it was faded or hollow before.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from muxd.pool.cache import Stamp
from muxd.pool.windowed import Windowed

Ids = NDArray[np.int32]


class Faded:
    """``references`` of the account count holders; ``seers`` those of them that have not passed the row."""

    def __init__(self, windowed: Windowed, max_rows: int):
        self.windowed = windowed
        self.columns: Ids = np.array(windowed.columns, np.int32)
        self.blocks = len(windowed.columns)  # of a row
        self.seers: Ids = np.zeros(max_rows, np.int32)
        self.hollow: NDArray[np.bool_] = np.zeros(max_rows, np.bool_)
        self.unseen = 0  # held rows without seers
        self.parts: OrderedDict[int, Stamp] = OrderedDict()  # rows to be hollowed out, the next one first

    def whole(self, chain: list[int], row_tokens: int) -> int:
        """The most of a chain's first rows behind which a sequence can go on: the window before it is
        there."""
        count = len(chain)
        for hole in np.flatnonzero(self.hollow[np.array(chain, dtype=np.int32)])[::-1].tolist():
            if hole < self.windowed.passed(count * row_tokens, row_tokens):
                break
            count = hole
        return count

    def revived(self, late: Ids, references: Ids) -> int:
        """How many of ``late`` are faded, and are not when somebody sees them again."""
        return int(((self.seers[late] == 0) & (references[late] > 0)).sum())

    def adopt(self, early: Ids, late: Ids, references: Ids) -> list[int]:
        """One more holder of each row, who sees only ``late``; ``references`` are those before. Returns rows
        that are faded now and have their windowed blocks."""
        fresh = early[references[early] == 0]
        self.unseen += fresh.size - self.revived(late, references)
        self.seers[late] += 1
        for row in late.tolist():
            self.parts.pop(row, None)
        faded: list[int] = fresh[~self.hollow[fresh]].tolist()
        return faded

    def leave(self, rows: Ids, times: Ids, freed: Ids) -> list[int]:
        """So many seers less of ``rows``; ``freed`` have no holder any more. Returns rows that are faded
        now."""
        self.unseen -= int((self.seers[freed] == 0).sum())
        self.seers[rows] -= times
        unseen = rows[self.seers[rows] == 0]
        left: list[int] = np.setdiff1d(unseen, freed, assume_unique=True).tolist()
        self.unseen += len(left)
        return left

    def short(self, rows: Ids, times: Ids, references: Ids, *, passed: bool) -> Ids:
        """Those of ``rows`` that fewer than ``times`` holders see, or with ``passed`` have passed."""
        there = references[rows] - self.seers[rows] if passed else self.seers[rows]
        return rows[there < times]

    def forget(self, rows: Ids) -> None:
        """Their ids are unused from now on."""
        for row in rows.tolist():
            self.parts.pop(row, None)
        self.hollow[rows] = False

    def faults(self, references: Ids, idle: set[int], registered: NDArray[np.bool_]) -> list[str]:
        """What is wrong in here, for the audit."""
        found = []
        unseen = (references > 0) & (self.seers == 0)
        fading = set(np.flatnonzero(unseen).tolist())
        if ((self.seers < 0) | (self.seers > references)).any():
            found.append("a row has more seers than holders")
        if len(fading) != self.unseen:
            found.append(f"counts {self.unseen} faded rows, {len(fading)} are")
        parts = np.array(list(self.parts), dtype=np.int32)
        if (self.hollow[parts] | (self.seers[parts] > 0) | ~registered[parts]).any():
            found.append("a row is to be hollowed out that is seen, hollow or without a name")
        if not set(np.flatnonzero(unseen & ~self.hollow).tolist()) <= self.parts.keys() <= fading | idle:
            found.append("the rows to be hollowed out are not all faded ones and some cached ones")
        if (self.hollow & (self.seers > 0)).any():
            found.append("a row is hollow and seen")
        stamps = list(self.parts.values())
        if stamps != sorted(stamps):
            found.append("rows to be hollowed out are out of order")
        return found
