"""Scaled dot-product attention with grouped queries, over keys and values already gathered.

Decode has one query token per sequence, so a KV head's group of query heads becomes the query length;
prefill is causal within one sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from muxd.kernels.sinks import weights

TILE = 128  # queries of a prefill attended at a time
FEW_PAIRS = 8  # below, one fused call beats two batched products; above, those are 1.4 times as fast (CPU)


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One query token for each of b sequences; a pair is (sequence, KV head), sequence-major.

    From ``FEW_PAIRS`` on keys and values should be contiguous: a batched product would copy them.

    q [b, heads, head_dim]; keys and values [pairs, s, head_dim]; mask [pairs, 1, s] is added to the scores
    (0 or -inf). ``softcap``: scores s become c · tanh(s / c) first; ``sinks`` [heads], see there. Returns
    [b, heads · head_dim].
    """
    pairs, _, head_dim = keys.shape
    if pairs < FEW_PAIRS and softcap is None and sinks is None:
        grouped = q.reshape(pairs, 1, -1, head_dim)
        full = None if mask is None else mask[:, None].expand(-1, 1, grouped.shape[2], -1)
        seen = F.scaled_dot_product_attention(
            grouped, keys[:, None], values[:, None], attn_mask=full, scale=scale
        )
    else:
        scores = torch.bmm((q * scale).view(pairs, -1, head_dim), keys.transpose(1, 2))  # [pairs, group, s]
        scores = _capped(scores, softcap)
        if mask is not None:
            scores += mask
        own = None if sinks is None else sinks.repeat(q.shape[0]).view(pairs, -1, 1)
        seen = torch.bmm(weights(scores, own), values)
    return seen.view(q.shape[0], -1)


def prefill_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One sequence, its queries the last n of s positions; with no mask plain causal, n == s.

    q [heads, n, head_dim]; keys and values [kv_heads, s, head_dim]; mask [n, s] (0 or -inf), causal too.
    ``softcap`` and ``sinks`` as in decode. Returns [heads, n, head_dim].
    """
    heads, n, head_dim = q.shape
    group = heads // keys.shape[0]
    if softcap is not None or sinks is not None or (q.dtype is torch.bfloat16 and n >= TILE // 2):
        return _tiled(q * scale, keys, values, mask, softcap, sinks).view(heads, n, head_dim)
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    out = F.scaled_dot_product_attention(
        q[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out[0]


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Gemma 2 (Gemma Team 2024), section 2; may overwrite ``scores``."""
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _tiled(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Batched products, ``TILE`` queries at a time and no keys after them: two to four times as fast as the
    fused call in bfloat16 (oneDNN's products use its instructions), scores rounded to bfloat16 as in the
    eager reference. A tile's scores stay in cache, whatever the context.
    """
    (heads, n, head_dim), (kv_heads, s, _) = q.shape, keys.shape
    grouped, seen = q.view(kv_heads, -1, n, head_dim), []
    own = None if sinks is None else sinks.view(kv_heads, -1, 1, 1)
    for first in range(0, n, TILE):
        stop = min(first + TILE, n)
        end = s - n + stop
        part = grouped[:, :, first:stop].reshape(kv_heads, -1, head_dim)
        scores = torch.bmm(part, keys[:, :end].transpose(1, 2)).view(kv_heads, -1, stop - first, end)
        scores = _capped(scores, softcap)
        if mask is None:
            scores += torch.full(scores.shape[2:], float("-inf"), dtype=q.dtype).triu_(first + 1)
        else:
            scores += mask[first:stop, :end]
        parts = weights(scores, own).reshape(kv_heads, -1, end)
        seen.append(torch.bmm(parts, values[:, :end]).view(heads, stop - first, head_dim))
    return seen[0] if len(seen) == 1 else torch.cat(seen, 1)
