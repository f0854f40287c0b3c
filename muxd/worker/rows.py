"""Which rows this worker may use: those whose head blocks the daemon has sent; and which token ids there are.
Checked on the host, always.

A row, block or token outside its table is another's memory on a CPU and the end of every worker on a GPU.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muxd.messages import NewRows

Ids = NDArray[np.int32]


class KnownRows:
    """``per_row`` head blocks a row, of a pool of ``blocks``; row ids in [0, ``max_rows``)."""

    def __init__(self, max_rows: int, per_row: int, blocks: int):
        self._known = np.zeros(max_rows, dtype=np.bool_)
        self._per_row, self._blocks = per_row, blocks

    def learn(self, new: NewRows) -> tuple[Ids, Ids] | None:
        """Row ids [k] and their head blocks [k, per_row]; None when nothing is new. Raises ValueError."""
        ids = np.frombuffer(new.ids, dtype="<i4")
        if not len(ids):
            return None
        blocks = np.frombuffer(new.blocks, dtype="<i4").reshape(len(ids), -1)
        if blocks.shape[1] != self._per_row or blocks.min() < 0 or blocks.max() >= self._blocks:
            raise ValueError(f"new rows need {self._per_row} head blocks each, ids below {self._blocks}")
        if ids.min() < 0 or ids.max() >= len(self._known):
            raise ValueError(f"row ids must lie in [0, {len(self._known)})")
        self._known[ids] = True
        return ids, blocks

    def check(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """The same ids. Raises ValueError for a row whose head blocks were never sent."""
        ids = np.asarray(rows, dtype=np.int64)
        inside = (ids >= 0) & (ids < len(self._known))  # a negative one would count from the end
        known = inside & self._known[np.where(inside, ids, 0)]
        if not known.all():
            raise ValueError(f"rows {ids[~known].tolist()} were never named in NewRows")
        return ids


def check_tokens(ids: NDArray[np.int32] | NDArray[np.int64], vocab: int) -> None:
    """Raises ValueError for an id that has no row in the embedding: it would be read behind its end."""
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab):
        raise ValueError(f"token ids must lie in [0, {vocab})")
