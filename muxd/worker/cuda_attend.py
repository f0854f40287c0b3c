"""Attention of one batch on a device: K and V written where they belong, and read where they lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.paged_pool import PagedPool
from muxd.models.layers import Angles, Attend, Norm
from muxd.models.spec import ModelSpec


def _turn_and_write(
    qkv: Tensor,
    angles: Angles,
    norms: tuple[Norm, Norm] | None,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    positions: Tensor,
    owners: Tensor | None,
) -> Tensor:
    """One pass over the projection; the queries, [n, heads, head_dim]."""
    if norms is None:
        return ops.rope_and_write(qkv, *angles, pool, layer, rows, positions, owners)
    of_q, of_k = norms
    return ops.rope_and_write(
        qkv, *angles, pool, layer, rows, positions, owners,
        q_weight=of_q.weight, k_weight=of_k.weight, eps=of_q.eps,
    )  # fmt: skip


class PagedDecode(NamedTuple):
    """One token of each of b sequences. Implements ``muxd.models.layers.Attend``; all tensors int32."""

    spec: ModelSpec
    pool: PagedPool
    rows: Tensor  # [b, width]
    positions: Tensor  # [b]; -1: padding, nothing is written
    lengths: Tensor  # [b], the new token counted; 0: padding, nothing is read
    splits: int

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, Norm] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q = _turn_and_write(qkv, angles, norms, self.pool, layer, self.rows, self.positions, None)
        return ops.decode_attention(
            q, self.pool, layer, self.rows, self.lengths,
            scale=self.spec.attention_scale, window=self.spec.windows[layer],
            softcap=self.spec.attention_softcap, sinks=sinks, splits=self.splits,
        )  # fmt: skip


class PagedPrefill(NamedTuple):
    """Chunks of b sequences, n tokens one after another. Implements ``muxd.models.layers.Attend``."""

    spec: ModelSpec
    pool: PagedPool
    rows: Tensor  # [b, width]
    positions: Tensor  # [n]
    owners: Tensor  # [n]: each token's sequence
    starts: Tensor  # [b + 1], where each chunk begins
    cached: Tensor  # [b], tokens before the chunk

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, Norm] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q = _turn_and_write(qkv, angles, norms, self.pool, layer, self.rows, self.positions, self.owners)
        return ops.prefill_attention(
            q, self.pool, layer, self.rows, self.starts, self.cached,
            scale=self.spec.attention_scale, window=self.spec.windows[layer],
            softcap=self.spec.attention_softcap, sinks=sinks,
        )  # fmt: skip


class Woven(NamedTuple):
    """Attention of a prefill, after each layer of which ``between`` is called."""

    attend: Attend
    between: Callable[[], None]

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        out = self.attend(*given, **named)
        self.between()
        return out
