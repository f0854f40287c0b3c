"""Unmeasured: decode attention whose work is cut on the device, into items of equal length.

``paged_decode_kernel`` gives every sequence the same number of programs, from shapes alone: one long context
among many short ones is then walked by few programs while the others idle. Here one small program cuts the
step's lengths into items of as many tiles each, and a program takes one item of one KV head. The grid still
follows from shapes alone, so a captured graph serves any lengths: an item is at most one tile short of a
sequence's end, so there are no more than batch + programs / kv_heads of them. A sequence of one item needs
no merge. One plan holds for all layers with the same window.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div, power_of_two
from muxd.kernels.paged_decode import LEAST_TOKENS
from muxd.kernels.paged_decode_kernel import _shape
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_tile_kernel import LOG2_E, fold, load_half, offsets_of, scores_of

_MERGED = 8  # parts that a turn of the merge reads


@triton.jit
def _first_token(length, window, WINDOWED: tl.constexpr):
    first = 0
    if WINDOWED:
        first = tl.maximum(length - window, 0)
    return first


@triton.jit(do_not_specialize=["batch", "window", "programs"])
def _plan(
    lengths, plan, batch, window, programs,
    KV_HEADS: tl.constexpr, BATCH_PAD: tl.constexpr, TILE: tl.constexpr, LEAST: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """plan [batch + 2]: 0, where each sequence's items end, and the tiles of an item."""
    i = tl.arange(0, BATCH_PAD)
    length = tl.load(lengths + i, mask=i < batch, other=0)
    tiles = tl.cdiv(length, TILE) - _first_token(length, window, WINDOWED) // TILE
    each = tl.maximum(tl.cdiv(tl.sum(tiles, 0) * KV_HEADS, programs), LEAST)
    tl.store(plan, 0)
    tl.store(plan + 1 + i, tl.cumsum(tl.cdiv(tiles, each), 0), mask=i < batch)
    tl.store(plan + 1 + batch, each)


@triton.jit
def _owner(plan, item, batch):
    """The sequence whose item this is: the first one whose items end behind it."""
    low, high = 0, batch
    while low < high:
        middle = (low + high) // 2
        if tl.load(plan + 1 + middle) <= item:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["window", "column", "rows_stride", "batch"])
