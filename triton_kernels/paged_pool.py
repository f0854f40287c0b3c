"""Where K and V of one model lie on the device: head blocks, and the row table that names them.

A block of (row, layer, KV head) is ``table[row, first + head]``, where ``first`` is the layer's
(``row_layout``); inside it K [T, head_dim] comes first, then V [T, head_dim], and token t of a sequence is
slot t mod T of its (t div T)-th row. Of heads twice as wide K is in block ``first + 2 · head`` and V in the
next one. T need not be a power of two. A batch names its rows as ``rows`` int32 [b, width], one line a
sequence, so a step needs neither a host loop nor an upload that grows with the context.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from muxd.kernels.float8 import FLOAT8
from muxd.kernels.row_layout import LayerRows, RowLayout


@dataclass(frozen=True, slots=True)
class PagedPool:
    """One model's view of the pool and its row table, both on the device that computes."""

    blocks: Tensor  # [count, elements of one block], the type of K and V
    table: Tensor  # int32 [max_rows, blocks of a row]
    layout: RowLayout

    @classmethod
    def over(
        cls, memory: Tensor, block_bytes: int, table: Tensor, layout: RowLayout, dtype: torch.dtype
    ) -> Self:
        """View ``memory`` (uint8 [bytes]) as blocks of ``block_bytes``; a rest at its end stays unused.

        Raises ValueError when a block holds no token or is no whole number of 16-byte loads.
        """
        if block_bytes % 16 or block_bytes // (2 * layout.head_dim * dtype.itemsize) == 0:
            raise ValueError(f"a block of {block_bytes} bytes does not fit head_dim {layout.head_dim}")
        whole = memory.numel() // block_bytes * block_bytes
        blocks = memory[:whole].view(dtype).view(-1, block_bytes // dtype.itemsize)
        return cls(blocks, table, layout)

    @property
    def block_elements(self) -> int:
        """Elements from one block to the next."""
        return self.blocks.shape[1]

    @property
    def tokens(self) -> int:
        """T, tokens of one KV head in a block."""
        return self.block_elements // (2 * self.layout.head_dim)

    def layer(self, layer: int) -> LayerRows:
        """Where in a row the keys and values of ``layer`` lie."""
        return self.layout.layers[layer]

    def slots(self, layer: int) -> Tensor:
        """[count, slots, head_dim] as the heads of ``layer`` lie: keys in slots [0, T), values in [T, 2 · T),
        or one of both in a block of T."""
        at, tokens = self.layer(layer), self.tokens
        used = self.blocks[:, : 2 * tokens * self.layout.head_dim]
        return used.view(-1, 2 * tokens // at.width, at.head_dim)

    def seen(self, layer: int, rows: Tensor, stop: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, stop - start, head_dim] of one sequence, gathered in float32
        (references). Rows before that of ``start`` are not read."""
        at, tokens = self.layer(layer), self.tokens
        begin = start // tokens
        used = rows[begin : -(-stop // tokens)].long()
        found, slots = [], self.slots(layer)
        for columns, slot in ((at.keys, 0), (at.values, at.value_slot(tokens))):
            places = self.table[used][:, columns].long()  # [rows, kv_heads]
            if slots.dtype is FLOAT8:  # not every torch indexes it
                whole = slots.view(torch.uint8)[places].view(slots.dtype).float()
            else:
                whole = slots[places].float()  # [rows, kv_heads, slots, head_dim]
            part = whole[:, :, slot : slot + tokens].transpose(0, 1)
            found.append(part.flatten(1, 2)[:, start - begin * tokens : stop - begin * tokens])
        return found[0], found[1]
