"""The pool as one model's worker sees it: head blocks, the row table, and one bounded gather scratch.

Used by ``muxd.worker.host_step`` and ``muxd.worker.attend``. The pool is the only home of K and V; the
scratch holds what one layer of one group of sequences attends to, and is overwritten by the next.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels.head_blocks import HeadBlocks
from muxd.messages import NewRows
from muxd.models.spec import ModelSpec
from muxd.worker.rows import KnownRows


class PagedKv:
    """Row table and block views of one model. ``pool``: uint8 [bytes], mapped from the daemon."""

    def __init__(
        self,
        spec: ModelSpec,
        pool: Tensor,
        block_bytes: int,
        max_rows: int,
        dtype: torch.dtype,
        kept: torch.dtype | None = None,
    ):
        """``dtype``: what is computed with; ``kept``: what lies in the pool, the same unless given."""
        kept = kept or dtype
        spec.tokens_per_row(block_bytes, kept.itemsize)  # refuses blocks that hold no token
        self.spec, self.dtype = spec, dtype
        self.blocks = HeadBlocks(pool, block_bytes, spec.head_dim, dtype, kept)
        self.tokens = self.blocks.tokens  # T
        self.table = torch.zeros((max_rows, spec.layers, spec.kv_heads), dtype=torch.int32)
        self._known = KnownRows(max_rows, spec.blocks_per_row, self.blocks.slots.shape[0])
        self._scratch = torch.empty(0, dtype=dtype)

    def learn(self, new: NewRows) -> None:
        """Append rows to the table. Raises ValueError for ids or blocks outside pool and table."""
        if (told := self._known.learn(new)) is None:
            return
        ids, blocks = told
        shape = (len(ids), self.spec.layers, self.spec.kv_heads)
        self.table[torch.from_numpy(ids.astype(np.int64))] = torch.from_numpy(blocks.reshape(shape).copy())

    def take(self, rows: list[int], clear_from: int) -> None:
        """Rows join a sequence; those from index ``clear_from`` on are zeroed: nothing has filled them yet.

        Raises ValueError for a row whose head blocks were never sent.
        """
        ids = self._known.check(rows)
        if len(ids) > clear_from:
            self.blocks.clear(self.table[torch.from_numpy(ids[clear_from:])].flatten().long())

    def write_places(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Where n tokens' K and V go: blocks [layers, n, 2 · kv_heads] and slots [n, 2 · kv_heads]."""
        blocks = self.table[torch.from_numpy(rows)].permute(1, 0, 2).long()  # [layers, n, kv_heads]
        slot = torch.from_numpy(positions % self.tokens)[:, None].expand(-1, self.spec.kv_heads)
        return torch.cat((blocks, blocks), -1), torch.cat((slot, slot + self.tokens), -1)

    def gather_places(self, rows: NDArray[np.int64]) -> Tensor:
        """Blocks of rows [b, s], for gathering: int32 [layers, b · kv_heads · s]."""
        blocks = self.table[torch.from_numpy(rows)].permute(2, 0, 3, 1)  # [layers, b, kv_heads, s]
        return blocks.reshape(self.spec.layers, -1)

    def scratch(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Room for the keys and the values of ``blocks`` head blocks, each [blocks, T · head_dim]."""
        half = blocks * self.tokens * self.spec.head_dim
        if self._scratch.numel() < 2 * half:
            self._scratch = torch.empty(2 * half, dtype=self.dtype)
        keys, values = self._scratch[:half], self._scratch[half : 2 * half]
        return keys.view(blocks, -1), values.view(blocks, -1)
