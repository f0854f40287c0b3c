"""The pool as one model's worker sees it: head blocks, the row table, and one bounded gather scratch.

Used by ``muxd.worker.host_step`` and ``muxd.worker.attend``. The pool is the only home of K and V; the
scratch holds what one layer of one group of sequences attends to, and is overwritten by the next.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels.head_blocks import HeadBlocks
from muxd.messages import NewRows
from muxd.models.spec import ModelSpec
from muxd.worker.rows import KnownRows
from muxd.worker.states import SequenceStates


class Writes(NamedTuple):
    """Where a batch's n tokens go, in all layers."""

    blocks: Tensor  # int64 [n, blocks of a row]
    slots: Tensor  # int64 [n, 1]: of a token in its row


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
        self.tokens = spec.tokens_per_row(block_bytes, kept.itemsize)  # T; refuses blocks that hold no token
        self.spec, self.dtype, self.layout = spec, dtype, spec.row_layout
        # Of layers whose keys and values others read: where they begin in a row.
        self.shared = {one.first for one in self.layout.layers if one.kv_heads and not one.own}
        self._blocks = {
            size: HeadBlocks(pool, block_bytes, size[0], dtype, kept, size[1])
            for size in {(one.head_dim, one.width) for one in self.layout.layers if one.kv_heads}
        }
        self.table = torch.zeros((max_rows, spec.blocks_per_row), dtype=torch.int32)
        self._bytes = pool[: pool.numel() // block_bytes * block_bytes].view(-1, block_bytes)
        self._known = KnownRows(max_rows, spec.blocks_per_row, pool.numel() // block_bytes)
        self._scratch = torch.empty(0, dtype=dtype)
        self.states = SequenceStates(spec.delta, pool, block_bytes, self.table) if spec.delta else None

    def blocks(self, layer: int) -> HeadBlocks:
        """The pool as the heads of ``layer`` lie in it."""
        at = self.layout.layers[layer]
        return self._blocks[at.head_dim, at.width]

    def learn(self, new: NewRows) -> None:
        """Append rows to the table. Raises ValueError for ids or blocks outside pool and table."""
        if (told := self._known.learn(new)) is None:
            return
        ids, blocks = told
        self.table[torch.from_numpy(ids.astype(np.int64))] = torch.from_numpy(blocks.copy())

    def take(self, rows: list[int], clear_from: int) -> None:
        """Rows join a sequence; those from index ``clear_from`` on are zeroed: nothing has filled them yet.

        Raises ValueError for a row whose head blocks were never sent.
        """
        ids = self._known.check(rows)
        if len(ids) > clear_from:
            every = next(iter(self._blocks.values()))  # whose whole blocks are the same of all sizes
            every.clear(self.table[torch.from_numpy(ids[clear_from:])].flatten().long())

    def copy(self, rows: list[int], into: list[int]) -> None:
        """The blocks of ``rows``, which were checked, into those of as many others."""
        for row, other in zip(rows, into, strict=True):  # a row at a time: whole states are large
            self._bytes[self.table[other].long()] = self._bytes[self.table[row].long()]

    def writes(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> Writes:
        """Where n tokens' K and V go: each its row, and its position in its sequence."""
        slots = torch.from_numpy(positions % self.tokens)[:, None]
        return Writes(self.table[torch.from_numpy(rows)].long(), slots)

    def write(self, layer: int, to: Writes, kv: Tensor) -> None:
        """Store ``kv`` [n, 2 · kv_heads, head_dim], keys first."""
        at = self.layout.layers[layer]
        blocks = torch.cat((to.blocks[:, at.keys], to.blocks[:, at.values]), 1)
        slots = to.slots.expand(-1, at.kv_heads)
        self.blocks(layer).write(blocks, torch.cat((slots, slots + at.value_slot(self.tokens)), 1), kv)

    def gathering(self, rows: NDArray[np.int64]) -> Tensor:
        """Blocks of rows [b, s] in all layers, for ``gather``: int32 [b, blocks of a row, s]."""
        return self.table[torch.from_numpy(rows)].transpose(1, 2).contiguous()

    def gather(self, layer: int, blocks: Tensor, keys: Tensor, values: Tensor) -> None:
        """Copy a layer's blocks, of each sequence its heads after each other, into scratch of as many."""
        at = self.layout.layers[layer]
        of_keys = blocks[:, at.keys].reshape(-1)
        of_values = of_keys if at.width == 1 else blocks[:, at.values].reshape(-1)
        self.blocks(layer).gather((of_keys, of_values), keys, values)

    def scratch(self, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Room for the keys and the values of ``heads`` times T tokens, each [heads, T · head_dim]."""
        half = heads * self.tokens * head_dim
        if self._scratch.numel() < 2 * half:
            self._scratch = torch.empty(2 * half, dtype=self.dtype)
        keys, values = self._scratch[:half], self._scratch[half : 2 * half]
        return keys.view(heads, -1), values.view(heads, -1)
