"""Random models whose numbers a GGUF quantisation holds exactly, and bfloat16 too: what is written, imported
and read back is then the model itself, with nothing rounded."""

from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
# A step, what codes go up to, and what a block's first one is: it makes the scale a power of two.
_GRIDS = {"Q8_0": (2.0**-8, 127, 127), "Q4_0": (2.0**-4, 7, 8)}
_Q4_K_STEP, _Q4_K_SCALES = 2.0**-5, 1 + np.arange(8) % 3  # of each 32 numbers in a block of 256


def on_grid(values: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    """The nearest such numbers, blocks along the last axis; of kinds without a grid, bfloat16's."""
    if kind == gguf.GGMLQuantizationType.MXFP4:
        codes = gguf.quants.quantize(np.ascontiguousarray(values.numpy()), kind)
        return torch.from_numpy(gguf.quants.dequantize(codes, kind))
    if kind == gguf.GGMLQuantizationType.Q4_K:
        steps = torch.from_numpy(_Q4_K_STEP * _Q4_K_SCALES).float().repeat_interleave(BLOCK)
        blocks = values.reshape(-1, 8 * BLOCK)
        return ((blocks / steps).round().clamp(-8, 7) * steps).reshape(values.shape)
    if kind.name not in _GRIDS:
        return values.bfloat16().float()
    step, most, first = _GRIDS[kind.name]
    blocks = (values / step).round().clamp(-most, most).reshape(-1, BLOCK)
    blocks[:, 0] = torch.where(blocks[:, 0] < 0, -first, first)
    return (blocks * step).reshape(values.shape)


def placed(
    model: Any, kind: gguf.GGMLQuantizationType, experts: gguf.GGMLQuantizationType | None = None
) -> Any:
    """Its matrices on the grid of ``kind``, those of ``experts``, inputs first, on theirs; vectors in
    bfloat16."""
    for name, parameter in model.named_parameters():
        values = parameter.data
        if values.dim() == 1 or name.endswith("bias"):
            parameter.data = values.bfloat16().float()
        elif values.dim() == 2:
            parameter.data = on_grid(values, kind)
        else:
            turned = values.transpose(1, 2).contiguous()
            parameter.data = on_grid(turned, experts or kind).transpose(1, 2).contiguous()
    return model.eval()


def quantised(values: NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """Its blocks; of Q4_K, which the ``gguf`` library cannot make, only of numbers on the grid."""
    if kind == gguf.GGMLQuantizationType.Q4_K:
        return _q4_k(values)
    return gguf.quants.quantize(values, kind)


def _q4_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A block (ggml-common.h, block_q4_K): two halves, twelve bytes of 6-bit scales and minima, 128 of codes.
    A number is scale · code - minimum, in steps; the minimum is eight times the scale here."""
    scales = _Q4_K_SCALES.astype(np.uint8)
    minima = 8 * scales
    codes = np.round(values.reshape(-1, 8, BLOCK) / (_Q4_K_STEP * _Q4_K_SCALES[:, None])).astype(np.int8) + 8
    assert codes.min() >= 0
    assert codes.max() <= 15
    low = codes.astype(np.uint8).reshape(-1, 4, 2, BLOCK)
    out = np.zeros((len(low), 144), dtype=np.uint8)
    out[:, :4] = np.full(2, _Q4_K_STEP, dtype="<f2").view(np.uint8)
    out[:, 4:8], out[:, 8:12] = scales[:4] | (scales[4:] >> 4) << 6, minima[:4] | (minima[4:] >> 4) << 6
    out[:, 12:16] = (scales[4:] & 15) | (minima[4:] & 15) << 4
    out[:, 16:] = (low[:, :, 0] | low[:, :, 1] << 4).reshape(len(low), 128)
    return out.reshape(*values.shape[:-1], -1)
