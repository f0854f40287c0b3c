"""Which part of a row layers with a window have, and how far those see. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

_MOST = 4  # rows with an id, for each that is whole


@dataclass(frozen=True, slots=True)
class Windowed:
    """``columns`` of a row are head blocks of layers in which a token sees itself and at most ``tokens`` - 1
    before it: the largest window, where a model has several."""

    tokens: int
    columns: tuple[int, ...]

    @classmethod
    def of(cls, windows: Sequence[int | None], blocks: Sequence[int]) -> Self | None:
        """Of a model whose layers have these windows (tokens; None: the layer sees everything) and so many
        head blocks of a row, one layer's after another's. None where no layer with a window has any."""
        ends = np.cumsum(blocks).tolist()
        columns: list[int] = []
        tokens = 0
        for window, end, count in zip(windows or (None,) * len(blocks), ends, blocks, strict=True):
            if window is not None and count:
                columns += range(end - count, end)
                tokens = max(tokens, window)
        return cls(tokens, tuple(columns)) if columns else None

    def passed(self, computed: int, row_tokens: int) -> int:
        """Of a sequence, its first rows that no token from position ``computed`` on sees in those layers, nor
        one behind its last full row: who goes on there later, with the rows that have names, needs those."""
        return max(0, computed // row_tokens * row_tokens + 1 - self.tokens) // row_tokens


def row_ids(blocks: int, width: int, windowed: Windowed | None) -> int:
    """How many rows of ``width`` a model can have in ``blocks`` head blocks, most of them hollow; at most 4
    times as many as whole ones, for a worker's table has a number for each block of each."""
    narrow = width - (len(windowed.columns) if windowed is not None else 0)
    return min(blocks // max(1, narrow), _MOST * (blocks // width))
