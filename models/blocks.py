"""GGUF's blocks in a model folder: rows of quantised numbers as bytes, each tensor named in the header.

A tensor of blocks has dtype U8 and shape [rows, bytes of a row]; the header's ``__metadata__`` has under
``KEY`` a JSON object from its name to the quantisation. The importer writes them, the weight plan reads them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muxd.errors import ModelFolderError
from muxd.models.config_file import shown
from muxd.models.stacks import NAN

KEY = "muxd.blocks"
METHOD = "gguf"  # ``quantization_config.quant_method`` of such a folder: others refuse it by that name
# Numbers and bytes of a block (https://github.com/ggml-org/ggml, ggml-common.h).
SIZES = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34),
    "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210), "mxfp4": (32, 17),
}  # fmt: skip

# Where a block's halves stand, whose scales and minima multiply all else in it.
_HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip


def finite(raw: NDArray[np.uint8], kind: str) -> bool:
    """Whether all numbers of whole blocks are finite: where the halves are, so are their products."""
    rows = raw.reshape(-1, SIZES[kind][1])
    if kind == "mxfp4":
        return not bool((rows[:, 0] == NAN).any())
    halves = (np.ascontiguousarray(rows[:, at : at + 2]).view("<f2") for at in _HALVES[kind])
    return all(bool(np.isfinite(one).all()) for one in halves)


def kinds(path: Path, metadata: Any) -> dict[str, str]:
    """By the tensors' names, of a header's ``__metadata__``. Raises ModelFolderError."""
    told = metadata.get(KEY) if isinstance(metadata, dict) else None
    if told is None:
        return {}
    try:
        found = json.loads(told)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(kind in SIZES for kind in map(str, found.values())):
        raise ModelFolderError(
            f"{path}: the safetensors header's {KEY} must map tensors to one of {', '.join(SIZES)}; "
            "import the GGUF file again"
        )
    return found


def numbers(path: Path, name: str, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what [rows, bytes] of blocks say. Raises ModelFolderError where it is no whole block."""
    per, size = SIZES[kind]
    if len(shape) != 2 or shape[1] % size:
        raise ModelFolderError(f"{path}: tensor {name} of {kind} blocks has shape {shown(list(shape))}")
    return shape[0], shape[1] // size * per


def bytes_of(kind: str, count: int) -> int:
    """Of ``count`` numbers, a whole number of blocks."""
    per, size = SIZES[kind]
    return count // per * size


def dequantised(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """The numbers of whole blocks, in their order."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = dequantize(raw.reshape(-1, SIZES[kind][1]), GGMLQuantizationType[kind.upper()])
    return found.reshape(-1).astype(np.float32, copy=False)
