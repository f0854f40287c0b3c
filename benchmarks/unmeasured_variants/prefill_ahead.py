"""Unmeasured: prefill attention that looks up a tile's place one tile ahead.

The kernel of ``triton_kernels/paged_prefill_kernel.py`` with one function exchanged. There a tile's keys
depend on a row and a block that are loaded in the same turn, so that the compiler spends its stages on those
two look-ups and waits for every copy at the start of a turn. Here the loop's copies depend on no load of the
same turn, as in the decode kernel.
"""

import types
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels import paged_prefill_kernel
from muxd.kernels.launch import Call
from muxd.kernels.paged_tile_kernel import fold, load_half, offsets_of, scores_of


@triton.jit
def _stretch(
    acc, total, best, query, position, first, stop, begin, end,
    pool, table, own_rows, scale, softcap, window, column, table_stride,
    D: tl.constexpr, D_PAD: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    tl.static_assert(WIDTH == 1)
    token = first * TILE + tl.arange(0, TILE)
    valid = (token < end) & (token >= begin)
    at = offsets_of(own_rows, table, token, valid, table_stride, column, T, BLOCK, D)
    for _ in range(first, stop):
        valid = (token < end) & (token >= begin)
        k = load_half(pool, at, valid, D, D_PAD).to(query.dtype)
        s = scores_of(query, k, scale, softcap, CAPPED)
        if MASKED:
            hidden = token[None, :] > position[:, None]
            if WINDOWED:
                hidden = hidden | (token[None, :] <= position[:, None] - window)
            s = tl.where(hidden, float("-inf"), s)
        v = load_half(pool + T * D, at, valid, D, D_PAD).to(query.dtype)
        token += TILE
        ahead = (token < end) & (token >= begin)
        at = offsets_of(own_rows, table, token, ahead, table_stride, column, T, BLOCK, D)
        acc, total, best = fold(acc, total, best, s, v, MASKED)
    return acc, total, best


def _with_own_stretch() -> Any:
    """The kernel again, over the function above: Triton looks names up in a function's globals."""
    served = paged_prefill_kernel._prefill.fn
    names = {**served.__globals__, "_stretch": _stretch}
    own = types.FunctionType(served.__code__, names, served.__name__, served.__defaults__)
    own.__annotations__, own.__module__ = served.__annotations__, __name__
    own.__qualname__ = f"{served.__qualname__}_ahead"
    return triton.jit(do_not_specialize=["window", "column", "rows_stride", "sequences"])(own)


_prefill = _with_own_stretch()


def prefill_calls(q: Tensor, *places: Any, **options: Any) -> tuple[Tensor, list[Call]]:
    """As ``paged_prefill_kernel.prefill_calls``."""
    out, calls = paged_prefill_kernel.prefill_calls(q, *places, **options)
    return out, [call._replace(kernel=_prefill) for call in calls]


def prefill_attention(q: Tensor, *places: Any, **options: Any) -> Tensor:
    """As ``paged_prefill_kernel.prefill_attention``."""
    out, calls = prefill_calls(q, *places, **options)
    for call in calls:
        call.run()
    return out
