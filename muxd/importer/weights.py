"""Write model.safetensors from GGUF tensors, a few megabytes at a time: in bfloat16, or matrices as the
blocks that the file has (``muxd.models.blocks``), rows in another order where need be, but to the bit.

Format: https://github.com/huggingface/safetensors#format (8 bytes header length, JSON header, data). The
library's own writers want every tensor in memory at once and know no bfloat16 in numpy, so the file is laid
out here; reading it back with the library is a test.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, ReaderTensor
from gguf.quants import dequantize, quantize

from muxd.importer.layout import TensorPlan
from muxd.importer.progress import Progress
from muxd.importer.source import GgufFile
from muxd.models import blocks

_SLAB_VALUES = 1 << 21  # values dequantised at once: 8 MiB as float32
_BF16 = 2


def kept(plan: TensorPlan) -> str:
    """The quantisation of a tensor whose blocks can stay as they are; "" of others, which become bfloat16."""
    kind = plan.source.tensor_type.name.lower()
    matrix = len(plan.shape) == 2 and plan.name.endswith(".weight")
    return kind if kind in blocks.SIZES and matrix and not plan.subtract else ""


def weights_bytes(plans: list[TensorPlan], keep: bool) -> int:
    """Size of all tensors, without the header. ``keep``: blocks where they can be kept."""
    return sum(_bytes(plan, keep) for plan in plans)


def write_safetensors(
    path: Path, file: GgufFile, plans: list[TensorPlan], progress: Progress, *, keep: bool
) -> None:
    """Raises ModelFolderError for a quantisation that cannot be undone; OSError if the disk is full."""
    with path.open("wb") as out:
        out.write(_header(plans, keep))
        for plan in plans:
            slabs = block_slabs(file, plan) if keep and kept(plan) else bfloat16_slabs(file, plan)
            for slab in slabs:
                out.write(slab)
                progress.advance(len(slab))


def _bytes(plan: TensorPlan, keep: bool) -> int:
    count = math.prod(plan.shape)
    return blocks.bytes_of(kind, count) if keep and (kind := kept(plan)) else count * _BF16


def _header(plans: list[TensorPlan], keep: bool) -> bytes:
    told = {plan.name: kind for plan in plans if keep and (kind := kept(plan))}
    metadata = {"format": "pt"} | ({blocks.KEY: json.dumps(told)} if told else {})
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for plan in plans:
        end, shape, dtype = offset + _bytes(plan, keep), list(plan.shape), "BF16"
        if plan.name in told:
            dtype, shape = "U8", [shape[0], blocks.bytes_of(told[plan.name], shape[1])]
        entries[plan.name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # data begin aligned
    return len(header).to_bytes(8, "little") + header


def block_slabs(file: GgufFile, plan: TensorPlan) -> Iterator[bytes]:
    """The tensor's rows in order, as the file has them, in bounded pieces."""
    rows = plan.data
    step = max(1, _SLAB_VALUES // plan.shape[-1])
    for first in range(0, len(rows), step):
        order = slice(first, first + step) if plan.row_order is None else plan.row_order[first : first + step]
        slab = np.ascontiguousarray(rows[order])
        if not blocks.finite(slab, kept(plan)):
            _refuse_infinite(file, plan.source)
        yield slab.tobytes()


def bfloat16_slabs(file: GgufFile, plan: TensorPlan) -> Iterator[bytes]:
    """The tensor's rows in order, as little-endian bfloat16 (rounded to nearest even) in bounded pieces, an
    expert's matrix at a time where they are put together."""
    if plan.others or plan.inputs_first:
        yield from _stacked_slabs(file, plan)
        return
    rows = plan.data if plan.data.ndim > 1 else plan.data[np.newaxis]
    step = max(1, _SLAB_VALUES // plan.shape[-1])
    for first in range(0, len(rows), step):
        chosen = rows[first : first + step]
        if plan.row_order is not None:
            chosen = rows[plan.row_order[first : first + step]]
        values = _dequantize(file, plan.source, chosen) - np.float32(plan.subtract)
        yield quantize(values, GGMLQuantizationType.BF16).tobytes()


def _stacked_slabs(file: GgufFile, plan: TensorPlan) -> Iterator[bytes]:
    sources = (plan.source, *plan.others)
    for expert in range(plan.shape[0]):
        parts = [_dequantize(file, source, source.data[expert]) for source in sources]
        rows = np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
        values = np.ascontiguousarray(rows.T if plan.inputs_first else rows)
        yield quantize(values, GGMLQuantizationType.BF16).tobytes()


def _dequantize(
    file: GgufFile, source: ReaderTensor, rows: npt.NDArray[np.generic]
) -> npt.NDArray[np.float32]:
    kind, raw = source.tensor_type, np.ascontiguousarray(rows)
    name = kind.name.lower()
    if name in blocks.SIZES and not blocks.finite(raw, name):  # MXFP4's exponent that is none is one to gguf
        _refuse_infinite(file, source)
    try:
        values = dequantize(raw, kind)
    except (NotImplementedError, ValueError) as error:
        file.fail(f"tensor {source.name!r} has quantisation {kind.name}, which cannot be undone: {error}")
    if not np.isfinite(values).all():
        _refuse_infinite(file, source)
    return values.astype(np.float32, copy=False)


def _refuse_infinite(file: GgufFile, source: ReaderTensor) -> NoReturn:
    file.fail(f"tensor {source.name!r} holds values that are not finite (damaged file?)")