def _item(
    q, pool, table, rows, lengths, plan, out, part, lse,
    scale, softcap, window, column, q_stride, rows_stride, table_stride, batch,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    if item >= tl.load(plan + batch):
        return
    sequence = _owner(plan, item, batch)
    begin, stop_item = tl.load(plan + sequence), tl.load(plan + sequence + 1)
    each, length = tl.load(plan + batch + 1), tl.load(lengths + sequence)
    low = _first_token(length, window, WINDOWED)
    first = low // TILE + (item - begin) * each
    stop = tl.minimum(first + each, tl.cdiv(length, TILE))

    group, d = tl.arange(0, GROUP_PAD), tl.arange(0, D_PAD)
    real = (group < GROUP)[:, None] & (d < D)[None, :]
    heads = head * GROUP + group
    own_q = q + tl.cast(sequence, tl.int64) * q_stride
    query = tl.load(own_q + heads[:, None] * D + d[None, :], mask=real, other=0.0)
    own_rows = rows + tl.cast(sequence, tl.int64) * rows_stride
    best = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    # A tile's place is looked up one tile ahead, as in the kernel that serves.
    token = first * TILE + tl.arange(0, TILE)
    valid = (token >= low) & (token < length)
    at = offsets_of(own_rows, table, token, valid, table_stride, column + head, T, BLOCK, D)
    for _ in range(first, stop):
        k = load_half(pool, at, valid, D, D_PAD).to(query.dtype)
        s = tl.where(valid[None, :], scores_of(query, k, scale, softcap, CAPPED), float("-inf"))
        v = load_half(pool + T * D, at, valid, D, D_PAD).to(query.dtype)
        token += TILE
        valid = (token >= low) & (token < length)
        at = offsets_of(own_rows, table, token, valid, table_stride, column + head, T, BLOCK, D)
        acc, total, best = fold(acc, total, best, s, v, False)

    result = acc / total[:, None]  # every tile of an item has a token that is seen
    if stop_item - begin == 1:
        line = tl.cast(sequence, tl.int64) * (KV_HEADS * GROUP) + heads
        tl.store(out + line[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real)
    else:
        line = tl.cast(item, tl.int64) * (KV_HEADS * GROUP) + heads
        tl.store(part + line[:, None] * D + d[None, :], result, mask=real)
        tl.store(lse + line, best + tl.log2(total), mask=group < GROUP)


@triton.jit
def _merge(
    part, lse, plan, out, HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, STEP: tl.constexpr
):
    line = tl.program_id(0)  # (sequence, query head)
    sequence, head = line // HEADS, line % HEADS
    begin, stop = tl.load(plan + sequence), tl.load(plan + sequence + 1)
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
    result = acc / tl.where(total == 0, 1.0, total)  # padding has no item, and its output is 0
    tl.store(out + line.to(tl.int64) * D + d, result.to(out.dtype.element_ty), mask=d < D)


def decode_calls(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    programs: int = 792,
) -> tuple[Tensor, list[Call]]:
    """As ``paged_decode_kernel.decode_calls``; the first call, the plan, is one for all layers of a step.

    ``programs``: of how many the device is to have work for; the default is twice what 132 SMs hold, three
    each. A choice, not a measurement. Raises ValueError for sinks and for heads of two blocks, which
    the sketch has not.
    """
    if sinks is not None:
        raise ValueError("decode_items knows no sinks: measure it with a model that has none")
    own = pool.layer(layer)
    if own.width > 1:
        raise ValueError("decode_items knows no heads of two blocks: measure it with a model of one size")
    batch, heads, d = q.shape
    group, d_pad = heads // own.kv_heads, max(16, power_of_two(d))
    most, shape = (
        batch + ceil_div(programs, own.kv_heads),
        _shape(d_pad, q.dtype.itemsize, pool.blocks.dtype.itemsize),
    )
    empty = partial(torch.empty, dtype=torch.float32, device=q.device)
    part, lse = empty(most, heads, d), empty(most, heads)
    out = torch.empty(batch, heads * d, dtype=q.dtype, device=q.device)
    plan = torch.empty(batch + 2, dtype=torch.int32, device=q.device)
    shared = {"KV_HEADS": own.kv_heads, "TILE": shape["TILE"], "WINDOWED": window is not None}
    least = max(1, LEAST_TOKENS // shape["TILE"])
    planned: dict[str, Any] = {"BATCH_PAD": power_of_two(max(16, batch)), "LEAST": least, "num_warps": 4}
    sizes = {"GROUP": group, "GROUP_PAD": max(16, power_of_two(group)), "D": d, "D_PAD": d_pad}
    places = {"T": pool.tokens, "BLOCK": pool.block_elements, "CAPPED": softcap is not None}
    item = (
        *(q, pool.blocks, pool.table, rows, lengths, plan, out, part, lse),
        *(scale if softcap else scale * LOG2_E, softcap or 0.0, window or 0, own.first),
        *(q.stride(0), rows.stride(0), pool.table.stride(0), batch),
    )
    merged = {"HEADS": heads, "D": d, "D_PAD": d_pad, "STEP": _MERGED, "num_warps": 4}
    return out, [
        Call(_plan, (1,), (lengths, plan, batch, window or 0, programs), {**shared, **planned}),
        Call(_item, (most, own.kv_heads), item, {**shared, **sizes, **places, **shape}),
        Call(_merge, (batch * heads,), (part, lse, plan, out), merged),
    ]


def decode_attention(
    q: Tensor, pool: PagedPool, layer: int, rows: Tensor, lengths: Tensor, *, splits: int = 0, **options: Any
) -> Tensor:
    """As ``paged_decode_kernel.decode_attention``; ``splits`` changes nothing here."""
    out, calls = decode_calls(q, pool, layer, rows, lengths, **options)
    for call in calls:
        call.run()
    return out
