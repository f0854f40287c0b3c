"""Small arrays from the host to a device, all in one copy that nobody waits for."""

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
    ends, end = [], 0
    for array in arrays:
        ends.append((end, end + array.nbytes))
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_of = host.numpy()
    for array, (start, stop) in zip(arrays, ends, strict=True):
        bytes_of[start:stop] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[start:stop].view(_TORCH[array.dtype]).view(array.shape)
        for array, (start, stop) in zip(arrays, ends, strict=True)
    ]


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
