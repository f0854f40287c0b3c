"""Unmeasured: decode attention in items as it serves, merged by a launch of its own.

``paged_decode_kernel`` lets the program that is done last merge a sequence's parts: no launch, but one
program reads them all, and every other one pays for a counter. Here a second kernel has a program for each
query head.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels import paged_decode_kernel
from muxd.kernels.launch import Call
from muxd.kernels.paged_decode import DecodePlan
from muxd.kernels.paged_decode_kernel import item_of, walk
from muxd.kernels.paged_pool import PagedPool

_MERGED = 16  # parts that a turn of the merge reads


@triton.jit(do_not_specialize=["window", "column", "rows_stride", "batch"])
def _part(
    q, pool, table, rows, lengths, sinks, ends, arrived, out, part, lse,
    scale, softcap, window, column, q_stride, rows_stride, table_stride, batch,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, UNIT: tl.constexpr, LINES: tl.constexpr, STEP: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    if item >= tl.load(ends + batch):
        return
    sequence, begin, stop_item, first, stop, low, length = item_of(
        lengths, ends, item, batch, window, UNIT, TILE, LINES, WINDOWED
    )
    acc, total, best = walk(
        q, pool, table, rows, sequence, head, first, stop, low, length,
        scale, softcap, q_stride, rows_stride, table_stride, column,
        GROUP, GROUP_PAD, D, D_PAD, T, BLOCK, WIDTH, TILE, CAPPED,
    )  # fmt: skip
    group, d = tl.arange(0, GROUP_PAD), tl.arange(0, D_PAD)
    real = (group < GROUP)[:, None] & (d < D)[None, :]
    heads = head * GROUP + group
    found = total > 0
    result = acc / tl.where(found, total, 1.0)[:, None]
    if stop_item - begin == 1:
        line = sequence.to(tl.int64) * (KV_HEADS * GROUP) + heads
        tl.store(out + line[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real)
    else:
        line = item.to(tl.int64) * (KV_HEADS * GROUP) + heads
        log = tl.where(found, best + tl.log2(tl.where(found, total, 1.0)), float("-inf"))
        tl.store(part + line[:, None] * D + d[None, :], result, mask=real)
        tl.store(lse + line, log, mask=group < GROUP)


@triton.jit
def _merge(
    part, lse, ends, out, HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, STEP: tl.constexpr
):
    line = tl.program_id(0)  # (sequence, query head)
    sequence, head = line // HEADS, line % HEADS
    begin, stop = tl.load(ends + sequence), tl.load(ends + sequence + 1)
    if stop - begin == 1:
        return
    d = tl.arange(0, D_PAD)
    best, total, acc = float("-inf"), 0.0, tl.zeros([D_PAD], tl.float32)
    for number in range(begin, stop, STEP):
        item = number + tl.arange(0, STEP)
        at = item.to(tl.int64) * HEADS + head
        logs = tl.load(lse + at, mask=item < stop, other=float("-inf"))
        inside = (item < stop)[:, None] & (d < D)[None, :]
        parts = tl.load(part + at[:, None] * D + d[None, :], mask=inside, other=0.0)
        new = tl.maximum(best, tl.max(logs, 0))
        keep, weight = tl.exp2(best - new), tl.exp2(logs - new)
        acc = acc * keep + tl.sum(parts * weight[:, None], 0)
        total = total * keep + tl.sum(weight, 0)
        best = new
    tl.store(out + line.to(tl.int64) * D + d, (acc / total).to(out.dtype.element_ty), mask=d < D)


def decode_calls(
    q: Tensor, pool: PagedPool, layer: int, rows: Tensor, lengths: Tensor, plan: DecodePlan, **options: Any
) -> tuple[Tensor, list[Call]]:
    """As ``paged_decode_kernel.decode_calls``. Raises ValueError for sinks, which this has not."""
    if options.get("sinks") is not None:
        raise ValueError("decode_merge knows no sinks: measure it with a model that has none")
    out, (item,) = paged_decode_kernel.decode_calls(q, pool, layer, rows, lengths, plan, **options)
    part, lse = item.arguments[9:11]
    sizes = {"HEADS": q.shape[1], "STEP": _MERGED, "num_warps": 4}
    sizes |= {name: item.options[name] for name in ("D", "D_PAD")}
    merge = Call(_merge, (q.shape[0] * q.shape[1],), (part, lse, plan.ends, out), sizes)
    return out, [item._replace(kernel=_part), merge]


def decode_attention(*tensors: Any, **options: Any) -> Tensor:
    """As ``paged_decode_kernel.decode_attention``."""
    out, calls = decode_calls(*tensors, **options)
    for call in calls:
        call.run()
    return out
