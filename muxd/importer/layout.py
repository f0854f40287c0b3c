"""What an importer of one architecture produces: a Hugging Face config and a list of tensors to write."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import ReaderTensor

from muxd.importer.source import GgufFile


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the model folder and how to get it from the GGUF file."""

    name: str  # in the folder, Hugging Face's name
    source: ReaderTensor
    row_order: npt.NDArray[np.intp] | None = None  # output row i is source row row_order[i]
    subtract: float = 0.0  # taken from every value
    expert: int | None = None  # this one's matrix of a tensor of all
    others: tuple[ReaderTensor, ...] = ()  # of all experts: their rows take turns with the source's
    inputs_first: bool = False  # each expert's matrix, written so

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major; GGUF lists dimensions fastest first."""
        whole = tuple(int(size) for size in reversed(self.source.shape))
        if self.expert is not None:
            return whole[1:]
        if self.others:
            whole = (whole[0], whole[1] * (1 + len(self.others)), *whole[2:])
        return (whole[0], *reversed(whole[1:])) if self.inputs_first else whole

    @property
    def data(self) -> npt.NDArray[Any]:
        """As it is stored: numbers, or bytes of blocks, row by row."""
        return self.source.data if self.expert is None else self.source.data[self.expert]


@dataclass(frozen=True)
class ModelLayout:
    """``config`` is config.json without token ids, which the vocabulary adds. ``floats``: the tensors of a
    folder in which nothing stays blocks, where those are others."""

    config: dict[str, Any]
    tensors: list[TensorPlan]
    floats: list[TensorPlan] | None = None


Planner = Callable[[GgufFile], ModelLayout]
Make = Callable[[str, ReaderTensor], TensorPlan]  # by the name in the folder


def plan_tensors(
    file: GgufFile,
    layers: int,
    globals_: dict[str, str],
    per_layer: dict[str, str],
    optional: frozenset[str],
    make: Make,
    read: Set[str] = frozenset(),
    experts: int = 0,
) -> list[TensorPlan]:
    """Match the file's tensors with the expected names, both ways.

    ``globals_`` and ``per_layer`` map GGUF names (the latter below ``blk.N.``) to Hugging Face names (below
    ``model.layers.N.``); names in ``optional`` may be absent, those in ``read`` have gone into
    the config. A name with ``{expert}`` stands for so many ``experts``, all of which the file has in one
    tensor. Raises ModelFolderError for a tensor that is missing, and for one that nobody reads: a model
    without it would compute something else.
    """
    wanted = dict(globals_)
    for layer in range(layers):
        wanted |= {f"blk.{layer}.{old}": f"model.layers.{layer}.{new}" for old, new in per_layer.items()}
    unknown = sorted(file.tensors.keys() - wanted.keys() - read)
    if unknown:
        file.fail(f"tensor {unknown[0]!r} is not known for this architecture; it cannot be imported")
    plans = []
    for old, new in wanted.items():
        short = old.split(".", 2)[2] if old.startswith("blk.") else old
        if old in file.tensors:
            if not file.tensors[old].n_elements:
                file.fail(f"tensor {old!r} is empty")
            if "{expert}" in new:
                plans += _each_expert(file, new, file.tensors[old], experts)
            else:
                plans.append(make(new, file.tensors[old]))
        elif short not in optional:
            file.fail(f"tensor {old!r} is missing")
    return plans


def _each_expert(file: GgufFile, name: str, source: ReaderTensor, experts: int) -> list[TensorPlan]:
    whole = TensorPlan(name, source)
    if len(whole.shape) != 3 or whole.shape[0] != experts:
        file.fail(f"tensor {source.name!r} has shape {list(whole.shape)}, expected {experts} matrices")
    return [TensorPlan(name.format(expert=i), source, expert=i) for i in range(experts)]


def check_shape(file: GgufFile, plan: TensorPlan, expected: tuple[int, ...]) -> None:
    """Raises ModelFolderError if a tensor's shape contradicts the metadata."""
    if plan.shape != expected:
        file.fail(
            f"tensor {plan.source.name!r} has shape {list(plan.shape)}, the metadata say {list(expected)}"
        )
