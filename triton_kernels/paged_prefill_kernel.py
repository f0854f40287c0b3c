# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``paged_prefill``: one program is a block of query tokens of one KV head's group.

A program finds its sequence by bisecting ``starts``, so the grid depends on the number of tokens and of
sequences only. Its keys are walked in up to three stretches: cut by the window, seen by every query (no
mask), cut by causality.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, Constants, power_of_two
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_tile_kernel import LOG2_E, fold, load_half, offsets_of, scores_of


@triton.jit
def _stretch(
    acc, total, best, query, position, first, stop, begin, end,
    pool, table, own_rows, scale, softcap, window, column, table_stride,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    # Where the next tile lies is looked up while this one is computed, as in the decode kernel: its copies
    # wait for no load of the same round, so that two tiles are on their way beside the products.
    # Nothing before ``begin``, which no window sees, is read: it may be another model's by now, and NaN.
    token = first * TILE + tl.arange(0, TILE)
    valid = token < end
    if WINDOWED:
        valid = valid & (token >= begin)
    at = offsets_of(own_rows, table, token, valid, table_stride, column, T, BLOCK, D)
    at_values = at
    if WIDTH == 2:
        at_values = offsets_of(own_rows, table, token, valid, table_stride, column + 1, T, BLOCK, D)
    for _ in range(first, stop):
        k = load_half(pool, at, valid, D, D_PAD).to(query.dtype)
        s = scores_of(query, k, scale, softcap, CAPPED)
        if MASKED:
            seen = token[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (token[None, :] > position[:, None] - window)
            s = tl.where(seen, s, float("-inf"))
        if WIDTH == 2:
            v = load_half(pool, at_values, valid, D, D_PAD).to(query.dtype)
        else:
            v = load_half(pool + T * D, at, valid, D, D_PAD).to(query.dtype)
        token += TILE
        valid = token < end
        if WINDOWED:
            valid = valid & (token >= begin)
        at = offsets_of(own_rows, table, token, valid, table_stride, column, T, BLOCK, D)
        if WIDTH == 2:
            at_values = offsets_of(own_rows, table, token, valid, table_stride, column + 1, T, BLOCK, D)
        acc, total, best = fold(acc, total, best, s, v, MASKED)
    return acc, total, best


@triton.jit(do_not_specialize=["window", "column", "rows_stride", "sequences"])
def _prefill(
    q, pool, table, rows, starts, cached, sinks, out,
    scale, softcap, window, column, q_stride, rows_stride, table_stride, sequences,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    number = tl.num_programs(0) - 1 - tl.program_id(0)  # late positions are the long ones: they start first
    head = tl.program_id(1)
    low, high = 0, sequences
    while low < high:  # the first sequence whose blocks begin after ``number``
        middle = (low + high) // 2
        if tl.load(starts + middle) // QUERIES + middle <= number:
            low = middle + 1
        else:
            high = middle
    sequence = low - 1
    start = tl.load(starts + sequence)
    n = tl.load(starts + sequence + 1) - start
    begin = (number - start // QUERIES - sequence) * QUERIES
    if begin >= n:
        return

    before = tl.load(cached + sequence)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, D_PAD)
    index = begin + m // GROUP  # of the query token in its chunk
    heads = head * GROUP + m % GROUP
    real = ((m < QUERIES * GROUP) & (index < n))[:, None] & (d < D)[None, :]
    token = (start + index).to(tl.int64)
    query = tl.load(q + token[:, None] * q_stride + heads[:, None] * D + d[None, :], mask=real, other=0.0)
    position = before + index
    lowest, highest = before + begin, before + tl.minimum(begin + QUERIES, n) - 1
    end = highest + 1

    left, seen = 0, 0
    if WINDOWED:
        seen = tl.maximum(lowest - window + 1, 0)
        left = seen // TILE
    stop = tl.cdiv(end, TILE)
    open_from = left
    if WINDOWED:
        open_from = tl.cdiv(tl.maximum(highest - window + 1, 0), TILE)
    open_to = tl.maximum((lowest + 1) // TILE, open_from)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    own_rows = rows + tl.cast(sequence, tl.int64) * rows_stride
    own = column + head * WIDTH
    if WINDOWED:
        acc, total, best = _stretch(
            acc, total, best, query, position, left, open_from, seen, end,
            pool, table, own_rows, scale, softcap, window, own, table_stride,
            D, D_PAD, T, BLOCK, WIDTH, TILE, WINDOWED, CAPPED, True,
        )  # fmt: skip
    acc, total, best = _stretch(
        acc, total, best, query, position, open_from, open_to, seen, end,
        pool, table, own_rows, scale, softcap, window, own, table_stride,
        D, D_PAD, T, BLOCK, WIDTH, TILE, WINDOWED, CAPPED, WINDOWED,
    )  # fmt: skip
    acc, total, best = _stretch(
        acc, total, best, query, position, open_to, stop, seen, end,
        pool, table, own_rows, scale, softcap, window, own, table_stride,
        D, D_PAD, T, BLOCK, WIDTH, TILE, WINDOWED, CAPPED, True,
    )  # fmt: skip
    if SUNK:
        sink = tl.load(sinks + heads, mask=m < QUERIES * GROUP, other=0.0).to(tl.float32)
        total += tl.where(total > 0, tl.exp2(sink * 1.4426950408889634 - best), 0.0)
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    line = token * (KV_HEADS * GROUP) + heads
    tl.store(out + line[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real)


def _shape(d_pad: int, group: int, itemsize: int, kv_itemsize: int) -> dict[str, int]:
    """Query rows, tile, warps and stages; more rows than these spill, fewer than a group's do not fit."""
    least = max(16, power_of_two(group))
    if itemsize == 4:  # full float32 products run outside the tensor cores: small tiles
        return {
            "BLOCK_M": max(32 if d_pad <= 128 else 16, least),
            "TILE": 32 if d_pad <= 64 else 16,
            "num_warps": 8,
            "num_stages": 1,
        }
    if d_pad > 256:  # 64 rows spill
        return {"BLOCK_M": max(32, least), "TILE": 32, "num_warps": 8, "num_stages": 2}
    if d_pad > 128 and kv_itemsize < itemsize:  # the conversion needs registers too
        return {"BLOCK_M": 64, "TILE": 32, "num_warps": 8, "num_stages": 2}
    if d_pad > 128:
        return {"BLOCK_M": 128, "TILE": 32, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 128, "TILE": 64, "num_warps": 8, "num_stages": 3}


def prefill_calls(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launch that fills it; arguments as of ``paged_prefill.prefill_attention``."""
    n, heads, d = q.shape
    sequences, dtype, own = cached.shape[0], q.dtype, pool.layer(layer)
    out = torch.empty(n, heads * d, dtype=dtype, device=q.device)
    sizes = _sizes(
        *(heads, own.kv_heads, d, pool.tokens, pool.block_elements, own.width),
        *(dtype.itemsize, pool.blocks.dtype.itemsize),
        *(window is not None, softcap is not None, sinks is not None),
    )
    call = Call(
        _prefill,
        (n // (sizes["BLOCK_M"] // sizes["GROUP"]) + sequences, own.kv_heads),
        (
            *(q, pool.blocks, pool.table, rows, starts, cached, q if sinks is None else sinks, out),
            *(scale if softcap else scale * LOG2_E, softcap or 0.0, window or 0, own.first),
            *(q.stride(0), rows.stride(0), pool.table.stride(0), sequences),
        ),
        sizes,
    )
    return out, [call]


@cache
def _sizes(
    heads: int, kv_heads: int, d: int, tokens: int, block: int, width: int, itemsize: int, kv_itemsize: int,
    windowed: bool, capped: bool, sunk: bool,
) -> Constants:  # fmt: skip
    group, d_pad = heads // kv_heads, max(16, power_of_two(d))
    return Constants(
        **{"GROUP": group, "KV_HEADS": kv_heads, "D": d, "D_PAD": d_pad, "T": tokens, "WIDTH": width},
        **{"BLOCK": block, "WINDOWED": windowed, "CAPPED": capped, "SUNK": sunk},
        **_shape(d_pad, group, itemsize, kv_itemsize),
    )


def prefill_attention(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As ``paged_prefill.prefill_attention``, but padding tokens' output stays what lies in memory."""
    out, calls = prefill_calls(
        q, pool, layer, rows, starts, cached, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    for call in calls:
        call.run()
    return out
