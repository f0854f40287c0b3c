"""Small arrays between a host and its device: all down in one copy, tokens back, and nobody waits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes: kernels are compiled for pointers that are, and again for those that are not
_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


def upload(device: torch.device, *arrays: NDArray[Any]) -> list[Tensor]:
    """The arrays on ``device``, shapes and types kept, each aligned to 16 bytes.

    The copy is queued on the current stream. torch's pinned memory is not given to anybody else before the
    copy is done.
    """
    return views(pack(device, arrays).to(device, non_blocking=True), arrays)


def pack(device: torch.device, arrays: Sequence[NDArray[Any]]) -> Tensor:
    """One host tensor, uint8 [bytes], to be copied to ``device``; shapes alone say where an array lies."""
    host = torch.empty(_places(arrays)[-1][1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_of = host.numpy()
    for array, (start, _) in zip(arrays, _places(arrays), strict=True):
        bytes_of[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return host


def views(packed: Tensor, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """What lies in ``packed``, with the shapes and types of ``arrays``."""
    return [
        packed[start : start + array.nbytes].view(_TORCH[array.dtype]).view(array.shape)
        for array, (start, _) in zip(arrays, _places(arrays), strict=True)
    ]


def _places(arrays: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    """Start of each array, and where the next may start."""
    found, end = [], 0
    for array in arrays:
        start, end = end, end + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        found.append((start, end))
    return found


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host; of a device's tensor it is there when the current stream has come that far."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
