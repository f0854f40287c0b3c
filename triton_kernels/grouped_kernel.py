# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``grouped``: one program is a tile of one expert's rows and of its outputs.

A program finds its expert by bisecting ``starts``: rows [s, e) of an expert have their tiles from
s // BLOCK_M + expert on, which leaves room enough for a tile begun by each. So the grid is fixed by shapes,
and programs without rows end at once.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.grouped import Groups
from muxd.kernels.launch import Call, Constants, ceil_div

_MANY = 256  # tokens from which tiles are large: decode steps have fewer


@triton.jit(do_not_specialize=["fan", "experts"])
def _grouped(
    x, weight, bias, out, order, starts, fan, experts, x_stride, outputs, inputs,
    GATHER: tl.constexpr, BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    low, high = 0, experts
    while low < high:  # the first expert whose tiles begin after ``number``
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK_M + middle <= number:
            low = middle + 1
        else:
            high = middle
    expert = low - 1
    start, stop = tl.load(starts + expert), tl.load(starts + expert + 1)
    begin = start + (number - start // BLOCK_M - expert) * BLOCK_M
    if begin >= stop:
        return

    place = begin + tl.arange(0, BLOCK_M)
    real = place < stop
    row = place.to(tl.int64)
    if GATHER:
        row = tl.load(order + place, mask=real, other=0) // fan
    column, k = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    there = column < outputs
    lines = tl.cast(expert, tl.int64) * outputs + column
    x_at = x + row[:, None] * x_stride + k[None, :]
    w_at = weight + lines[None, :] * inputs + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, inputs, BLOCK_K):
        inside = k < inputs - first
        a = tl.load(x_at + first, mask=real[:, None] & inside[None, :], other=0.0)
        b = tl.load(w_at + first, mask=there[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + lines, mask=there, other=0.0).to(tl.float32)[None, :]
    out_at = out + place.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=real[:, None] & there[None, :])


def grouped_calls(
    x: Tensor, weight: Tensor, groups: Groups, *, bias: Tensor | None = None, gather: bool = False
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launch that fills it; arguments as of ``grouped.grouped_linear``, ``weight``
    and ``bias`` contiguous."""
    (experts, outputs, inputs), pairs = weight.shape, len(groups.order)
    out = torch.empty(pairs, outputs, dtype=x.dtype, device=x.device)
    many, whole = pairs // groups.fan >= _MANY, inputs % 16 == 0
    options = _sizes(many, whole, x.dtype.itemsize, gather, bias is not None)
    tiles = pairs // options["BLOCK_M"] + experts if pairs else 0
    arguments = (
        *(x, weight, weight if bias is None else bias, out, groups.order, groups.starts),
        *(groups.fan, experts, x.stride(0), outputs, inputs),
    )
    return out, [Call(_grouped, (tiles, ceil_div(outputs, options["BLOCK_N"])), arguments, options)]


@cache
def _sizes(many: bool, whole: bool, itemsize: int, gather: bool, biased: bool) -> Constants:
    """Few rows: weights stream, four tiles in flight. Full float32 products run outside the tensor cores, and
    inputs that are not ``whole`` 16-byte loads go through registers: small tiles."""
    if itemsize == 4:
        tile = {"BLOCK_M": 32 if many else 16, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    elif not whole:
        tile = {"BLOCK_M": 32 if many else 16, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    elif many:
        tile = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    else:
        tile = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
    return Constants(GATHER=gather, BIASED=biased, **tile)


def grouped_linear(
    x: Tensor, weight: Tensor, groups: Groups, *, bias: Tensor | None = None, gather: bool = False
) -> Tensor:
    """As ``grouped.grouped_linear``."""
    out, calls = grouped_calls(x, weight, groups, bias=bias, gather=gather)
    for call in calls:
        call.run()
    return out
