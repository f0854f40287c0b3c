# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Device functions of both paged attentions: one tile of keys and values, and the running softmax.

The softmax is the online one of Milakov and Gimelshein 2018, kept in powers of two: exp2 is one instruction.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def tanh(x):
    """1 - 2 / (e^2x + 1): exact at both ends, where e^2x is 0 or infinite."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def offsets_of(
    rows, table, token, valid, table_stride, column, T: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr
):
    """Element offset of each token's key in the pool; where not ``valid``, of slot 0 in block 0."""
    row = tl.load(rows + token // T, mask=valid, other=0).to(tl.int64)
    block = tl.load(table + row * table_stride + column, mask=valid, other=0).to(tl.int64)
    return block * BLOCK + tl.where(valid, token % T, 0) * D


@triton.jit
def load_half(pool, offsets, valid, D: tl.constexpr, D_PAD: tl.constexpr):
    """[tile, D_PAD] keys or values at ``offsets``; padding and invalid tokens read as 0."""
    d = tl.arange(0, D_PAD)
    mask = valid[:, None] & (d < D)[None, :]
    return tl.load(pool + offsets[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def scores_of(q, k, scale, softcap, CAPPED: tl.constexpr):
    """Soft-capped q kᵀ · scale in units of log2, float32 [m, tile]. ``scale`` holds log2 e unless capped."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if CAPPED:
        s = softcap * 1.4426950408889634 * tanh(s / softcap)
    return s


@triton.jit
def fold(acc, total, best, s, v, MAY_BE_EMPTY: tl.constexpr):
    """Fold scores [m, tile] and values [tile, d] into the running (acc, total, best).

    A row that has seen nothing yet has best = -inf; only then the difference to it must be guarded.
    """
    new = tl.maximum(best, tl.max(s, 1))
    base = new
    if MAY_BE_EMPTY:
        base = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(s - base[:, None])
    keep = tl.exp2(best - base)
    total = total * keep + tl.sum(p, 1)
    acc = acc * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return acc, total, new
