"""Unmeasured: decode attention with as many programs for every sequence, by shapes alone, as it served.

``paged_decode_kernel`` cuts a step's contexts into items of one length instead, so that a long one among many
short ones is walked by more programs; here the others idle meanwhile, but there is no plan to make, and parts
are merged by a launch of its own. Neither has run on a GPU: whether even batches lose what uneven
ones gain is for a device to say.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div, power_of_two
from muxd.kernels.paged_decode_kernel import low_of, sizes_of, walk
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_tile_kernel import LOG2_E

_LEAST_TOKENS = 256
_MOST_SPLITS = 64


def plan_splits(batch: int, kv_heads: int, max_tokens: int, sms: int) -> int:
    """Programs per (sequence, KV head) that fill ``sms`` multiprocessors twice, for up to ``max_tokens``."""
    wanted = ceil_div(2 * sms, max(1, batch * kv_heads))
    return max(1, min(wanted, ceil_div(max_tokens, _LEAST_TOKENS), _MOST_SPLITS))


@triton.jit(do_not_specialize=["window", "column", "rows_stride"])
def _split(
    q, pool, table, rows, lengths, out, part, lse,
    scale, softcap, window, column, q_stride, rows_stride, table_stride,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(0)
    length = tl.load(lengths + sequence)
    low = low_of(length, window, WINDOWED)
    first, stop = low // TILE, tl.cdiv(length, TILE)
    each = tl.cdiv(stop - first, splits)
    first += split * each
    stop = tl.minimum(first + each, stop)
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
    line = sequence.to(tl.int64) * (KV_HEADS * GROUP) + heads
    if WHOLE:
        tl.store(out + line[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=real)
    else:
        line = line * splits + split
        log = tl.where(found, best + tl.log2(tl.where(found, total, 1.0)), float("-inf"))
        tl.store(part + line[:, None] * D + d[None, :], result, mask=real)
        tl.store(lse + line, log, mask=group < GROUP)


@triton.jit(do_not_specialize=["splits"])
def _merge(part, lse, out, splits, D: tl.constexpr, D_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)  # (sequence, query head)
    split, d = tl.arange(0, SPLITS_PAD), tl.arange(0, D_PAD)
    logs = tl.load(lse + line * splits + split, mask=split < splits, other=float("-inf"))
    best = tl.max(logs, 0)
    weight = tl.exp2(logs - tl.where(best == float("-inf"), 0.0, best))
    total = tl.sum(weight, 0)
    weight = weight / tl.where(total == 0, 1.0, total)
    at = (line * splits + split)[:, None] * D + d[None, :]
    parts = tl.load(part + at, mask=(weight > 0)[:, None] & (d < D)[None, :], other=0.0)
    merged = tl.sum(parts * weight[:, None], 0)
    tl.store(out + line * D + d, merged.to(out.dtype.element_ty), mask=d < D)


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
    """The output tensor and the launches that fill it. Raises ValueError for sinks, which this has not."""
    if sinks is not None:
        raise ValueError("decode_splits knows no sinks: measure it with a model that has none")
    batch, heads, d = q.shape
    parts = (batch, heads, splits) if splits > 1 else (0, 0, 0)
    empty = partial(torch.empty, dtype=torch.float32, device=q.device)
    out, part, lse = (
        torch.empty(batch, heads * d, dtype=q.dtype, device=q.device),
        empty(*parts, d),
        empty(parts),
    )
    arguments = (
        *(q, pool.blocks, pool.table, rows, lengths, out, part, lse),
        *(scale if softcap else scale * LOG2_E, softcap or 0.0, window or 0, pool.layer(layer).first),
        *(q.stride(0), rows.stride(0), pool.table.stride(0)),
    )
    own = {"WINDOWED": window is not None, "WHOLE": splits == 1}
    split = Call(
        _split,
        (splits, pool.layer(layer).kv_heads, batch),
        arguments,
        {**sizes_of(q, pool, layer, softcap), **own},
    )
    if splits == 1:
        return out, [split]
    sizes = {"D": d, "D_PAD": power_of_two(d), "SPLITS_PAD": power_of_two(splits), "num_warps": 4}
    return out, [split, Call(_merge, (batch * heads,), (part, lse, out, splits), sizes)]


def decode_attention(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    lengths: Tensor,
    *,
    splits: int = 1,
    **options: object,
) -> Tensor:
    """As ``paged_decode.decode_attention``, without a plan."""
    out, calls = decode_calls(q, pool, layer, rows, lengths, splits=splits, **options)  # type: ignore[arg-type]
    for call in calls:
        call.run()
    return out
