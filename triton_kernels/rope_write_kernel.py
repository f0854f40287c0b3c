# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``rope_write``: one program is some tokens of one head of the fused projection.

What a head is (query, key or value) follows from its number, so a program takes one branch as a whole.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.float8 import FLOAT8, FP8_MAX
from muxd.kernels.launch import Call, Constants, ceil_div, power_of_two
from muxd.kernels.paged_pool import PagedPool


@triton.jit
def _normed(a, b, real, i, weight, eps, D: tl.constexpr, OFFSET: tl.constexpr, dtype: tl.constexpr):
    """Both halves [tokens, d / 2] of each token, RMS-normalised together and rounded."""
    HALF: tl.constexpr = D // 2
    mean = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D
    inverse = tl.rsqrt(mean + eps)[:, None]
    wa = tl.load(weight + i, mask=i < HALF, other=0.0).to(tl.float32)
    wb = tl.load(weight + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    if OFFSET:
        wa += 1.0
        wb += 1.0
    a = (a * inverse * wa[None, :]).to(dtype).to(tl.float32)
    b = (b * inverse * wb[None, :]).to(dtype).to(tl.float32)
    return a, b


@triton.jit
def _store(at, a, b, real, HALF: tl.constexpr, LIMIT: tl.constexpr):
    if LIMIT > 0:
        a = tl.minimum(tl.maximum(a, -LIMIT), LIMIT)
        b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT)
    tl.store(at, a.to(at.dtype.element_ty), mask=real)
    tl.store(at + HALF, b.to(at.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["n", "column", "rows_stride"])
def _rope_write(
    qkv, cos, sin, pool, table, rows, positions, owners, q_weight, k_weight, v_weight,
    n, column, rows_stride, table_stride, eps,
    LINES: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF_PAD: tl.constexpr,
    T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr, TOKENS: tl.constexpr,
    OWNED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, V_NORM: tl.constexpr,
    OFFSET: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    head = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    i = tl.arange(0, HALF_PAD)
    inside = token < n
    real = inside[:, None] & (i < HALF)[None, :]
    wide = token.to(tl.int64)[:, None]
    line = qkv + wide * (LINES * D) + head * D + i[None, :]
    a = tl.load(line, mask=real, other=0.0).to(tl.float32)
    b = tl.load(line + HALF, mask=real, other=0.0).to(tl.float32)

    if head < HEADS + KV_HEADS:
        if head < HEADS:
            if Q_NORM:
                a, b = _normed(a, b, real, i, q_weight, eps, D, OFFSET, qkv.dtype.element_ty)
        else:
            if K_NORM:
                a, b = _normed(a, b, real, i, k_weight, eps, D, OFFSET, qkv.dtype.element_ty)
        turn = wide * D + i[None, :]
        ca = tl.load(cos + turn, mask=real, other=0.0).to(tl.float32)
        cb = tl.load(cos + turn + HALF, mask=real, other=0.0).to(tl.float32)
        sa = tl.load(sin + turn, mask=real, other=0.0).to(tl.float32)
        sb = tl.load(sin + turn + HALF, mask=real, other=0.0).to(tl.float32)
        rotated = a * ca + b * sa
        b = b * cb + a * sb
        a = rotated
    else:
        if V_NORM:
            a, b = _normed(a, b, real, i, v_weight, eps, D, OFFSET, qkv.dtype.element_ty)

    if head < HEADS:
        _store(line, a, b, real, HALF, 0)
    else:
        kv_head = (head - HEADS) % KV_HEADS
        values = (head - HEADS) // KV_HEADS  # 0 for keys, 1 for values
        position = tl.load(positions + token, mask=inside, other=-1)
        kept = position >= 0
        owner = token
        if OWNED:
            owner = tl.load(owners + token, mask=kept, other=0)
        row = tl.load(rows + owner.to(tl.int64) * rows_stride + position // T, mask=kept, other=0).to(
            tl.int64
        )
        place = column + kv_head * WIDTH + values * (WIDTH - 1)
        block = tl.load(table + row * table_stride + place, mask=kept, other=0).to(tl.int64)
        slot = tl.where(kept, position % T, 0) + values * VALUES
        at = pool + (block * BLOCK + slot * D)[:, None] + i[None, :]
        a = a.to(qkv.dtype.element_ty).to(tl.float32)
        b = b.to(qkv.dtype.element_ty).to(tl.float32)
        _store(at, a, b, real & kept[:, None], HALF, LIMIT)


def rope_write_calls(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    positions: Tensor,
    owners: Tensor | None = None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    v_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: bool = False,
) -> list[Call]:
    """The launch; arguments as of ``rope_write.rope_write``."""
    n, lines, d = qkv.shape
    # A decode batch is spread thin, of any size: a kernel for large ones alone would compile in service.
    # A prefill fills its programs.
    tokens = 1 if owners is None or n <= 256 else 16
    own = pool.layer(layer)
    heads = lines - 2 * own.kv_heads if own.own else lines
    sizes = _sizes(
        *(lines, heads, own.kv_heads, d, own.width, own.value_slot(pool.tokens), pool.tokens),
        *(pool.block_elements, pool.blocks.dtype, tokens, owners is not None),
        *(q_weight is not None, k_weight is not None, v_weight is not None, offset),
    )
    arguments = (
        *(qkv, cos, sin, pool.blocks, pool.table, rows, positions),
        positions if owners is None else owners,
        *(qkv if weight is None else weight for weight in (q_weight, k_weight, v_weight)),
        *(n, own.first, rows.stride(0), pool.table.stride(0), eps),
    )
    return [Call(_rope_write, (ceil_div(n, tokens), lines), arguments, sizes)]


@cache
def _sizes(
    lines: int, heads: int, kv_heads: int, d: int, width: int, values: int, row_tokens: int,
    block: int, dtype: torch.dtype, tokens: int, owned: bool,
    q_norm: bool, k_norm: bool, v_norm: bool, offset: bool,
) -> Constants:  # fmt: skip
    return Constants(
        **{"LINES": lines, "HEADS": heads, "KV_HEADS": kv_heads, "D": d, "HALF_PAD": power_of_two(d // 2)},
        **{"T": row_tokens, "BLOCK": block, "WIDTH": width, "VALUES": values, "TOKENS": tokens},
        **{"OWNED": owned, "Q_NORM": q_norm, "K_NORM": k_norm, "V_NORM": v_norm, "OFFSET": offset},
        LIMIT=int(FP8_MAX) if dtype is FLOAT8 else 0,
        num_warps=1 if tokens == 1 else 4,
    )


def rope_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    positions: Tensor,
    owners: Tensor | None = None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    v_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: bool = False,
) -> Tensor:
    """As ``rope_write.rope_write``."""
    calls = rope_write_calls(
        *(qkv, cos, sin, pool, layer, rows, positions, owners),
        q_weight=q_weight,
        k_weight=k_weight,
        v_weight=v_weight,
        eps=eps,
        offset=offset,
    )
    for call in calls:
        call.run()
    own = pool.layer(layer)
    return qkv[:, : qkv.shape[1] - 2 * own.kv_heads] if own.own else qkv
