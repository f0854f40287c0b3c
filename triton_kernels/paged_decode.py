"""Decode attention over head blocks: one query token of each sequence against everything it may see.

out = softmax(cap(scale · q Kᵀ)) V per query head, cap(s) = c · tanh(s / c) where a soft cap c is set
(Gemma 2, Gemma Team 2024, section 2), keys limited to the last ``window`` tokens where one is set. The Triton
kernel (``paged_decode_kernel``) cuts contexts into items that programs walk side by side and merges their
parts by log-sum-exp: Flash-Decoding, Dao et al. 2023; the queries of a group share one pass over their KV
head. A step's items are of one length, whatever its contexts are, so that one long context among many short
ones is walked by as many programs as it is worth.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.sinks import weights

UNIT = 128  # tokens; an item is some of them, and every kernel's tile divides it
LEAST_UNITS = 2  # of an item: shorter ones cost more to merge than they save
AN_SM = 6  # items that an SM is to have: twice as many as are on one at a time


class DecodePlan(NamedTuple):
    """How a step's contexts are cut, for all layers with these KV heads and this window. On the device."""

    ends: Tensor  # int32 [b + 2]: 0, where each sequence's items end, and the units of an item
    arrived: Tensor  # int32 [b, kv_heads], 0 between two layers: items that are done
    most: int  # items of any lengths; from shapes alone, so that a captured graph serves all


def plan_decode(
    lengths: Tensor, kv_heads: int, *, window: int | None = None, programs: int = AN_SM
) -> DecodePlan:
    """Cut contexts of ``lengths`` int32 [b] into items of equal length, ``programs`` (item, KV head) pairs or
    fewer and one more a sequence; a padding line of length 0 has one item, which writes its zeros.

    Units begin at multiples of ``UNIT``, the first one where the window does. Items: sum over sequences of
    ceil(units / each) <= b + programs / kv_heads, for each >= units of all · kv_heads / programs.
    """
    first = torch.zeros_like(lengths) if window is None else (lengths - window).clamp(min=0) // UNIT
    units = ((lengths + UNIT - 1) // UNIT - first).clamp(min=1)
    each = ((units.sum() * kv_heads + programs - 1) // programs).clamp(min=LEAST_UNITS)
    ends = ((units + each - 1) // each).cumsum(0)
    told = torch.cat((ends.new_zeros(1), ends, each[None])).int()
    arrived = torch.zeros(len(lengths), kv_heads, dtype=torch.int32, device=lengths.device)
    return DecodePlan(told, arrived, len(lengths) + programs // kv_heads)


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
    """The reference, in float32, a Python loop over sequences. Returns [b, heads · head_dim] in q's type.

    q [b, heads, head_dim]; rows int32 [b, width]; lengths int32 [b], the token of ``q`` counted. A sequence
    of length 0 is padding: its rows are not read and its output is 0. ``plan``: of these lengths and this
    window; it changes nothing here. ``sinks`` [heads]: see there.
    """
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for i, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        first = 0 if window is None else max(0, length - window)
        keys, values = pool.seen(layer, rows[i], length, first)
        out[i] = attend(q[i][None], keys, values, None, scale, softcap, sinks)[0]
    return out.to(q.dtype).flatten(1)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """q [n, heads, d], keys and values [kv_heads, s, d], hidden bool [n, s] -> float32 [n, heads, d]."""
    n, heads, head_dim = q.shape
    grouped = q.float().view(n, keys.shape[0], -1, head_dim)
    scores = torch.einsum("nkgd,ksd->kgns", grouped, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    own = None if sinks is None else sinks.float().view(keys.shape[0], -1, 1, 1)
    return torch.einsum("kgns,ksd->nkgd", weights(scores, own), values).reshape(n, heads, head_dim)
