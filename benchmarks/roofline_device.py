"""The device's own limits, and the time of a kernel on it: what ``benchmarks/roofline.py`` divides by.

Nothing from a data sheet: bandwidth and matrix rate are measured in the run that uses them.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

_READ_BYTES = 4 << 30
_MATRIX = 8192
_REPLAYS = 7


class Peaks(NamedTuple):
    """What the device was seen to reach in this run."""

    bytes_per_second: float  # the better of reading and copying device memory
    flops_per_second: float  # a bfloat16 matrix product of cuBLAS

    def bound(self, nbytes: float, flops: float) -> float:
        """Seconds below which no kernel that moves and computes this much can go."""
        return max(nbytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_peaks() -> Peaks:
    """About a second on an H200; needs twice 4 GiB of free device memory."""
    return Peaks(_bandwidth(), _matrix_rate())


def _bandwidth() -> float:
    source = torch.zeros(_READ_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    reading = _READ_BYTES / seconds_of(lambda i: source.amax(), 1)
    return max(reading, 2 * _READ_BYTES / seconds_of(lambda i: target.copy_(source), 1))


def _matrix_rate() -> float:
    left, right = (torch.randn(_MATRIX, _MATRIX, device="cuda").bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    return 2 * _MATRIX**3 / seconds_of(lambda i: torch.mm(left, right, out=product), 4)


def seconds_of(step: Callable[[int], object], count: int) -> float:
    """Seconds of one ``step(i)``, over one CUDA graph of ``count`` of them: launches cost nothing then.

    Median of some replays, after one eager round that compiles. ``step`` should use other memory for each i
    when it would otherwise run out of the L2 cache.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(count):
            step(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for i in range(count):
            step(i)
    graph.replay()
    found = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / count)
    graph.reset()
    return statistics.median(found)
