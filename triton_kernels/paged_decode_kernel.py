# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``paged_decode``: split over the context, then merge.

Grid (splits, KV heads, sequences): fixed by shapes alone, so a captured graph serves any lengths. A split of
a short sequence finds nothing to do and says so by a log-sum-exp of -inf. The number of splits is no constant
of the kernels: it follows from the batch and the SMs, and a new one must not compile for seconds in service.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, power_of_two
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_tile_kernel import LOG2_E, fold, load_half, offsets_of, scores_of


@triton.jit(do_not_specialize=["window", "column", "rows_stride"])
def _split(
    q, pool, table, rows, lengths, sinks, out, part, lse,
    scale, softcap, window, column, q_stride, rows_stride, table_stride,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(0)
    length = tl.load(lengths + sequence)
    low = 0
    if WINDOWED:
        low = tl.maximum(length - window, 0)
    first, stop = low // TILE, tl.cdiv(length, TILE)
    each = tl.cdiv(stop - first, splits)
    first += split * each
    stop = tl.minimum(first + each, stop)

    group, d = tl.arange(0, GROUP_PAD), tl.arange(0, D_PAD)
    real = (group < GROUP)[:, None] & (d < D)[None, :]
    heads = head * GROUP + group
    q_at = sequence.to(tl.int64) * q_stride + heads[:, None] * D + d[None, :]
    query = tl.load(q + q_at, mask=real, other=0.0)
    best = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    own_rows = rows + sequence.to(tl.int64) * rows_stride
    # A tile's place is looked up one tile ahead: then the loop's loads depend on no load of the same turn,
    # and the compiler keeps several tiles in flight.
    token = first * TILE + tl.arange(0, TILE)
    valid = (token < length) & (token >= low)
    own = column + head * WIDTH
    at = offsets_of(own_rows, table, token, valid, table_stride, own, T, BLOCK, D)
    at_values = at
    if WIDTH == 2:
        at_values = offsets_of(own_rows, table, token, valid, table_stride, own + 1, T, BLOCK, D)
    for _ in range(first, stop):
        k = load_half(pool, at, valid, D, D_PAD).to(query.dtype)
        s = tl.where(valid[None, :], scores_of(query, k, scale, softcap, CAPPED), float("-inf"))
        if WIDTH == 2:
            v = load_half(pool, at_values, valid, D, D_PAD).to(query.dtype)
        else:
            v = load_half(pool + T * D, at, valid, D, D_PAD).to(query.dtype)
        token += TILE
        valid = (token < length) & (token >= low)
        at = offsets_of(own_rows, table, token, valid, table_stride, own, T, BLOCK, D)
        if WIDTH == 2:
            at_values = offsets_of(own_rows, table, token, valid, table_stride, own + 1, T, BLOCK, D)
        acc, total, best = fold(acc, total, best, s, v, False)

    found = total > 0
    if SUNK and WHOLE:
        sink = tl.load(sinks + heads, mask=group < GROUP, other=0.0).to(tl.float32)
        total += tl.where(found, tl.exp2(sink * 1.4426950408889634 - best), 0.0)
    result = acc / tl.where(found, total, 1.0)[:, None]
    line = sequence.to(tl.int64) * (KV_HEADS * GROUP) + heads
    if WHOLE:
        tl.store(out + line[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real)
    else:
        line = line * splits + split
        tl.store(part + line[:, None] * D + d[None, :], result, mask=real)
        tl.store(
            lse + line,
            tl.where(found, best + tl.log2(tl.where(found, total, 1.0)), float("-inf")),
            mask=group < GROUP,
        )


@triton.jit(do_not_specialize=["splits"])
def _merge(
    part, lse, sinks, out, splits,
    D: tl.constexpr, D_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr, HEADS: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)  # (sequence, query head)
    split, d = tl.arange(0, SPLITS_PAD), tl.arange(0, D_PAD)
    logs = tl.load(lse + line * splits + split, mask=split < splits, other=float("-inf"))
    best = tl.max(logs, 0)
    weight = tl.exp2(logs - tl.where(best == float("-inf"), 0.0, best))
    total = tl.sum(weight, 0)
    if SUNK:
        sink = tl.load(sinks + line % HEADS).to(tl.float32) * 1.4426950408889634
        total += tl.where(total > 0, tl.exp2(sink - tl.where(best == float("-inf"), 0.0, best)), 0.0)
    weight = weight / tl.where(total == 0, 1.0, total)
    at = (line * splits + split)[:, None] * D + d[None, :]
    parts = tl.load(part + at, mask=(weight > 0)[:, None] & (d < D)[None, :], other=0.0)
    merged = tl.sum(parts * weight[:, None], 0)
    tl.store(out + line * D + d, merged.to(out.dtype.element_ty), mask=d < D)


def _shape(d_pad: int, itemsize: int, kv_itemsize: int) -> dict[str, int]:
    """Tile, warps and stages by padded head_dim: two tiles in flight, three programs an SM."""
    tile = {64: 128, 128: 64, 256: 32, 512: 16}.get(d_pad, 64)
    if itemsize == 4:
        # Converted while the next tile is on its way, keys and values spill.
        return {"TILE": 16, "num_warps": 4, "num_stages": 2 if kv_itemsize == itemsize else 1}
    return {"TILE": tile, "num_warps": 4, "num_stages": 3}


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
    splits: int = 1,
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launches that fill it; arguments as of ``paged_decode.decode_attention``."""
    batch, heads, d = q.shape
    own = pool.layer(layer)
    group, d_pad = heads // own.kv_heads, max(16, power_of_two(d))
    out = torch.empty(batch, heads * d, dtype=q.dtype, device=q.device)
    part = torch.empty(
        (batch, heads, splits, d) if splits > 1 else (1,), dtype=torch.float32, device=q.device
    )
    lse = torch.empty((batch, heads, splits) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    split = Call(
        _split,
        (splits, own.kv_heads, batch),
        (
            *(q, pool.blocks, pool.table, rows, lengths, q if sinks is None else sinks, out, part, lse),
            *(scale if softcap else scale * LOG2_E, softcap or 0.0, window or 0, own.first),
            *(q.stride(0), rows.stride(0), pool.table.stride(0)),
        ),
        {
            **{"GROUP": group, "GROUP_PAD": max(16, power_of_two(group)), "KV_HEADS": own.kv_heads},
            **{"D": d, "D_PAD": d_pad, "T": pool.tokens, "BLOCK": pool.block_elements, "WHOLE": splits == 1},
            "WIDTH": own.width,
            **{"WINDOWED": window is not None, "CAPPED": softcap is not None, "SUNK": sinks is not None},
            **_shape(d_pad, q.dtype.itemsize, pool.blocks.dtype.itemsize),
        },
    )
    if splits == 1:
        return out, [split]
    sizes = {"D": d, "D_PAD": d_pad, "SPLITS_PAD": power_of_two(splits), "num_warps": 4}
    sizes |= {"HEADS": heads, "SUNK": sinks is not None}
    sunk = part if sinks is None else sinks
    return out, [split, Call(_merge, (batch * heads,), (part, lse, sunk, out, splits), sizes)]


def decode_attention(
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
    splits: int = 1,
) -> Tensor:
    """As ``paged_decode.decode_attention``; ``q`` may be a slice of the projection, heads contiguous."""
    out, calls = decode_calls(
        q, pool, layer, rows, lengths,
        scale=scale, window=window, softcap=softcap, sinks=sinks, splits=splits,
    )  # fmt: skip
    for call in calls:
        call.run()
    return out
