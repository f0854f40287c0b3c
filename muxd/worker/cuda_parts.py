"""A model's parts on a GPU: products of cuBLAS on the mapped weights, the rest by ``muxd.kernels.ops``.

Nothing is packed or copied, nothing waits for the device, so a step made of these can be captured.
"""

import torch
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.rotary import angles
from muxd.messages import TensorEntry
from muxd.models.layers import Angles, Linear, Norm, Turn
from muxd.models.rope import Rope
from muxd.worker.mapped import Views

_TABLE_BYTES = 64 << 20  # of one rotary's cosines; longer contexts compute their angles in every step


class CudaLinear:
    """y = x Wᵀ; a bias or the residual ``add`` is the product's accumulator: one kernel, and rounded once.
    Both on one matrix take a second kernel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self._transposed, self._bias = weight.t(), bias

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """See ``muxd.models.layers.Linear``; overwrites ``add``."""
        if add is not None:
            return (add if self._bias is None else add.add_(self._bias)).addmm_(x, self._transposed)
        if self._bias is not None:
            return torch.addmm(self._bias, x, self._transposed)
        return torch.mm(x, self._transposed)


class CudaNorm:
    """See ``muxd.models.layers.Norm``; norm and sum in float32, rounded once."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps = weight, eps

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, hidden]."""
        return ops.rms_norm(x, self.weight, self.eps, after=add)


class CudaLayerNorm(CudaNorm):
    """The same of x less its mean, which is LayerNorm without a bias."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, hidden]."""
        full = x.float()
        normed = ops.rms_norm(full - full.mean(-1, keepdim=True), self.weight, self.eps).to(x.dtype)
        return normed if add is None else add + normed


class CudaRotary:
    """Angles of positions [0, length), from a table where that is small enough."""

    def __init__(self, frequencies: Tensor, magnitudes: Tensor, length: int, dtype: torch.dtype):
        self._frequencies, self._magnitudes, self._dtype = frequencies, magnitudes, dtype
        self._table: Angles | None = None
        if length * 2 * frequencies.numel() * dtype.itemsize <= _TABLE_BYTES:
            positions = torch.arange(length, device=frequencies.device)
            self._table = angles(positions, frequencies, dtype, magnitudes)

    def __call__(self, positions: Tensor) -> Angles:
        """positions [n], none below 0 -> cosine and signed sine [n, 1, head_dim]."""
        if self._table is None:
            return angles(positions, self._frequencies, self._dtype, self._magnitudes)
        cos, sin = self._table
        return cos.index_select(0, positions), sin.index_select(0, positions)


class CudaWeights(Views):
    """Implements ``muxd.models.layers.Weights`` for contexts of up to ``length`` tokens."""

    def __init__(self, entries: list[TensorEntry], region: Tensor, length: int):
        super().__init__(entries, region)
        self._length = length

    def linear(self, name: str, *, bias: bool = False) -> Linear:
        return CudaLinear(self.tensor(name), self.tensor(f"{name}.bias") if bias else None)

    def norm(self, name: str, eps: float, *, offset: bool = False, centred: bool = False) -> Norm:
        weight = self.tensor(name)
        kind = CudaLayerNorm if centred else CudaNorm
        return kind(1.0 + weight.float() if offset else weight, eps)

    def plain_norm(self, size: int, eps: float) -> Norm:
        return CudaNorm(torch.ones(size, dtype=self.dtype, device=self._region.device), eps)

    def rotary(self, rope: Rope, head_dim: int) -> Turn:
        frequencies, magnitudes = (
            torch.from_numpy(each).to(self._region.device)
            for each in (rope.inverse_frequencies(head_dim), rope.magnitudes(head_dim))
        )
        return CudaRotary(frequencies, magnitudes, self._length, self.dtype)

    def summed(self, x: Tensor) -> Tensor:
        return x
