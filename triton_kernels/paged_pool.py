"""Where K and V of one model lie on the device: head blocks, and the row table that names them.

A block of (row, layer, KV head) is ``table[row, layer · kv_heads + head]``; inside it K [T, head_dim] comes
first, then V [T, head_dim], and token t of a sequence is slot t mod T of its (t div T)-th row. T need not be
a power of two. A batch names its rows as ``rows`` int32 [b, width], one line a sequence, so a step needs
neither a host loop nor an upload that grows with the context.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from muxd.kernels.float8 import FLOAT8


@dataclass(frozen=True, slots=True)
class PagedPool:
    """One model's view of the pool and its row table, both on the device that computes."""

    blocks: Tensor  # [count, elements of one block], the type of K and V
    table: Tensor  # int32 [max_rows, layers · kv_heads]
    kv_heads: int
    head_dim: int

    @classmethod
    def over(
        cls, memory: Tensor, block_bytes: int, table: Tensor, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> Self:
        """View ``memory`` (uint8 [bytes]) as blocks of ``block_bytes``; a rest at its end stays unused.

        Raises ValueError when a block holds no token or is no whole number of 16-byte loads.
        """
        if block_bytes % 16 or block_bytes // (2 * head_dim * dtype.itemsize) == 0:
            raise ValueError(f"a block of {block_bytes} bytes does not fit head_dim {head_dim}")
        whole = memory.numel() // block_bytes * block_bytes
        blocks = memory[:whole].view(dtype).view(-1, block_bytes // dtype.itemsize)
        return cls(blocks, table, kv_heads, head_dim)

    @property
    def block_elements(self) -> int:
        """Elements from one block to the next."""
        return self.blocks.shape[1]

    @property
    def tokens(self) -> int:
        """T, tokens of one KV head in a block."""
        return self.block_elements // (2 * self.head_dim)

    def slots(self) -> Tensor:
        """[count, 2 · T, head_dim]: keys in slots [0, T), values in [T, 2 · T)."""
        used = self.blocks[:, : 2 * self.tokens * self.head_dim]
        return used.view(-1, 2 * self.tokens, self.head_dim)

    def seen(self, layer: int, rows: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, stop, head_dim] of one sequence, gathered in float32 (references)."""
        used = rows[: -(-stop // self.tokens)].long()
        first = layer * self.kv_heads
        places = self.table[used, first : first + self.kv_heads].long()  # [rows, kv_heads]
        slots = self.slots()
        if slots.dtype is FLOAT8:  # not every torch indexes it
            both = slots.view(torch.uint8)[places].view(slots.dtype).float()
        else:
            both = slots[places].float()  # [rows, kv_heads, 2 T, head_dim]
        both = both.transpose(0, 1)
        keys, values = both[:, :, : self.tokens], both[:, :, self.tokens :]
        return keys.flatten(1, 2)[:, :stop], values.flatten(1, 2)[:, :stop]
