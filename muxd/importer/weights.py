"""Write model.safetensors in bfloat16 from GGUF tensors, a few megabytes at a time.

Format: https://github.com/huggingface/safetensors#format (8 bytes header length, JSON header, data). The
library's own writers want every tensor in memory at once and know no bfloat16 in numpy, so the file is laid
out here; reading it back with the library is a test.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from muxd.importer.layout import TensorPlan
from muxd.importer.progress import Progress
from muxd.importer.source import GgufFile

_SLAB_VALUES = 1 << 21  # values dequantised at once: 8 MiB as float32
_BF16 = 2


def weights_bytes(plans: list[TensorPlan]) -> int:
    """Size of all tensors in bfloat16, without the header."""
    return sum(math.prod(plan.shape) * _BF16 for plan in plans)


def write_safetensors(path: Path, file: GgufFile, plans: list[TensorPlan], progress: Progress) -> None:
    """Raises ModelFolderError for a quantisation that cannot be undone; OSError if the disk is full."""
    with path.open("wb") as out:
        out.write(_header(plans))
        for plan in plans:
            for slab in bfloat16_slabs(file, plan):
                out.write(slab)
                progress.advance(len(slab))


def _header(plans: list[TensorPlan]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        end = offset + math.prod(plan.shape) * _BF16
        entries[plan.name] = {"dtype": "BF16", "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # data begin aligned
    return len(header).to_bytes(8, "little") + header


def bfloat16_slabs(file: GgufFile, plan: TensorPlan) -> Iterator[bytes]:
    """The tensor's rows in order, as little-endian bfloat16 (rounded to nearest even) in bounded pieces."""
    source = plan.source
    rows = source.data if source.data.ndim > 1 else source.data[np.newaxis]
    step = max(1, _SLAB_VALUES // plan.shape[-1])
    for first in range(0, len(rows), step):
        chosen = rows[first : first + step]
        if plan.row_order is not None:
            chosen = rows[plan.row_order[first : first + step]]
        values = _dequantize(file, plan, chosen) - np.float32(plan.subtract)
        yield quantize(values, GGMLQuantizationType.BF16).tobytes()


def _dequantize(file: GgufFile, plan: TensorPlan, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    kind = plan.source.tensor_type
    try:
        values = dequantize(np.ascontiguousarray(rows), kind)
    except (NotImplementedError, ValueError) as error:
        file.fail(
            f"tensor {plan.source.name!r} has quantisation {kind.name}, which cannot be undone: {error}"
        )
    if not np.isfinite(values).all():
        file.fail(f"tensor {plan.source.name!r} holds values that are not finite (damaged file?)")
    return values.astype(np.float32, copy=False)
