"""What the architectures share: the slots their operations come through, and rotary angles of a batch.

A model page asks ``Weights`` for its parts by name; how a matrix is stored, packed or placed is decided by
whoever gives the ``Weights``. Keys and values leave through ``Attend``; where they go is not known here.
"""

from typing import Protocol

import torch
from torch import Tensor

from muxd.kernels.rotary import angles
from muxd.models.rope import Rope


class Linear(Protocol):
    """x [n, inputs] -> x Wᵀ [n, outputs], plus ``add`` where given."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor: ...


class Weights(Protocol):
    """The model's tensors by their names in ``muxd.models.tensors``."""

    def tensor(self, name: str) -> Tensor: ...

    def linear(self, name: str) -> Linear: ...


class Attend(Protocol):
    """Store this batch's keys and values of ``layer`` and attend to everything its queries may see.

    q [n, heads, head_dim]; kv [n, 2 · kv_heads, head_dim], keys first. Returns [n, heads · head_dim].
    """

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor: ...


class Model(Protocol):
    """One architecture with its weights."""

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions int64 [n] -> the last layer's output [n, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden], any rows of ``hidden``'s result -> [m, vocab]."""
        ...


class Rotary:
    """Angles for a batch's positions, computed once and used by all its layers."""

    def __init__(self, rope: Rope, head_dim: int, dtype: torch.dtype):
        self._frequencies = torch.from_numpy(rope.inverse_frequencies(head_dim))
        self._dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [n] -> cosine and signed sine [n, 1, head_dim]."""
        return angles(positions, self._frequencies, self._dtype)
