"""How fast this host computes and copies, measured in a moment: costs of models nobody has profiled."""

import time
from collections.abc import Callable

import numpy as np

_SIDE = 512  # of the matrices: large enough for the arithmetic to count
_BYTES = 64 << 20  # beyond any cache
_REPEATS = 3


def flops() -> float:
    """Operations a second of a float32 matrix product, on as many threads as numpy takes. Blocks for some
    10 ms."""
    one = np.ones((_SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(one)
    return 2 * _SIDE**3 / _fastest(lambda: np.matmul(one, one, out=out))


def bandwidth() -> float:
    """Bytes a second, read and written, of one thread that copies. Blocks for some 100 ms."""
    one = np.ones(_BYTES, dtype=np.uint8)
    out = np.zeros_like(one)
    return 2 * _BYTES / _fastest(lambda: np.copyto(out, one))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds; the first run is not counted."""
    work()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
