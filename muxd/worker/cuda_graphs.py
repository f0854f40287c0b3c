"""Decode steps recorded once and replayed: one graph for each batch size that is kept, padded up to.

A graph holds addresses, so what it reads lies in tensors that never move: its inputs, the row table, the row
lists. Graphs of one worker never run at once and share one memory pool; the largest is recorded first, so
that the smaller ones find their memory there. A graph recorded on the stream of a green context keeps that
context, hence one set for each mask of parts.
"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
LINES, TOKENS, POSITIONS, LENGTHS = range(4)  # of a step's inputs, int32 [4, b]
_ALIGNMENT = 4  # int32 in 16 bytes


def bucket(count: int, buckets: tuple[int, ...] = BUCKETS) -> int | None:
    """The smallest of ``buckets``, ascending, that holds ``count`` sequences; None when none does."""
    return next((size for size in buckets if size >= count), None)


def padding(size: int) -> NDArray[np.int32]:
    """Inputs of ``size`` sequences that are none: nothing is read from the pool or written to it.

    A line's start is aligned; columns from ``size`` on are unused.
    """
    inputs = np.zeros((4, -(-size // _ALIGNMENT) * _ALIGNMENT), dtype=np.int32)
    inputs[POSITIONS] = -1
    return inputs


class Recorder(Protocol):
    """Makes something to be done again of ``step``; its result lies in the same tensor each time."""

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]: ...


class CudaRecorder:
    """A CUDA graph of ``step`` on the current stream (its green context, if it has one)."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # What the capture must not do: compile kernels, make handles, start a collection of CUDA objects.
        stream = torch.cuda.current_stream()
        if stream == torch.cuda.default_stream():  # which cannot be captured
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        stream.synchronize()
        graph, collecting = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                result = step()
        finally:
            if collecting:
                gc.enable()
        self._pool = graph.pool()
        return graph.replay, result


class Again:
    """For tensors of the CPU: the step is computed again, into the same tensor."""

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = step()

        def replay() -> None:
            result.copy_(step())

        return replay, result


@dataclass(frozen=True, slots=True)
class _Recorded:
    replay: Callable[[], None]
    inputs: Tensor  # int32 [4, padded]
    hidden: Tensor  # [size, hidden]


class DecodeGraphs:
    """Recorded decode steps of one model, by mask and bucket.

    ``step``: inputs int32 [4, b] -> hidden [b, hidden], without a wait for the device.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        device: torch.device,
        recorder: Recorder,
        buckets: tuple[int, ...] = BUCKETS,
    ):
        self._step, self._device, self._recorder, self._buckets = step, device, recorder, buckets
        self._made: dict[int, dict[int, _Recorded]] = {}

    def record(self, mask: int) -> None:
        """All buckets of ``mask``, on the current stream, the largest first."""
        begun = time.monotonic()
        found = {}
        for size in sorted(self._buckets, reverse=True):
            inputs = torch.from_numpy(padding(size)).to(self._device)
            replay, hidden = self._recorder(lambda own=inputs[:, :size]: self._step(own))  # type: ignore[misc]
            found[size] = _Recorded(replay, inputs, hidden)
        self._made[mask] = found
        seconds = time.monotonic() - begun
        _log.info("%d decode graphs for parts %#b recorded in %.1f s", len(found), mask, seconds)

    def forget(self) -> None:
        """What they read has moved. Nothing may be running."""
        self._made.clear()

    def run(self, mask: int, inputs: NDArray[np.int32]) -> Tensor | None:
        """Queue the step for ``inputs`` int32 [4, b]; hidden [b, hidden], overwritten by the next run.

        None when no bucket holds b. A mask that is new is recorded first, which takes seconds.
        """
        count = inputs.shape[1]
        size = bucket(count, self._buckets)
        if size is None:
            return None
        if mask not in self._made:
            self.record(mask)
        recorded = self._made[mask][size]
        host = torch.empty(recorded.inputs.shape, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        filled = host.numpy()
        filled[:] = padding(size)
        filled[:, :count] = inputs
        recorded.inputs.copy_(host, non_blocking=True)
        recorded.replay()
        return recorded.hidden[:count]
