# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``paged_decode``: a step's contexts cut into items, and the items walked.

``_plan``, one program, cuts by the lengths of the step, once for all layers with one window; ``_item`` walks
one item of one KV head. The grid (items, KV heads) is fixed by shapes alone, so a captured graph serves any
lengths: who finds no item ends. A sequence of one item is written as it is; of several the program that is
done last merges what all have left.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, power_of_two
from muxd.kernels.paged_decode import AN_SM, LEAST_UNITS, UNIT, DecodePlan
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_tile_kernel import LOG2_E, fold, load_half, offsets_of, scores_of

_LINES = 128  # sequences that are looked at together
_MERGED = 8  # parts that a turn of the merge reads


@triton.jit
def low_of(length, window, WINDOWED: tl.constexpr):
    """The first token that is seen."""
    low = length * 0
    if WINDOWED:
        low = tl.maximum(length - window, 0)
    return low


@triton.jit
def _units(lengths, line, batch, window, UNIT: tl.constexpr, WINDOWED: tl.constexpr):
    length = tl.load(lengths + line, mask=line < batch, other=0)
    units = tl.cdiv(length, UNIT) - low_of(length, window, WINDOWED) // UNIT
    return tl.where(line < batch, tl.maximum(units, 1), 0)


@triton.jit(do_not_specialize=["batch", "window", "programs"])
def _plan(
    lengths, ends, arrived, batch, window, programs,
    KV_HEADS: tl.constexpr, UNIT: tl.constexpr, LEAST: tl.constexpr, LINES: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, LINES)
    units = tl.full((), 0, tl.int32)
    for start in range(0, batch, LINES):
        units += tl.sum(_units(lengths, start + i, batch, window, UNIT, WINDOWED), 0)
    each = tl.maximum(tl.cdiv(units * KV_HEADS, programs), LEAST)
    tl.store(ends, 0)
    tl.store(ends + 1 + batch, each)
    before = tl.full((), 0, tl.int32)
    for start in range(0, batch, LINES):
        line = start + i
        items = tl.cdiv(_units(lengths, line, batch, window, UNIT, WINDOWED), each)
        tl.store(ends + 1 + line, before + tl.cumsum(items, 0), mask=line < batch)
        before += tl.sum(items, 0)
        for head in range(KV_HEADS):
            tl.store(arrived + line * KV_HEADS + head, 0, mask=line < batch)


@triton.jit
def _owner(ends, item, batch, LINES: tl.constexpr):
    """The sequence that an item is of: so many have all of theirs before it."""
    i = tl.arange(0, LINES)
    owner = tl.full((), 0, tl.int32)
    for start in range(0, batch, LINES):
        line = start + i
        end = tl.load(ends + 1 + line, mask=line < batch, other=2147483647)
        owner += tl.sum((end <= item).to(tl.int32), 0)
    return owner


