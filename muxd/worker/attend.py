"""Attention of one batch over the paged pool: what a model page's ``attend`` calls.

Everything that is the same in all layers of a kind (where to write, what to gather, masks, scratch views) is
worked out once per step; a layer then writes, gathers and attends with a handful of tensor operations.
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels.attention import FEW_PAIRS, decode_attention, prefill_attention
from muxd.kernels.rotary import rotate_
from muxd.kernels.row_layout import LayerRows
from muxd.models.layers import Angles, Norm, Recur
from muxd.worker.kv import PagedKv
from muxd.worker.sequence import Sequence, Span
from muxd.worker.states import HostRecur

_SCRATCH_BYTES = 8 << 20  # keys of one group: stays in the last-level cache
_NEG_INF = float("-inf")
_Kind = tuple[int, int, int]  # of layers: how far they see, KV heads, head_dim


def _turned(
    heads: int, at: LayerRows, qkv: Tensor, angles: Angles, norms: tuple[Norm, ...] | None
) -> tuple[Tensor, Tensor]:
    """Normalise and turn in place; q [n, heads, head_dim] and kv [n, 2 · kv_heads, head_dim], views. A layer
    that reads another's keys and values has none of its own."""
    stop = heads + at.kv_heads if at.own else heads
    parts = qkv[:, :heads], qkv[:, heads:stop], qkv[:, stop:]
    if norms is not None:
        for norm, part in zip(norms, parts, strict=False):
            part.copy_(norm(part))
    rotate_(qkv[:, :stop], *angles)
    return parts[0], qkv[:, heads:]


class _Group(NamedTuple):
    """Sequences [first, stop) of the batch, gathered and attended together."""

    first: int
    stop: int
    places: Tensor  # int32 [sequences, blocks of a row, rows]
    gathered: tuple[Tensor, Tensor]  # [blocks, T · head_dim], scratch
    keys: Tensor  # [pairs, s, head_dim], the same memory; a pair is (sequence, KV head)
    values: Tensor
    mask: Tensor | None  # [pairs, 1, s]


