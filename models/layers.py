"""What the architectures share: the slots their operations come through, and rotary angles of a batch.

A model page asks ``Weights`` for its parts by name; how a matrix is stored, packed or placed, and what
normalises or turns, is decided by whoever gives the ``Weights``: a page is the same on every device. Keys and
values leave through ``Attend``; where they go is not known here.
"""

from typing import Protocol

import torch
from torch import Tensor

from muxd.kernels.rotary import angles
from muxd.models.rope import Rope
from muxd.models.spec import ModelSpec


class Linear(Protocol):
    """x [n, inputs] -> x Wᵀ (+ b) [n, outputs], plus ``add`` where given, which may be overwritten."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor: ...


class Norm(Protocol):
    """Root-mean-square norm of x over its last axis, times ``weight``; plus ``add`` where given."""

    weight: Tensor  # as it multiplies
    eps: float

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor: ...


Angles = tuple[Tensor, Tensor]  # cosine and signed sine of each token's position, [n, 1, head_dim]


class Turn(Protocol):
    """positions [n] -> the angles of one rotary embedding."""

    def __call__(self, positions: Tensor) -> Angles: ...


class Weights(Protocol):
    """The model's tensors by their names in ``muxd.models.tensors``."""

    def tensor(self, name: str) -> Tensor: ...

    def linear(self, name: str, *, bias: bool = False) -> Linear:
        """``bias``: ``name.bias`` is added to every product."""
        ...

    def norm(self, name: str, eps: float, *, offset: bool = False, centred: bool = False) -> Norm:
        """``offset``: the stored weight lies around zero, and 1 + w multiplies. ``centred``: the mean is
        subtracted first (LayerNorm, without a bias)."""
        ...

    def plain_norm(self, size: int, eps: float) -> Norm:
        """Without a weight: one of ``size`` ones."""
        ...

    def rotary(self, rope: Rope, head_dim: int) -> Turn: ...

    def summed(self, x: Tensor) -> Tensor:
        """What a mixture of experts gives, of which each rank of a model that is cut has a part; may be x."""
        ...


class Recur(Protocol):
    """Run this batch's tokens through the state of ``layer`` of their sequences, where it lies, and leave it
    there as it is after them: ``muxd.kernels.delta_rule``.

    mixed [n, channels]: queries, keys and values as projected. decay and beta float32 [n, value_heads]; decay
    in log space. conv float32 [channels, kernel]. Returns float32 [n, value_heads · value_dim].
    """

    def __call__(self, layer: int, mixed: Tensor, decay: Tensor, beta: Tensor, conv: Tensor) -> Tensor: ...


class Attend(Protocol):
    """Turn this batch's queries and keys, store its keys and values, attend to all its queries may see.

    qkv [n, heads + 2 · kv_heads, head_dim], the projection of ``layer``, contiguous; it is overwritten. Of a
    layer that reads an earlier one's keys and values [n, heads, head_dim]. ``norms``: of each query and of
    each key, before they are turned, and of each value, where there are three. ``sinks`` [heads]: what
    ``muxd.kernels.sinks`` says. Returns [n, heads · head_dim].
    """

    @property
    def recur(self) -> Recur | None:
        """Where layers of the model keep a state."""
        ...

    def __call__(
        self,
        layer: int,
        qkv: Tensor,
        angles: Angles,
        norms: tuple[Norm, ...] | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor: ...


class Layer(Protocol):
    """x [n, hidden] -> [n, hidden], with what attention and MLP add."""

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor: ...


class Head(Protocol):
    """The end of a model: final norm, head, soft cap."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden], any rows of the last layer's output -> [m, vocab]."""
        ...


class Model(Head, Protocol):
    """One architecture with its weights."""

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions int32 or int64 [n] -> the last layer's output [n, hidden]."""
        ...

    def output(self, hidden: Tensor) -> Tensor:
        """[m, hidden], any rows of ``hidden``'s result, as they are pooled: after the last norm."""
        ...


class Rotary:
    """Angles for a batch's positions, computed once and used by all its layers."""

    def __init__(self, rope: Rope, head_dim: int, dtype: torch.dtype):
        self._frequencies = torch.from_numpy(rope.inverse_frequencies(head_dim))
        self._dtype, self._magnitudes = dtype, torch.from_numpy(rope.magnitudes(head_dim))

    def __call__(self, positions: Tensor) -> Angles:
        """positions [n] -> cosine and signed sine [n, 1, head_dim]."""
        return angles(positions, self._frequencies, self._dtype, self._magnitudes)


class Turns:
    """The rotary embeddings of a model's layers, each computed once a batch."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        layers = enumerate(spec.row_layout.layers)
        self._kinds = [(spec.rope_of(layer), rows.head_dim) for layer, rows in layers]
        self._turns = {kind: weights.rotary(*kind) for kind in set(self._kinds)}

    def __call__(self, positions: Tensor) -> list[Angles]:
        """positions [n] -> the angles that each layer turns by."""
        angles = {kind: turn(positions) for kind, turn in self._turns.items()}
        return [angles[kind] for kind in self._kinds]
