"""Unmeasured: a small kernel in a chain that may begin before the one in front of it has ended.

Programmatic dependent launch (Hopper and newer): what a kernel reads that no kernel of the chain writes, its
weights, it may load before it waits for the one in front.
"""

import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import power_of_two


@triton.jit
def _step(x, weight, SIZE: tl.constexpr, PAD: tl.constexpr, EARLY: tl.constexpr):
    i = tl.arange(0, PAD)
    own = tl.load(weight + i, mask=i < SIZE, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    value = tl.load(x + i, mask=i < SIZE, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(x + i, (0.5 * value + own).to(x.dtype.element_ty), mask=i < SIZE)


def chain(x: Tensor, weight: Tensor, count: int, *, early: bool) -> None:
    """x = x / 2 + weight, ``count`` times in place. x, weight [size]."""
    options = {"SIZE": x.numel(), "PAD": power_of_two(x.numel()), "EARLY": early, "num_warps": 2}
    if early:
        options["launch_pdl"] = True
    for _ in range(count):
        _step[(1,)](x, weight, **options)
