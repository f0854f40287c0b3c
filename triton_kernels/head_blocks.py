"""The pool's head blocks as tensors: where K and V of one KV head lie, written and gathered by block id.

Inside a block K [T, head_dim] comes first, then V [T, head_dim]; of heads twice as wide as the model's others
each has a block of its own (``row_layout``). What is left at a block's end stays unused.
"""

import torch
from torch import Tensor

from muxd.kernels.float8 import FLOAT8, Unpacked, packed


class HeadBlocks:
    """Views of a pool for a model's heads of one size. ``pool``: uint8 [bytes], on the device that computes.

    ``dtype``: what is computed with. ``kept``: what lies in the pool: the same, or float8_e4m3fn, which is
    handled as bytes. ``width``: blocks of a head, see ``row_layout.LayerRows``.
    """

    def __init__(
        self,
        pool: Tensor,
        block_bytes: int,
        head_dim: int,
        dtype: torch.dtype,
        kept: torch.dtype | None = None,
        width: int = 1,
    ):
        self._unpacked = Unpacked(dtype) if kept is FLOAT8 else None
        dtype = torch.uint8 if kept is FLOAT8 else dtype
        elements = block_bytes // dtype.itemsize
        self.tokens = elements * width // (2 * head_dim)  # T
        self.head_dim = head_dim
        typed = pool[: pool.numel() // block_bytes * block_bytes].view(dtype).view(-1, elements)
        half = self.tokens * head_dim
        used = typed[:, : 2 * half // width]
        self.slots = used.view(typed.shape[0], 2 * self.tokens // width, head_dim)
        self.keys, self.values = used[:, :half], used[:, -half:]  # [blocks, T · head_dim]

    def write(self, blocks: Tensor, slots: Tensor, kv: Tensor) -> None:
        """Store ``kv`` [n, 2 · kv_heads, head_dim], keys first; ``blocks``, ``slots`` [n, 2 · kv_heads].

        A slot counts tokens inside a block; values start where ``row_layout.LayerRows.value_slot`` says.
        """
        self.slots.index_put_((blocks, slots), kv if self._unpacked is None else packed(kv))

    def as_kept(self, kv: Tensor) -> Tensor:
        """``kv`` as it is read back once it is written."""
        if self._unpacked is None:
            return kv
        self._unpacked(packed(kv), out := torch.empty_like(kv, memory_format=torch.contiguous_format))
        return out

    def gather(self, blocks: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> None:
        """Copy the blocks of keys and those of values, [m] each, into ``keys`` and ``values``, each
        [m, T · head_dim]."""
        for kept, at, out in ((self.keys, blocks[0], keys), (self.values, blocks[1], values)):
            if self._unpacked is None:
                torch.index_select(kept, 0, at, out=out)
            else:
                self._unpacked(torch.index_select(kept, 0, at), out)

    def clear(self, blocks: Tensor) -> None:
        """Zero whole blocks: what another model left there could read as NaN, which no mask removes."""
        self.slots.index_fill_(0, blocks, 0)
