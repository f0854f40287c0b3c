"""The weights region as the model pages ask for it: named views, and matrices packed where that is faster.

Packing copies: the private copy lives beside the shared region, which stays the source for a restart.
"""

import torch
from torch import Tensor

from muxd.kernels.linear import PackedLinear, PlainLinear, packs
from muxd.kernels.rms_norm import LayerNorm, OffsetRmsNorm, RmsNorm
from muxd.messages import Dtype, TensorEntry
from muxd.models.layers import Linear, Norm, Rotary, Turn
from muxd.models.rope import Rope

DTYPES: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class Views:
    """Tensors by name over ``region`` (uint8 [bytes]), without a copy."""

    def __init__(self, entries: list[TensorEntry], region: Tensor):
        self._entries = {entry.name: entry for entry in entries}
        self._region = region

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return DTYPES[self._entries["embed"].dtype]

    def tensor(self, name: str) -> Tensor:
        """A zero-copy view."""
        entry = self._entries[name]
        dtype = DTYPES[entry.dtype]
        size = torch.Size(entry.shape).numel() * dtype.itemsize
        return self._region[entry.offset : entry.offset + size].view(dtype).view(entry.shape)


class MappedWeights(Views):
    """For the CPU; implements ``muxd.models.layers.Weights``."""

    def __init__(self, entries: list[TensorEntry], region: Tensor):
        super().__init__(entries, region)
        self._pack = {dtype: packs(dtype) for dtype in {DTYPES[entry.dtype] for entry in entries}}

    def linear(self, name: str, *, bias: bool = False) -> Linear:
        """The matrix ``name`` as something to multiply by."""
        weight, added = self.tensor(name), self.tensor(f"{name}.bias") if bias else None
        return PackedLinear(weight, added) if self._pack[weight.dtype] else PlainLinear(weight, added)

    def norm(self, name: str, eps: float, *, offset: bool = False, centred: bool = False) -> Norm:
        weight = self.tensor(name)
        if centred:
            return LayerNorm(weight, eps)
        return OffsetRmsNorm(weight, eps) if offset else RmsNorm(weight, eps)

    def plain_norm(self, size: int, eps: float) -> Norm:
        return RmsNorm(torch.ones(size, dtype=self.dtype), eps)

    def rotary(self, rope: Rope, head_dim: int) -> Turn:
        return Rotary(rope, head_dim, self.dtype)

    def summed(self, x: Tensor) -> Tensor:
        return x
