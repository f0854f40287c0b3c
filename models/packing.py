"""How matrices lie for the native step: each by itself, in the format that the model's ``weights`` ask for.

No torch: the daemon packs, once for all workers of the model, straight into the weights region.
"""

import logging

from msgspec import Struct

from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import Dtype, StepName, WeightsName
from muxd.models.safetensors_index import Stored
from muxd.models.tensors import BETA, ROUTER, SHARED_GATE

_log = logging.getLogger("muxd.models")

_FLOATS: dict[Dtype, str] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_MADE = {"int8": "q8_0", "int4": "q4_1"}
# At int4 a small model's first and last matrix lose most; they are few bytes of a large one.
_ENDS = frozenset({"embed", "head"})


class Packing(Struct, frozen=True):
    """``weights`` of a model that the native step computes."""

    weights: WeightsName

    def form(self, name: str, blocks: str, dtype: Dtype) -> str:
        """Of a matrix of the model: a file's ``blocks`` stay as they are unless floats are asked for."""
        wanted = self.weights
        if wanted == "bfloat16" or wanted == "float16" or wanted == "float32":
            return _FLOATS[wanted]
        if blocks:
            return blocks
        # Which experts are chosen, how long a state lasts: small errors there grow.
        if name.rpartition(".")[2] in (ROUTER, BETA, SHARED_GATE):
            return _FLOATS[dtype]
        if wanted == "int4" and name in _ENDS:
            wanted = "int8"
        return _MADE.get(wanted) or _FLOATS[dtype]

    def bytes(self, form: str, shape: tuple[int, ...]) -> int:
        """Of a packed matrix [rows, columns]."""
        return native.library().matrix_bytes(form, shape[0], shape[1])


def packing_for(weights: WeightsName, step: StepName, dtype: Dtype | None, *, gpu: bool) -> Packing | None:
    """What the settings come to on this host; None: torch computes, with matrices of ``dtype``.

    Raises ModelFolderError naming the setting that cannot be had.
    """
    why = "it computes on the CPU alone" if gpu else "" if step == "torch" else native.missing()
    if step == "native" and why:
        raise ModelFolderError(f'model.cpu_step = "native": {why}; write "auto"')
    if not why and step != "torch":
        return Packing(weights)
    if step == "auto" and not gpu:
        _log.warning("%s", why)
    if weights in _MADE or (weights != "file" and weights != dtype):
        told = why or 'cpu_step is "torch"'
        raise ModelFolderError(
            f'model.weights = "{weights}" needs the native step of a CPU ({told}); write "file" and, where '
            "another type is meant, dtype"
        )
    return None


def file_form(stored: Stored) -> str:
    """What the file holds, as the kernels name it."""
    return stored.blocks or _FLOATS[stored.dtype]


def part_names(name: str, parts: int) -> list[str]:
    """Of the entries of a packed matrix that the model pages know as one stack of ``parts``."""
    return [name] if parts == 1 else [f"{name}.{part}" for part in range(parts)]
