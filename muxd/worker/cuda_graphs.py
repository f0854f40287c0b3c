"""Steps recorded once and replayed: one graph for each size that is kept, of decode steps a number of
sequences, of prefills of tokens, padded up to.

A graph holds addresses, so what it reads lies in tensors that never move: its inputs, the row table, the row
lists, the counts of the sampler, the tokens picked by the step before. A graph recorded on the stream of a
green context keeps that context, hence one set for each mask of parts. Graphs of a mask run on one stream,
whatever they compute, so never at once: they share one memory pool, and what one returns is there until the
next of them runs. Of several sizes the largest is recorded first: the smaller ones find their memory there.
torch shares a pool's memory on one stream only, so each mask has a pool of its own, and only few masks beside
the whole device keep theirs. A graph is recorded when a batch first wants it: most sizes never come, and the
driver keeps memory for each, so that those which were not used for the longest time go.
"""

import gc
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.device.green import GRAPHS, KEPT
from muxd.worker.cuda_upload import pack, upload, views

_log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
Arrays = list[NDArray[Any]]  # of one step; shapes and types follow from its mode and size alone


def buckets_for(most: int) -> tuple[int, ...]:
    """Those of ``BUCKETS`` that batches of up to ``most`` sequences run in; all of them for 0."""
    last = bucket(most) if most else None
    return BUCKETS if last is None else BUCKETS[: BUCKETS.index(last) + 1]


def bucket(count: int, buckets: tuple[int, ...] = BUCKETS) -> int | None:
    """The smallest of ``buckets``, ascending, that holds ``count`` sequences; None when none does."""
    return next((size for size in buckets if size >= count), None)


class Recorder(Protocol):
    """Makes something to be done again of ``step``; its result lies in the same tensor each time.

    ``shares``: all that is made for a mask works in one memory.
    """

    shares: bool

    def __call__(self, step: Callable[[], Tensor], mask: int) -> tuple[Callable[[], None], Tensor]: ...

    def forget(self, mask: int) -> None:
        """All that was made for ``mask`` is gone."""
        ...


class CudaRecorder:
    """A CUDA graph of ``step`` on the current stream (its green context, if it has one)."""

    shares = True

    def __init__(self) -> None:
        self._pools: dict[int, Any] = {}  # by mask
        self._side: torch.cuda.Stream | None = None  # one: cuBLAS keeps 32 MiB for every stream it has seen

    def __call__(self, step: Callable[[], Tensor], mask: int) -> tuple[Callable[[], None], Tensor]:
        # What the capture must not do: compile kernels, make handles, start a collection of CUDA objects.
        stream = torch.cuda.current_stream()
        if stream == torch.cuda.default_stream():  # which cannot be captured
            self._side = self._side or torch.cuda.Stream()
            stream = self._side
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        stream.synchronize()
        graph, pool, collecting = torch.cuda.CUDAGraph(), self._pools.get(mask), gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = step()
        finally:
            if collecting:
                gc.enable()
        self._pools[mask] = graph.pool()
        return graph.replay, result

    def forget(self, mask: int) -> None:
        # torch asserts that a pool which graphs share has one. Without any, theirs lives on while a result of
        # one of them does, and cannot be recorded into again.
        self._pools.pop(mask, None)


