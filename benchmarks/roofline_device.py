"""The device's own limits, and the time of a kernel on it: what ``benchmarks/roofline.py`` divides by.

Nothing from a data sheet: bandwidth and matrix rate are measured in the run that uses them.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

_REPLAYS = 7


class Plan(NamedTuple):
    """What is measured where. On the CPU nothing is: that is the rehearsal of a run on a GPU."""

    device: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    new: int  # tokens of an answer
    times: int  # steps of which the median counts
    peak_bytes: int
    peak_matrix: int
    cold_bytes: int  # cycled through, so that no L2 cache answers


FULL = Plan("cuda", (1, 8, 32, 128), (512, 2048), (512, 2048, 8192), 64, 20, 4 << 30, 8192, 256 << 20)
QUICK = FULL._replace(batches=(1, 32), contexts=(2048,), prompts=(512, 2048))
TINY = Plan("cpu", (1, 3), (40,), (50,), 4, 2, 1 << 20, 64, 1 << 12)


class Peaks(NamedTuple):
    """What the device was seen to reach in this run."""

    bytes_per_second: float  # the better of reading and copying device memory
    flops_per_second: float  # a bfloat16 matrix product of cuBLAS

    def bound(self, nbytes: float, flops: float) -> float:
        """Seconds below which no kernel that moves and computes this much can go."""
        return max(nbytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_peaks(plan: Plan) -> Peaks:
    """About a second on an H200; needs twice 4 GiB of free device memory."""
    return Peaks(_bandwidth(plan), _matrix_rate(plan))


def _bandwidth(plan: Plan) -> float:
    source = torch.zeros(plan.peak_bytes // 4, device=plan.device)
    target = torch.empty_like(source)
    reading = plan.peak_bytes / seconds_of(plan, lambda i: source.amax(), 1)
    return max(reading, 2 * plan.peak_bytes / seconds_of(plan, lambda i: target.copy_(source), 1))


def _matrix_rate(plan: Plan) -> float:
    size = plan.peak_matrix
    left, right = (torch.randn(size, size, device=plan.device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)
    return 2 * size**3 / seconds_of(plan, lambda i: torch.mm(left, right, out=product), 4)


def free(plan: Plan) -> None:
    """What nobody holds any more goes back to the device."""
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()


def seconds_of(plan: Plan, step: Callable[[int], object], count: int) -> float:
    """Seconds of one ``step(i)``, over one CUDA graph of ``count`` of them: launches cost nothing then.

    Median of some replays, after one eager round that compiles. ``step`` should use other memory for each i
    when it would otherwise run out of the L2 cache.
    """
    if plan.device != "cuda":
        begun = time.perf_counter()
        for i in range(count):
            step(i)
        return (time.perf_counter() - begun) / count
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # the inputs are still being made there
    with torch.cuda.stream(side):
        for i in range(count):
            step(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for i in range(count):
            step(i)
    graph.replay()
    found: list[float] = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / count)
    graph.reset()
    return statistics.median(found)
