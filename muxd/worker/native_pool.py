"""The pool as the native step reads it: the row table, and where head blocks lie."""

import ctypes

import numpy as np
import torch
from torch import Tensor

from muxd.kernels.native import KEPT, PoolFields
from muxd.messages import NewRows, Setup, kv_item_bytes
from muxd.models.spec import ModelSpec
from muxd.worker.rows import KnownRows


class NativePool:
    """Row table of one model over ``memory``, uint8 [bytes]. Blocks need no clearing: the step reads no token
    that it has not written."""

    def __init__(self, spec: ModelSpec, setup: Setup, memory: Tensor, max_rows: int):
        item = kv_item_bytes(setup.dtype, setup.kv_dtype)
        self.tokens = spec.tokens_per_row(setup.block_bytes, item)
        self._memory, self._block_bytes = memory, setup.block_bytes
        self._table = np.zeros((max_rows, spec.blocks_per_row), dtype=np.int32)
        self._known = KnownRows(max_rows, spec.blocks_per_row, memory.numel() // setup.block_bytes)
        kept = KEPT.index("fp8" if setup.kv_dtype == "fp8" else setup.dtype)
        table = self._table.ctypes.data
        self.fields = PoolFields(memory.data_ptr(), setup.block_bytes, table, self.tokens, kept)

    @property
    def pointer(self) -> "ctypes._Pointer[PoolFields]":
        return ctypes.pointer(self.fields)

    def learn(self, new: NewRows) -> None:
        """Append rows to the table. Raises ValueError for ids or blocks outside pool and table."""
        if (told := self._known.learn(new)) is not None:
            self._table[told[0]] = told[1]

    def take(self, rows: list[int], filled: int) -> None:
        """Raises ValueError for a row whose head blocks were never sent."""
        self._known.check(rows)

    def copy(self, rows: list[int], into: list[int]) -> None:
        """The blocks of ``rows``, which were checked, into those of as many others."""
        blocks = self._memory[: self._memory.numel() // self._block_bytes * self._block_bytes]
        blocks = blocks.view(-1, self._block_bytes)
        for row, other in zip(rows, into, strict=True):
            source, target = (torch.from_numpy(self._table[one]).long() for one in (row, other))
            blocks[target] = blocks[source]