class Again:
    """For tensors of the CPU: the step is computed again, into the same tensor."""

    shares = False

    def __call__(self, step: Callable[[], Tensor], mask: int) -> tuple[Callable[[], None], Tensor]:
        result = step()

        def replay() -> None:
            result.copy_(step())

        return replay, result

    def forget(self, mask: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Recorded:
    replay: Callable[[], None]
    packed: Tensor  # uint8 [bytes]: the inputs
    result: Tensor


class KeptGraphs:
    """All graphs of a worker, ``most`` at once, and when each was last used."""

    def __init__(self, recorder: Recorder, most: int = GRAPHS):
        self._recorder, self._most, self.shares = recorder, most, recorder.shares
        # Whose, mask, mode and size; that which was used last at the end.
        self._used: dict[tuple[StepGraphs, int, int, int], None] = {}

    def oldest(self, wanted: int) -> "tuple[StepGraphs, int, int, int] | None":
        """Which one must go before so many can be recorded; None when there is room."""
        return next(iter(self._used)) if self._used and len(self._used) + wanted > self._most else None

    def record(
        self, owner: "StepGraphs", mask: int, mode: int, size: int, step: Callable[[], Tensor]
    ) -> tuple[Callable[[], None], Tensor]:
        self._used[owner, mask, mode, size] = None
        return self._recorder(step, mask)

    def use(self, owner: "StepGraphs", mask: int, mode: int, size: int) -> None:
        self._used[owner, mask, mode, size] = self._used.pop((owner, mask, mode, size))

    def drop(self, owner: "StepGraphs", mask: int, mode: int, size: int) -> None:
        """The last of a mask takes its memory along."""
        del self._used[owner, mask, mode, size]
        if not any(key[1] == mask for key in self._used):
            self._recorder.forget(mask)


class StepGraphs:
    """Recorded steps of one model and kind (decode steps, or prefills), by mask, mode and bucket.

    ``step(mode, tensors)`` computes a step of the ``mode`` (what it does after the model, a small number),
    without a wait for the device. ``padding(mode, size)``: its inputs for ``size`` sequences, or tokens, of
    nobody. ``kept``: those of both kinds. ``masks``: beside the whole device, that have graphs of this
    kind.
    """

    def __init__(
        self,
        step: Callable[[int, list[Tensor]], Tensor],
        padding: Callable[[int, int], Arrays],
        device: torch.device,
        kept: KeptGraphs,
        buckets: tuple[int, ...] = BUCKETS,
        masks: int = KEPT,
    ):
        self._step, self._padding, self._device = step, padding, device
        self._kept, self._buckets, self._masks = kept, buckets, masks
        # By mask, that which was used last at the end; by mode and size.
        self._made: dict[int, dict[tuple[int, int], _Recorded]] = {}

    @property
    def largest(self) -> int:
        return self._buckets[-1]

    def rehearse(self, mode: int) -> None:
        """Compute a step of every size, not recorded: kernels are compiled by size and by mode."""
        for size in self._buckets:
            self._step(mode, upload(self._device, *self._padding(mode, size)))

    def size(self, count: int) -> int | None:
        """The bucket that ``count`` sequences, or tokens, run in; None when none holds them."""
        return bucket(count, self._buckets)

    def has(self, mask: int, mode: int, size: int) -> bool:
        return (mode, size) in self._made.get(mask, ())

    def crowded(self, mask: int) -> int | None:
        """The mask whose graphs must go before any are recorded for ``mask``: that which was not used for the
        longest time. None while there is room. The whole device, mask 0, never goes."""
        others = [one for one in self._made if one]
        return others[0] if mask and mask not in self._made and len(others) >= self._masks else None

    def record(self, mask: int, mode: int, *sizes: int) -> None:
        """For these ``sizes`` on the current stream, the first time of a ``mask`` whose graphs share memory
        also for the largest there is. Each takes some ten milliseconds. Nothing recorded may be running, of
        either kind: others may have to go."""
        begun = time.monotonic()
        wanted = self._wanted(mask, sizes)
        while (oldest := self._kept.oldest(len(wanted))) is not None:
            owner, *key = oldest
            owner._drop(*key)
            wanted = self._wanted(mask, sizes)
        found = self._made.setdefault(mask, {})
        for size in sorted(wanted, reverse=True):
            arrays = self._padding(mode, size)
            packed = pack(self._device, arrays).to(self._device)
            step = partial(self._step, mode, views(packed, arrays))
            replay, result = self._kept.record(self, mask, mode, size, step)
            found[mode, size] = _Recorded(replay, packed, result)
        count, seconds = len(wanted), time.monotonic() - begun
        _log.debug("%d graphs (mode %d) for parts %s recorded in %.2f s", count, mode, bin(mask), seconds)

    def forget(self, mask: int | None = None) -> None:
        """What they read has moved, or there is no room for those of ``mask``. Nothing may be running."""
        for one in list(self._made) if mask is None else [mask]:
            for mode, size in list(self._made[one]):
                self._drop(one, mode, size)

    def run(self, mask: int, mode: int, size: int, arrays: Items[NDArray[Any]]) -> Tensor:
        """Queue the recorded step for ``arrays`` as ``padding`` makes them; its result, overwritten by the
        next run of any graph of the mask."""
        recorded = self._made[mask][mode, size]
        self._made[mask] = self._made.pop(mask)
        self._kept.use(self, mask, mode, size)
        recorded.packed.copy_(pack(self._device, arrays), non_blocking=True)
        recorded.replay()
        return recorded.result

    def _wanted(self, mask: int, sizes: Items[int]) -> set[int]:
        return {*sizes, self.largest} if self._kept.shares and mask not in self._made else {*sizes}

    def _drop(self, mask: int, mode: int, size: int) -> None:
        del self._made[mask][mode, size]
        if not self._made[mask]:
            del self._made[mask]
        self._kept.drop(self, mask, mode, size)


def lines_of(size: int) -> list[NDArray[np.int32]]:
    """Lines, tokens, positions, lengths, and columns and ids of new rows, of ``size`` sequences that are
    none, int32 [size] each.

    Nothing is read from the pool for them or written to it.
    """
    lines, tokens, lengths, ids = (np.zeros(size, dtype=np.int32) for _ in range(4))
    positions, columns = (np.full(size, -1, dtype=np.int32) for _ in range(2))
    return [lines, tokens, positions, lengths, columns, ids]