class DecodeAttend:
    """One decode step. ``sequences`` must be ordered by ``cached``, longest first.

    The step's token of each sequence is at position ``cached``; its row must be there already.
    """

    def __init__(self, kv: PagedKv, sequences: Items[Sequence]):
        self._kv = kv
        self.recur: Recur | None = HostRecur.step(kv.states, sequences) if kv.states else None
        positions = np.array([s.cached for s in sequences], dtype=np.int64)
        rows = np.array([s.rows[s.cached // kv.tokens] for s in sequences], dtype=np.int64)
        self._writes = kv.writes(rows, positions)
        lengths = positions + 1
        longest = int(lengths[0])
        groups: dict[_Kind, list[_Group]] = {}
        self._groups: list[list[_Group]] = []  # by layer
        for at, window in zip(kv.layout.layers, kv.spec.windows, strict=True):
            reach = longest if window is None else min(window, longest)
            kind = (reach, at.kv_heads, at.head_dim)
            if at.kv_heads and kind not in groups:
                groups[kind] = _groups(kv, sequences, lengths, kind)
            self._groups.append(groups.get(kind, []))

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, ...] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See ``muxd.models.layers.Attend``."""
        spec, at = self._kv.spec, self._kv.layout.layers[layer]
        q, kv = _turned(spec.heads, at, qkv, angles, norms)
        scale, cap = spec.attention_scale, spec.attention_softcap
        if at.own:
            self._kv.write(layer, self._writes, kv)
        seen = []
        for group in self._groups[layer]:
            self._kv.gather(layer, group.places, *group.gathered)
            part = q[group.first : group.stop]
            seen.append(decode_attention(part, group.keys, group.values, group.mask, scale, cap, sinks))
        return seen[0] if len(seen) == 1 else torch.cat(seen)


def _groups(kv: PagedKv, sequences: Items[Sequence], lengths: NDArray[np.int64], kind: _Kind) -> list[_Group]:
    """Split the batch so that padding at most doubles the work and the scratch stays bounded."""
    reach, kv_heads, head_dim = kind
    first_seen = np.maximum(lengths - reach, 0)
    first_rows, stop_rows = first_seen // kv.tokens, -(-lengths // kv.tokens)
    counts = stop_rows - first_rows
    row_bytes = kv_heads * kv.tokens * head_dim * kv.dtype.itemsize
    limit = _SCRATCH_BYTES // row_bytes
    spans, start = [], 0
    for i in range(1, len(sequences) + 1):
        full = i < len(sequences) and (i + 1 - start) * counts[start] > limit
        if i == len(sequences) or full or 2 * counts[i] < counts[start]:
            spans.append((start, i))
            start = i
    return [_group(kv, sequences, lengths, first_seen, first_rows, counts, a, b, kind) for a, b in spans]


def _group(
    kv: PagedKv,
    sequences: Items[Sequence],
    lengths: NDArray[np.int64],
    first_seen: NDArray[np.int64],
    first_rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    first: int,
    stop: int,
    kind: _Kind,
) -> _Group:
    """Rows are padded with the sequence's own last one, which is finite and masked."""
    _, kv_heads, head_dim = kind
    most = int(counts[first:stop].max())
    rows = np.empty((stop - first, most), dtype=np.int64)
    for i, at in enumerate(range(first, stop)):
        own = sequences[at].rows[first_rows[at] : first_rows[at] + counts[at]]
        rows[i, : len(own)] = own
        rows[i, len(own) :] = own[-1]
    offset = first_rows[first:stop] * kv.tokens
    low, high = first_seen[first:stop] - offset, lengths[first:stop] - offset
    keys, values = kv.scratch(rows.size * kv_heads, head_dim)
    pairs = (stop - first) * kv_heads
    # Many pairs are multiplied as they lie (a slice would be copied); few are cut to what is seen.
    cut = pairs < FEW_PAIRS
    span = slice(int(low.min()), int(high.max())) if cut else slice(0, most * kv.tokens)
    shape = (pairs, -1, head_dim)
    return _Group(
        first,
        stop,
        kv.gathering(rows),
        (keys, values),
        keys.view(shape)[:, span],
        values.view(shape)[:, span],
        _decode_mask(low, high, span, kv.dtype, kv_heads),
    )


def _decode_mask(
    low: NDArray[np.int64], high: NDArray[np.int64], span: slice, dtype: torch.dtype, kv_heads: int
) -> Tensor | None:
    """0 for tokens in [low, high), -inf for the padding; None when there is none in ``span``."""
    if (low == span.start).all() and (high == span.stop).all():
        return None
    at = np.arange(span.start, span.stop)
    hidden = torch.from_numpy((at < low[:, None]) | (at >= high[:, None]))
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, _NEG_INF)
    return mask.repeat_interleave(kv_heads, 0)[:, None]


class PrefillAttend:
    """One prefill batch: the spans' tokens one after another."""

    def __init__(self, kv: PagedKv, spans: Items[Span]):
        self._kv, self._spans = kv, spans
        self.recur: Recur | None = HostRecur.chunks(kv.states, spans) if kv.states else None
        positions = np.concatenate([np.arange(s.start, s.stop, dtype=np.int64) for s in spans])
        rows = np.concatenate(
            [
                np.asarray(s.sequence.rows, dtype=np.int64)[np.arange(s.start, s.stop) // kv.tokens]
                for s in spans
            ]
        )
        self.positions = torch.from_numpy(positions)
        self._writes = kv.writes(rows, positions)
        self._views = {w: [_view(kv, span, w) for span in spans] for w in set(kv.spec.windows)}
        self._written: dict[int, Tensor] = {}  # by layer: keys and values that later layers read, too

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, ...] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See ``muxd.models.layers.Attend``."""
        spec, at = self._kv.spec, self._kv.layout.layers[layer]
        q, kv = _turned(spec.heads, at, qkv, angles, norms)
        if at.own:
            # As a later chunk sees it: how a prompt is cut changes nothing.
            kv = self._kv.blocks(layer).as_kept(kv)
            self._kv.write(layer, self._writes, kv)
        else:
            kv = self._written[at.first]
        if at.first in self._kv.shared:
            self._written[at.first] = kv
        out = torch.empty(q.shape[0], spec.heads, at.head_dim, dtype=q.dtype)
        end = 0
        for span, view in zip(self._spans, self._views[spec.windows[layer]], strict=True):
            here = slice(end, end := end + span.stop - span.start)
            keys, values = self._seen(layer, view, kv[here])
            part = q[here].transpose(0, 1)
            seen = prefill_attention(
                part, keys, values, view.mask, spec.attention_scale, spec.attention_softcap, sinks
            )
            out[here] = seen.transpose(0, 1)
        return out.flatten(1)

    def _seen(self, layer: int, view: "_View", kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, s, head_dim]: the chunk's own, or from the pool when there are older."""
        at = self._kv.layout.layers[layer]
        if view.places is None:
            both = kv.transpose(0, 1)
            return both[: at.kv_heads], both[at.kv_heads :]
        gathered = self._kv.scratch(view.places.shape[2] * at.kv_heads, at.head_dim)
        self._kv.gather(layer, view.places, *gathered)
        keys, values = (half.view(at.kv_heads, -1, at.head_dim)[:, view.part] for half in gathered)
        return keys, values


class _View(NamedTuple):
    """What one span sees in layers with one window: in the chunk itself, or gathered."""

    mask: Tensor | None  # [n, s]; None: plain causal
    places: Tensor | None  # int32 [1, blocks of a row, rows]; None: nothing before the chunk
    part: slice  # tokens of the gathered rows that may be seen


def _view(kv: PagedKv, span: Span, window: int | None) -> _View:
    """Query at p sees keys k with p - window < k <= p."""
    low = 0 if window is None else max(0, span.start + 1 - window)
    if span.start == 0:
        plain = window is None or span.stop <= window
        return _View(None if plain else _prefill_mask(kv, span, 0, window), None, slice(0, span.stop))
    first, stop = low // kv.tokens, -(-span.stop // kv.tokens)
    rows = np.asarray(span.sequence.rows[first:stop], dtype=np.int64)[None]
    part = slice(low - first * kv.tokens, span.stop - first * kv.tokens)
    return _View(_prefill_mask(kv, span, low, window), kv.gathering(rows), part)


def _prefill_mask(kv: PagedKv, span: Span, low: int, window: int | None) -> Tensor:
    """[stop - start, stop - low], 0 where seen and -inf elsewhere."""
    query = torch.arange(span.start, span.stop)[:, None]
    key = torch.arange(low, span.stop)[None]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=kv.dtype).masked_fill_(hidden, _NEG_INF)
