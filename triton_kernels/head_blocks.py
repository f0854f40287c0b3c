"""The pool's head blocks as tensors: where K and V of one KV head lie, written and gathered by block id.

Inside a block K [T, head_dim] comes first, then V [T, head_dim]; what is left at a block's end stays unused.
"""

import torch
from torch import Tensor


class HeadBlocks:
    """Views of a pool for one model. ``pool``: uint8 [bytes], on the device that computes."""

    def __init__(self, pool: Tensor, block_bytes: int, head_dim: int, dtype: torch.dtype):
        elements = block_bytes // dtype.itemsize
        self.tokens = elements // (2 * head_dim)  # T
        self.head_dim = head_dim
        typed = pool[: pool.numel() // block_bytes * block_bytes].view(dtype).view(-1, elements)
        count = typed.shape[0]
        half = self.tokens * head_dim
        self.slots = typed[:, : 2 * half].view(count, 2 * self.tokens, head_dim)
        self.keys, self.values = typed[:, :half], typed[:, half : 2 * half]  # [blocks, T · head_dim]

    def write(self, blocks: Tensor, slots: Tensor, kv: Tensor) -> None:
        """Store ``kv`` [n, 2 · kv_heads, head_dim], keys first; ``blocks``, ``slots`` [n, 2 · kv_heads].

        A slot counts tokens inside a block; values start at slot T.
        """
        self.slots.index_put_((blocks, slots), kv)

    def gather(self, blocks: Tensor, keys: Tensor, values: Tensor) -> None:
        """Copy blocks [m] into ``keys`` and ``values``, each [m, T · head_dim]."""
        torch.index_select(self.keys, 0, blocks, out=keys)
        torch.index_select(self.values, 0, blocks, out=values)

    def clear(self, blocks: Tensor) -> None:
        """Zero whole blocks: what another model left there could read as NaN, which no mask removes."""
        self.slots.index_fill_(0, blocks, 0)
