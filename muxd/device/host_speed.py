"""How fast this host computes and copies, measured in a moment: costs of models nobody has profiled."""

import time
from collections.abc import Callable

import numpy as np

from muxd.device.cpu import available_cores

_SIDE = 64  # of the matrices: large enough for the arithmetic to count, too small for threads
_MANY = 16  # of them at once
_BYTES = 64 << 20  # beyond any cache
_REPEATS = 3  # at least
_SECONDS = 0.3  # for which it is repeated: other work on the host slows some runs


def flops() -> float:
    """Operations a second of float32 matrix products on all cores: of one thread, times their number. Two
    that wait for each other took forty times as long on two busy cores. Blocks for a third of a second."""
    one = np.ones((_MANY, _SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(one)
    single = 2 * _MANY * _SIDE**3 / _fastest(lambda: np.matmul(one, one, out=out))
    return single * available_cores()


def bandwidth() -> float:
    """Bytes a second, read and written, of one thread that copies. Blocks for half a second."""
    one = np.ones(_BYTES, dtype=np.uint8)
    out = np.zeros_like(one)
    return 2 * _BYTES / _fastest(lambda: np.copyto(out, one))


def _fastest(work: Callable[[], object]) -> float:
    """Seconds; the first run is not counted."""
    work()
    seconds, end = list[float](), time.perf_counter() + _SECONDS
    while len(seconds) < _REPEATS or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