@triton.jit
def item_of(
    lengths, ends, item, batch, window,
    UNIT: tl.constexpr, TILE: tl.constexpr, LINES: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """(sequence, its items' first and end, the item's tiles' first and end, the tokens that are seen)."""
    sequence = _owner(ends, item, batch, LINES)
    begin, stop_item = tl.load(ends + sequence), tl.load(ends + sequence + 1)
    each, length = tl.load(ends + batch + 1), tl.load(lengths + sequence)
    low = low_of(length, window, WINDOWED)
    unit = low // UNIT + (item - begin) * each
    first = tl.maximum(unit * (UNIT // TILE), low // TILE)
    stop = tl.minimum((unit + each) * (UNIT // TILE), tl.cdiv(length, TILE))
    return sequence, begin, stop_item, first, stop, low, length


@triton.jit
def walk(
    q, pool, table, rows, sequence, head, first, stop, low, length,
    scale, softcap, q_stride, rows_stride, table_stride, column,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Tiles [first, stop) of a sequence's KV head, of which tokens [low, length) are seen, by the queries of
    its group: (acc, total, best)."""
    group, d = tl.arange(0, GROUP_PAD), tl.arange(0, D_PAD)
    own_q = q + sequence.to(tl.int64) * q_stride + (head * GROUP + group)[:, None] * D + d[None, :]
    query = tl.load(own_q, mask=(group < GROUP)[:, None] & (d < D)[None, :], other=0.0)
    own_rows = rows + sequence.to(tl.int64) * rows_stride
    column += head * WIDTH
    best = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    # A tile's place is looked up one tile ahead: then the loop's loads depend on no load of the same turn,
    # and the compiler keeps several tiles in flight.
    token = first * TILE + tl.arange(0, TILE)
    valid = (token < length) & (token >= low)
    at = offsets_of(own_rows, table, token, valid, table_stride, column, T, BLOCK, D)
    at_values = at
    if WIDTH == 2:
        at_values = offsets_of(own_rows, table, token, valid, table_stride, column + 1, T, BLOCK, D)
    for _ in range(first, stop):
        k = load_half(pool, at, valid, D, D_PAD).to(query.dtype)
        s = tl.where(valid[None, :], scores_of(query, k, scale, softcap, CAPPED), float("-inf"))
        if WIDTH == 2:
            v = load_half(pool, at_values, valid, D, D_PAD).to(query.dtype)
        else:
            v = load_half(pool + T * D, at, valid, D, D_PAD).to(query.dtype)
        token += TILE
        valid = (token < length) & (token >= low)
        at = offsets_of(own_rows, table, token, valid, table_stride, column, T, BLOCK, D)
        if WIDTH == 2:
            at_values = offsets_of(own_rows, table, token, valid, table_stride, column + 1, T, BLOCK, D)
        acc, total, best = fold(acc, total, best, s, v, False)
    return acc, total, best


@triton.jit
def with_sink(total, best, sinks, heads, real, SUNK: tl.constexpr):
    """The weight of the heads' sinks added, where anything was seen; ``best`` in powers of two."""
    if SUNK:
        sink = tl.load(sinks + heads, mask=real, other=0.0).to(tl.float32) * 1.4426950408889634
        total += tl.where(total > 0, tl.exp2(sink - best), 0.0)
    return total


@triton.jit
def _merged(
    part, lse, begin, stop, heads, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """(acc, total, best) of the items [begin, stop) together. Read past L1: other SMs wrote them."""
    group, d = tl.arange(0, GROUP_PAD), tl.arange(0, D_PAD)
    real = (group < GROUP)[:, None] & (d < D)[None, :]
    best = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    for number in range(begin, stop, STEP):
        for step in tl.static_range(STEP):  # their loads wait for none of each other
            item = tl.full((), 0, tl.int64) + number + step
            line = item * HEADS + heads
            there = item < stop
            log = tl.load(lse + line, mask=(group < GROUP) & there, other=float("-inf"), cache_modifier=".cg")
            own = tl.load(
                part + line[:, None] * D + d[None, :], mask=real & there, other=0.0, cache_modifier=".cg"
            )
            new = tl.maximum(best, log)
            base = tl.where(new == float("-inf"), 0.0, new)
            keep, weight = tl.exp2(best - base), tl.exp2(log - base)
            acc = acc * keep[:, None] + own * weight[:, None]
            total = total * keep + weight
            best = new
    return acc, total, best


@triton.jit(do_not_specialize=["window", "column", "rows_stride", "batch"])
def _item(
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
    HEADS: tl.constexpr = KV_HEADS * GROUP
    line = sequence.to(tl.int64) * HEADS + heads
    own_out = out + line[:, None] * D + d[None, :]
    if stop_item - begin == 1:
        total = with_sink(total, best, sinks, heads, group < GROUP, SUNK)
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(own_out, result.to(out.dtype.element_ty), mask=real)
    else:
        left = item.to(tl.int64) * HEADS + heads
        found = total > 0
        result = acc / tl.where(found, total, 1.0)[:, None]
        log = tl.where(found, best + tl.log2(tl.where(found, total, 1.0)), float("-inf"))
        tl.store(part + left[:, None] * D + d[None, :], result, mask=real)
        tl.store(lse + left, log, mask=group < GROUP)
        # One thread tells the device what all threads of this program have stored, hence the barrier; whoever
        # counts to the end has by that seen what the others told, and makes the counter new for the next
        # layer.
        tl.debug_barrier()
        counter = arrived + sequence * KV_HEADS + head
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == stop_item - begin - 1:
            acc, total, best = _merged(
                part, lse, begin, stop_item, heads, GROUP, GROUP_PAD, HEADS, D, D_PAD, STEP
            )
            total = with_sink(total, best, sinks, heads, group < GROUP, SUNK)
            result = acc / tl.where(total > 0, total, 1.0)[:, None]
            tl.store(own_out, result.to(out.dtype.element_ty), mask=real)
            tl.store(counter, 0)


def shape_of(d_pad: int, itemsize: int, kv_itemsize: int) -> dict[str, int]:
    """Tile, warps and stages by padded head_dim: two tiles in flight, three programs an SM."""
    tile = {64: 128, 128: 64, 256: 32, 512: 16}.get(d_pad, 64)
    if itemsize == 4:
        # Converted while the next tile is on its way, keys and values spill.
        return {"TILE": 16, "num_warps": 4, "num_stages": 2 if kv_itemsize == itemsize else 1}
    if d_pad == 256 and kv_itemsize < itemsize:
        tile = 16  # with a window, what is converted from float8 spills
    return {"TILE": tile, "num_warps": 4, "num_stages": 3}


def plan_calls(
    lengths: Tensor, kv_heads: int, *, window: int | None = None, programs: int = AN_SM
) -> tuple[DecodePlan, list[Call]]:
    """The plan and the launch that fills it; arguments as of ``paged_decode.plan_decode``."""
    batch = len(lengths)
    ends = torch.empty(batch + 2, dtype=torch.int32, device=lengths.device)
    arrived = torch.empty(batch, kv_heads, dtype=torch.int32, device=lengths.device)
    sizes = {"KV_HEADS": kv_heads, "UNIT": UNIT, "LEAST": LEAST_UNITS, "LINES": _LINES, "num_warps": 4}
    arguments = (lengths, ends, arrived, batch, window or 0, programs)
    call = Call(_plan, (1,), arguments, {**sizes, "WINDOWED": window is not None})
    return DecodePlan(ends, arrived, batch + programs // kv_heads), [call]


def decode_calls(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    lengths: Tensor,
    plan: DecodePlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launch that fills it; arguments as of ``paged_decode.decode_attention``."""
    batch, heads, d = q.shape
    out = torch.empty(batch, heads * d, dtype=q.dtype, device=q.device)
    part = torch.empty(plan.most, heads, d, dtype=torch.float32, device=q.device)
    lse = torch.empty(plan.most, heads, dtype=torch.float32, device=q.device)
    arguments = (
        *(q, pool.blocks, pool.table, rows, lengths, q if sinks is None else sinks),
        *(plan.ends, plan.arrived, out, part, lse),
        *(scale if softcap else scale * LOG2_E, softcap or 0.0, window or 0, pool.layer(layer).first),
        *(q.stride(0), rows.stride(0), pool.table.stride(0), batch),
    )
    own = {"WINDOWED": window is not None, "SUNK": sinks is not None, "UNIT": UNIT, "STEP": _MERGED}
    options = {**sizes_of(q, pool, layer, softcap), **own, "LINES": _LINES}
    return out, [Call(_item, (plan.most, pool.layer(layer).kv_heads), arguments, options)]


def sizes_of(q: Tensor, pool: PagedPool, layer: int, softcap: float | None) -> dict[str, int]:
    """Constants of a kernel that walks contexts."""
    (heads, d), own = q.shape[1:], pool.layer(layer)
    group, d_pad = heads // own.kv_heads, max(16, power_of_two(d))
    return {
        **{"GROUP": group, "GROUP_PAD": max(16, power_of_two(group)), "KV_HEADS": own.kv_heads},
        **{"D": d, "D_PAD": d_pad, "T": pool.tokens, "BLOCK": pool.block_elements, "WIDTH": own.width},
        **{"CAPPED": softcap is not None, **shape_of(d_pad, q.dtype.itemsize, pool.blocks.dtype.itemsize)},
    }


def plan_decode(
    lengths: Tensor, kv_heads: int, *, window: int | None = None, programs: int = AN_SM
) -> DecodePlan:
    """As ``paged_decode.plan_decode``."""
    plan, calls = plan_calls(lengths, kv_heads, window=window, programs=programs)
    for call in calls:
        call.run()
    return plan


def decode_attention(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    lengths: Tensor,
    plan: DecodePlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As ``paged_decode.decode_attention``; ``q`` may be a slice of the projection, heads contiguous."""
    out, calls = decode_calls(
        q, pool, layer, rows, lengths, plan, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    for call in calls:
        call.run()
    return out
