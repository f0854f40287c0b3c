"""States of a model's sequences where they lie in the pool (``muxd.models.state_layout``), for torch's step
of a CPU: those of one layer are gathered, changed and put back.

Used by ``muxd.worker.attend``. Nothing is kept beside the pool; a sequence that begins has read nothing of
it.
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from muxd.kernels.delta_rule import recur
from muxd.models.delta import DeltaNet
from muxd.models.state_layout import FLOAT, state_layout
from muxd.worker.sequence import Sequence, Span

_SCRATCH_BYTES = 8 << 20  # states of one layer that are gathered together: stays in the last-level cache


class SequenceStates:
    """Blocks of ``pool`` (uint8 [bytes]) as floats. ``table``: int32 [rows, ...], the head blocks of each
    row."""

    def __init__(self, delta: DeltaNet, pool: Tensor, block_bytes: int, table: Tensor):
        self.delta, self.layout = delta, state_layout(delta, block_bytes)
        self._floats = pool[: pool.numel() // block_bytes * block_bytes].view(torch.float32)
        self._floats = self._floats.view(-1, block_bytes // FLOAT)
        self._table = table.view(len(table), -1)
        self._line = self.layout.lines * delta.value_dim  # floats of a block that hold lines of a state
        layer_bytes = self.layout.layer_blocks * block_bytes
        self.together = max(1, _SCRATCH_BYTES // layer_bytes)  # sequences

    def places(self, sequences: Items[Sequence]) -> Tensor:
        """The blocks of their states, int64 [sequences, blocks]."""
        rows = torch.from_numpy(np.array([sequence.state for sequence in sequences], dtype=np.int64))
        return self._table[rows].flatten(1)[:, : self.layout.blocks].long()

    def gathered(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Heads [b, heads, lines, value_dim], of which the first key_dim lines count, and tails
        [b, floats], of which the first kernel - 1 times channels do; of ``places``."""
        heads, tails = self._blocks(layer, places)
        found = self._floats[:, : self._line][heads]
        return (
            found.view(len(places), self.layout.heads, -1, self.delta.value_dim),
            self._floats[tails].flatten(1),
        )

    def put(self, layer: int, places: Tensor, heads: Tensor, tails: Tensor) -> None:
        """Back to where ``gathered`` has found them."""
        of_heads, of_tails = self._blocks(layer, places)
        self._floats[:, : self._line].index_put_((of_heads,), heads.view(*of_heads.shape, self._line))
        self._floats.index_put_((of_tails,), tails.view(*of_tails.shape, -1))

    def _blocks(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        first, tail = self.layout.head(layer), self.layout.tail(layer)
        return places[:, first:tail], places[:, tail : tail + self.layout.tail_blocks]


class _Group(NamedTuple):
    """Sequences that are computed together, with as many tokens each."""

    tokens: slice  # of the batch
    each: int
    places: Tensor
    begins: bool


class HostRecur:
    """One batch. Implements ``muxd.models.layers.Recur``."""

    def __init__(self, states: SequenceStates, groups: list[_Group]):
        self._states, self._groups = states, groups

    @classmethod
    def step(cls, states: SequenceStates, sequences: Items[Sequence]) -> "HostRecur":
        """One token of each."""
        groups = []
        for first in range(0, len(sequences), states.together):
            some = sequences[first : first + states.together]
            groups.append(_Group(slice(first, first + len(some)), 1, states.places(some), begins=False))
        return cls(states, groups)

    @classmethod
    def chunks(cls, states: SequenceStates, spans: Items[Span]) -> "HostRecur":
        """The spans' tokens one after another."""
        groups, end = [], 0
        for span in spans:
            here = slice(end, end := end + span.stop - span.start)
            places = states.places([span.sequence])
            groups.append(_Group(here, span.stop - span.start, places, begins=span.start == 0))
        return cls(states, groups)

    def __call__(self, layer: int, mixed: Tensor, decay: Tensor, beta: Tensor, conv: Tensor) -> Tensor:
        """See ``muxd.models.layers.Recur``."""
        delta = self._states.delta
        out = torch.empty(len(mixed), delta.values)
        for group in self._groups:
            shape = (len(group.places), group.each, -1)
            heads, tails = self._states.gathered(layer, group.places)
            if group.begins:
                heads.zero_()
                tails.zero_()
            state = heads[:, :, : delta.key_dim]
            tail = tails[:, : (delta.kernel - 1) * delta.channels].unflatten(1, (-1, delta.channels))
            some = mixed[group.tokens].reshape(shape)
            rates = decay[group.tokens].reshape(shape), beta[group.tokens].reshape(shape)
            read = recur(some, *rates, conv, state, tail, chunked=group.each > 1)
            self._states.put(layer, group.places, heads, tails)
            out[group.tokens] = read.reshape(-1, delta.values)
        return out
