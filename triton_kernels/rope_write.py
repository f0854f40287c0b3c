"""Between the fused projection and attention: normalise queries and keys (optional), rotate them, and store
keys and values in their head blocks.

Rotary embedding: Su et al. 2021 (RoFormer), section 3.4, on pairs (x[i], x[i + d / 2]); per-head RMS norm of
queries and keys: Gemma 3 and Qwen 3 reports. One pass reads the projection once; the keys and values go
nowhere but into the pool.
"""

import torch
from torch import Tensor

from muxd.kernels.float8 import FLOAT8, packed
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.rms_norm import rms_norm


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
    """The reference. Changes the queries of ``qkv`` in place and returns them as a view [n, heads, head_dim].

    qkv [n, heads + 2 · kv_heads, head_dim], contiguous, of a layer that reads another's keys and values
    [n, heads, head_dim]; cos and signed sin [n, 1, head_dim] as
    ``rotary.angles`` gives them; positions int32 [n], -1 for padding tokens, which are not stored; owners
    int32 [n], each token's line in ``rows`` [b, width] (None: token i belongs to line i). Norms apply where
    their weights [head_dim] are given; ``offset``: times 1 + w. Float32 inside, rounded after the norm and at
    the end; a float8 pool saturates.
    """
    n, own = qkv.shape[0], pool.layer(layer)
    kv_heads = own.kv_heads if own.own else 0
    heads = qkv.shape[1] - 2 * kv_heads
    q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
    q.copy_(_rotated(_normed(q, q_weight, eps, offset), cos, sin))
    if not own.own:
        return q
    k = _rotated(_normed(k, k_weight, eps, offset), cos, sin).to(qkv.dtype)
    v = _normed(v, v_weight, eps, offset)
    real = positions >= 0
    at = positions[real].long()
    line = torch.arange(n, device=qkv.device)[real] if owners is None else owners[real].long()
    table = pool.table[rows[line, at // pool.tokens].long()].long()  # [n, blocks of a row]
    slot, slots = (at % pool.tokens)[:, None], pool.slots(layer)
    for kv, blocks, at_slot in (
        (k, table[:, own.keys], slot),
        (v, table[:, own.values], slot + own.value_slot(pool.tokens)),
    ):
        if slots.dtype is FLOAT8:  # by bytes: not every torch indexes it
            slots.view(torch.uint8)[blocks, at_slot] = packed(kv[real])
        else:
            slots[blocks, at_slot] = kv[real].to(slots.dtype)
    return q


def _normed(x: Tensor, weight: Tensor | None, eps: float, offset: bool) -> Tensor:
    return x if weight is None else rms_norm(x, weight, eps, offset=offset)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    full = x.float()
    swapped = torch.cat((full[..., half:], full[..., :half]), -1)
    return full * cos.float() + swapped * sin.float()
