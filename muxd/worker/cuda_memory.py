"""What torch may take on a GPU in this worker, beside pool and weights: a limit, and words for the error.

torch's allocator keeps freed memory by stream, and a worker has many (``device.green``). At its limit it
first gives back what it keeps for other streams (CUDACachingAllocator.cpp, ``malloc``; not during a capture,
before which ``torch.cuda.graph`` empties the cache): so the limit bounds the sum over all streams. It is what
``placement.memory.scratch`` reckons, or more where the warm-up shows that this is too little, and a margin.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from muxd.device.green import KEPT
from muxd.errors import OutOfMemory

_log = logging.getLogger(__name__)


# The limit is against a worker that takes without end. What is set aside was never measured on a GPU, and the
# device has more free than that (``Budget.usable``): a batch must not fail for a tight guess.
MARGIN = 1.5


def allowance(reckoned: int, peak: int, graphs: int) -> int:
    """Bytes that torch may take: ``reckoned``, but no less than was taken at most (``peak``), and as much as
    for the first set of ``graphs`` for each of the others that are kept."""
    return max(reckoned, peak + KEPT * graphs)


class Scratch:
    """Of one worker. ``reckoned``: bytes set aside for it; 0: no limit, as on the CPU."""

    def __init__(self, model: str, device: torch.device, reckoned: int):
        self._model, self._device = model, device
        self._reckoned = reckoned if device.type == "cuda" else 0
        self._graphs = self._allowed = 0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """The first set of graphs is recorded inside."""
        before = self._taken()
        yield
        self._graphs = self._taken() - before

    def limit(self) -> None:
        """After the warm-up: from now on not far more than was set aside."""
        if not self._reckoned:
            return
        peak = torch.cuda.max_memory_reserved(self._device)
        needed = allowance(self._reckoned, peak, self._graphs)
        if needed > self._reckoned:
            _log.warning(
                "%s needs %d MB beside pool and weights, and %d are reckoned with: lower pool.bytes",
                self._model, needed >> 20, self._reckoned >> 20,
            )  # fmt: skip
        self._allowed = int(MARGIN * needed)
        whole = torch.cuda.get_device_properties(self._device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, self._allowed / whole), self._device)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What fails inside at the limit is OutOfMemory, in words that say whose and what to do."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            if not self._allowed:
                raise
            raise OutOfMemory(
                f"{self._model} needs more than the {self._allowed >> 20} MB it may take beside pool and "
                "weights: lower its max_running, or scheduler.prefill_tokens"
            ) from error

    def _taken(self) -> int:
        """Without what is free: bytes of segments in which something lies, or a graph may write."""
        if not self._reckoned:
            return 0
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved(self._device))
