"""Prefill attention over head blocks: chunks of prompts, each behind what its sequence has cached already.

The formula of ``paged_decode`` for query tokens at positions [cached, cached + n): causal, and with a window
key p' is seen from p when p - window < p' <= p. Keys and values of the chunk are in the pool before the call.
Many sequences of any lengths go in one launch; the Triton kernel (``paged_prefill_kernel``) is the tiled
online softmax of FlashAttention-2 (Dao 2023) over pages.
"""

import torch
from torch import Tensor

from muxd.kernels.paged_decode import attend
from muxd.kernels.paged_pool import PagedPool


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
    """The reference, in float32, a Python loop over sequences. Returns [n, heads · head_dim] in q's type.

    q [n, heads, head_dim], the sequences' chunks one after another; starts int32 [b + 1], where each begins
    in ``q`` and where the last ends; cached int32 [b], tokens before the chunk; rows int32 [b, width],
    reaching to the chunk's end; sinks [heads], see there. Empty chunks are allowed; tokens from ``starts[b]``
    on are padding and come out as 0.
    """
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for i, before in enumerate(cached.tolist()):
        here = slice(int(starts[i]), int(starts[i + 1]))
        n = here.stop - here.start
        if n == 0:
            continue
        first = 0 if window is None else max(0, before + 1 - window)
        keys, values = pool.seen(layer, rows[i], before + n, first)
        query = torch.arange(before, before + n, device=q.device)[:, None]
        key = torch.arange(first, before + n, device=q.device)[None]
        hidden = key > query if window is None else (key > query) | (key <= query - window)
        out[here] = attend(q[here], keys, values, hidden, scale, softcap, sinks)
    return out.to(q.dtype).flatten(1)
