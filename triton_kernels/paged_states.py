"""Where the states of one model's layers lie on the device: blocks of the pool, read as float32, and the row
table that names them.

A sequence's state is the blocks of its state rows, one after another: its block j is
``table[rows[j // w], j % w]``, w blocks a row. In them, for each layer that keeps a state, the heads, then
the inputs of the convolution's last tokens (``muxd.models.state_layout`` says where each begins). A state
[key_dim, value_dim] lies in whole lines, as many in a block as fit; those inputs [kernel - 1, channels],
oldest first, are one array that is cut into blocks.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from muxd.kernels.launch import ceil_div
from muxd.kernels.paged_pool import PagedPool


@dataclass(frozen=True, slots=True)
class PagedStates:
    """One model's view of the pool and its row table, both on the device that computes."""

    floats: Tensor  # float32 [count, floats of one block]
    table: Tensor  # int32 [max_rows, blocks of a row]
    key_dim: int
    value_dim: int

    @classmethod
    def over(cls, pool: PagedPool, key_dim: int, value_dim: int) -> Self:
        """The same blocks and rows, whatever K and V are kept in."""
        return cls(pool.blocks.view(torch.float32), pool.table, key_dim, value_dim)

    @property
    def block_floats(self) -> int:
        """Floats from one block to the next."""
        return self.floats.shape[1]

    @property
    def lines(self) -> int:
        """Of a head's state, in one block."""
        return self.block_floats // self.value_dim

    @property
    def head_blocks(self) -> int:
        """Blocks of one head's state."""
        return ceil_div(self.key_dim, self.lines)

    def blocks(self, rows: Tensor, first: int, count: int) -> Tensor:
        """Which blocks, [count], of the state of a sequence with state ``rows`` (references)."""
        at = torch.arange(first, first + count, device=rows.device)
        return self.table[rows[at // self.table.shape[1]].long(), at % self.table.shape[1]].long()

    def heads(self, rows: Tensor, first: int, heads: int) -> tuple[Tensor, Tensor]:
        """Blocks [heads · head_blocks] that hold the heads from ``first`` on, and a copy of what they hold,
        float32 [heads, key_dim, value_dim] (references)."""
        where, used = self.blocks(rows, first, heads * self.head_blocks), self.lines * self.value_dim
        lines = self.floats[where, :used].view(heads, -1, self.value_dim)
        return where, lines[:, : self.key_dim].clone()

    def put_heads(self, where: Tensor, state: Tensor) -> None:
        """The other way."""
        heads, used = state.shape[0], self.lines * self.value_dim
        held = self.floats[where, :used]
        held.view(heads, -1, self.value_dim)[:, : self.key_dim] = state
        self.floats[where, :used] = held

    def tail(self, rows: Tensor, first: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The same of the convolution's inputs, which begin at block ``first``: float32 ``shape``."""
        size = shape[0] * shape[1]
        where = self.blocks(rows, first, ceil_div(size, self.block_floats))
        return where, self.floats[where].flatten()[:size].view(shape).clone()

    def put_tail(self, where: Tensor, tail: Tensor) -> None:
        """The other way."""
        held = self.floats[where].flatten()
        held[: tail.numel()] = tail.flatten()
        self.floats[where] = held.view(-1, self.block_floats)
