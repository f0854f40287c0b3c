"""Keys and values as float8_e4m3fn (Micikevicius et al. 2022, FP8 Formats for Deep Learning), without scales.

Four bits of exponent and three of mantissa: to 448, smallest steps of 2^-9, a relative error of at most 1/16
from 2^-6 on. Handled as bytes: not every torch indexes or fills the type.
"""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
FP8_MAX = 448.0

_WIDE = {2: torch.int32, 4: torch.int64}  # two numbers of so many bytes


def packed(x: Tensor) -> Tensor:
    """uint8, the shape of ``x``; beyond +-448 it saturates, NaN stays."""
    return x.float().clamp(-FP8_MAX, FP8_MAX).to(FLOAT8).view(torch.uint8)


class Unpacked:
    """From bytes to ``dtype``, exactly: by a table of all pairs, which on a CPU is many times as fast as
    torch's conversion."""

    def __init__(self, dtype: torch.dtype):
        pairs = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
        self._wide = _WIDE[dtype.itemsize]
        self._table = pairs.view(FLOAT8).to(dtype).view(self._wide)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x uint8, an even number of them; out as many; both contiguous."""
        pairs = x.view(-1).view(torch.uint16).to(torch.int32)
        torch.index_select(self._table, 0, pairs, out=out.view(-1).view(self._wide))
