"""Decode attention over head blocks: one query token of each sequence against everything it may see.

out = softmax(cap(scale · q Kᵀ)) V per query head, cap(s) = c · tanh(s / c) where a soft cap c is set
(Gemma 2, Gemma Team 2024, section 2), keys limited to the last ``window`` tokens where one is set. The Triton
kernel (``paged_decode_kernel``) splits long contexts over programs and merges the parts by their log-sum-exp:
Flash-Decoding, Dao et al. 2023; the queries of a group share one pass over their KV head.
"""

import torch
from torch import Tensor

from muxd.kernels.launch import ceil_div
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.sinks import weights

LEAST_TOKENS = 256  # a split below this costs more to merge than it saves
MOST_SPLITS = 64


def plan_splits(batch: int, kv_heads: int, max_tokens: int, sms: int) -> int:
    """Programs per (sequence, KV head) that fill ``sms`` multiprocessors twice, for up to ``max_tokens``.

    A graph captured with the answer stays right for every length; ``max_tokens`` only bounds useful splits.
    """
    wanted = ceil_div(2 * sms, max(1, batch * kv_heads))
    return max(1, min(wanted, ceil_div(max_tokens, LEAST_TOKENS), MOST_SPLITS))


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
    """The reference, in float32, a Python loop over sequences. Returns [b, heads · head_dim] in q's type.

    q [b, heads, head_dim]; rows int32 [b, width]; lengths int32 [b], the token of ``q`` counted. A sequence
    of length 0 is padding: its rows are not read and its output is 0. ``sinks`` [heads]: see there.
    ``splits`` changes nothing here.
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
