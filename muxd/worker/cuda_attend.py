"""Attention of one batch on a device: K and V written where they belong, and read where they lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.paged_decode import DecodePlan
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_states import PagedStates
from muxd.models.layers import Angles, Attend, Norm, Recur
from muxd.models.spec import ModelSpec
from muxd.models.state_layout import StateLayout

_WEIGHTS = ("q_weight", "k_weight", "v_weight")


def _turn_and_write(
    qkv: Tensor,
    angles: Angles,
    norms: tuple[Norm, ...] | None,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    positions: Tensor,
    owners: Tensor | None,
) -> Tensor:
    """One pass over the projection; the queries, [n, heads, head_dim]."""
    if norms is None:
        return ops.rope_and_write(qkv, *angles, pool, layer, rows, positions, owners)
    weights: dict[str, Any] = dict(zip(_WEIGHTS, (norm.weight for norm in norms), strict=False))
    return ops.rope_and_write(qkv, *angles, pool, layer, rows, positions, owners, **weights, eps=norms[0].eps)


class DecodeRecur(NamedTuple):
    """The states of one token's sequences each. Implements ``muxd.models.layers.Recur``."""

    states: PagedStates
    layout: StateLayout
    rows: Tensor  # int32 [b, width], of the states
    positions: Tensor  # int32 [b]; -1: padding

    def __call__(self, layer: int, mixed: Tensor, decay: Tensor, beta: Tensor, conv: Tensor) -> Tensor:
        first = self.layout.head(layer)
        return ops.delta_decode(mixed, decay, beta, conv, self.states, first, self.rows, self.positions)


class PrefillRecur(NamedTuple):
    """Those of b sequences, of which there are chunks. Implements ``muxd.models.layers.Recur``."""

    states: PagedStates
    layout: StateLayout
    rows: Tensor  # int32 [b, width], of the states
    starts: Tensor  # int32 [b + 1], where each chunk begins
    cached: Tensor  # int32 [b], tokens before the chunk

    def __call__(self, layer: int, mixed: Tensor, decay: Tensor, beta: Tensor, conv: Tensor) -> Tensor:
        first = self.layout.head(layer)
        return ops.delta_prefill(
            mixed, decay, beta, conv, self.states, first, self.rows, self.starts, self.cached
        )


class PagedDecode(NamedTuple):
    """One token of each of b sequences. Implements ``muxd.models.layers.Attend``; all tensors int32."""

    spec: ModelSpec
    pool: PagedPool
    rows: Tensor  # [b, width]
    positions: Tensor  # [b]; -1: padding, nothing is written
    lengths: Tensor  # [b], the new token counted; 0: padding, nothing is read
    programs: int  # (item, KV head) pairs that the step is cut for
    plans: dict[tuple[int, int | None], DecodePlan]  # by KV heads and window; empty when the step begins
    recur: Recur | None = None

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, ...] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q = _turn_and_write(qkv, angles, norms, self.pool, layer, self.rows, self.positions, None)
        window = self.spec.windows[layer]
        return ops.decode_attention(
            q, self.pool, layer, self.rows, self.lengths, self._plan(layer),
            scale=self.spec.attention_scale, window=window, softcap=self.spec.attention_softcap, sinks=sinks,
        )  # fmt: skip

    def _plan(self, layer: int) -> DecodePlan:
        """Made by the first layer with as many KV heads and this window."""
        kv_heads, window = self.pool.layer(layer).kv_heads, self.spec.windows[layer]
        if (kv_heads, window) not in self.plans:
            self.plans[kv_heads, window] = ops.plan_decode(
                self.lengths, kv_heads, window=window, programs=self.programs
            )
        return self.plans[kv_heads, window]


class PagedPrefill(NamedTuple):
    """Chunks of b sequences, n tokens one after another. Implements ``muxd.models.layers.Attend``."""

    spec: ModelSpec
    pool: PagedPool
    rows: Tensor  # [b, width]
    positions: Tensor  # [n]
    owners: Tensor  # [n]: each token's sequence
    starts: Tensor  # [b + 1], where each chunk begins
    cached: Tensor  # [b], tokens before the chunk
    recur: Recur | None = None

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, ...] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q = _turn_and_write(qkv, angles, norms, self.pool, layer, self.rows, self.positions, self.owners)
        return ops.prefill_attention(
            q, self.pool, layer, self.rows, self.starts, self.cached,
            scale=self.spec.attention_scale, window=self.spec.windows[layer],
            softcap=self.spec.attention_softcap, sinks=sinks,
        )  # fmt: skip


class Woven(NamedTuple):
    """Implements ``muxd.models.layers.Attend`` and ``Recur`` by another, behind each call of which
    ``between`` is called."""

    call: Attend | Recur
    between: Callable[[], None]
    recur: Recur | None = None

    def __call__(self, *given: Any, **named: Any) -> Tensor:
        out = self.call(*given, **named)
        self.between()
        return out


def woven(attend: Attend, between: Callable[[], None]) -> Attend:
    """``attend`` of a prefill, behind each layer of which ``between`` is called, whatever keeps its state."""
    recur = None if attend.recur is None else Woven(attend.recur, between)
    return Woven(attend, between, recur)
