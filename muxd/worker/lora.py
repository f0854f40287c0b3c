"""Adapters on torch's step of the CPU: what each row's adapter adds to the base's products.

Rows are told once a batch; a batch without an adapter's row costs a look at an empty list. Computed in
float32, as PEFT does, and rounded to the model's type once.
"""

from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.messages import LoraPart, TensorEntry
from muxd.models.layers import Linear
from muxd.worker.mapped import MappedWeights, Views
from muxd.worker.sequence import Sequence

_Rows = slice | Tensor


class _Part:
    """``a`` [r, inputs] and ``b`` [outputs, r], views of the region; outputs [first, stop) of a matrix."""

    def __init__(self, told: LoraPart, region: Tensor):
        views = Views([told.a, told.b], region)
        self.a, self.b = views.tensor(told.a.name).t(), views.tensor(told.b.name).t()
        self.outputs, self.scale = slice(told.first, told.first + told.b.shape[0]), told.scale


class Adapters:
    """All adapters of a model, and which rows of the present batch are whose."""

    def __init__(self, told: list[LoraPart], region: Tensor):
        self.groups: list[tuple[int, _Rows]] = []  # adapter, its rows
        self._matrices: dict[str, dict[int, list[_Part]]] = {}
        for part in told:
            parts = self._matrices.setdefault(part.matrix, {})
            parts.setdefault(part.adapter, []).append(_Part(part, region))

    def use(self, sequences: Items[Sequence], counts: Items[int] | None = None) -> None:
        """The next batch has so many rows of each sequence; without ``counts`` one of each."""
        whose = [sequence.adapter for sequence in sequences]
        self.groups = []
        if any(whose):
            numbers = np.repeat(whose, 1 if counts is None else counts)
            self.groups = [(one, _rows(numbers == one)) for one in sorted(set(whose) - {0})]

    def linear(self, name: str, plain: Linear) -> Linear:
        """The matrix ``name``, of which ``plain`` is the base's product."""
        parts = self._matrices.get(name)
        return plain if parts is None else _Adapted(plain, self, parts)


def _rows(mine: NDArray[np.bool_]) -> _Rows:
    """A slice where they follow each other: then nothing is copied."""
    found = np.flatnonzero(mine)
    first, last = int(found[0]), int(found[-1])
    return slice(first, last + 1) if last - first + 1 == len(found) else torch.from_numpy(found)


class _Adapted:
    """``muxd.models.layers.Linear``: the base's product, and what adapters add to their rows."""

    def __init__(self, plain: Linear, adapters: Adapters, parts: dict[int, list[_Part]]):
        self._plain, self._adapters, self._parts = plain, adapters, parts

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = self._plain(x, add)
        for adapter, rows in self._adapters.groups:
            if parts := self._parts.get(adapter):
                own = x[rows].float()
                for part in parts:
                    sums = y[rows, part.outputs].float()
                    sums.addmm_(torch.mm(own, part.a), part.b, alpha=part.scale)
                    y[rows, part.outputs] = sums.to(y.dtype)
        return y


class AdaptedWeights(MappedWeights):
    """The model pages' ``Weights``, with adapters on the matrices that have some."""

    def __init__(self, entries: list[TensorEntry], region: Tensor, told: list[LoraPart]):
        super().__init__(entries, region)
        self.adapters = Adapters(told, region)

    def linear(self, name: str, *, bias: bool = False) -> Linear:
        return self.adapters.linear(name, super().linear(name, bias=bias))
