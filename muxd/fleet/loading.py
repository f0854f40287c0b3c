"""A model's weights on their way into memory: a thread behind everybody reads them, and each device of a
model that is cut gets its rank's part.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from muxd.device.base import Device, Region
from muxd.models.weights import WeightPlan, fill

_NICE = 10  # of a thread that reads weights: a tenth of what a stream's threads get of a core that both want


async def filled(region: Region, parts: Sequence[WeightPlan], progress: Callable[[int], None]) -> None:
    """``parts`` of each rank into the pieces of ``region``, in their order. ``progress`` is called, from
    another thread, with the bytes of all that are there. Raises MuxdError, and what ``progress`` raises."""

    def load(region: Region) -> None:
        before = 0
        for piece, part in zip(region.pieces, parts, strict=True):
            with piece.writer() as writer:
                fill(part, writer, partial(_after, before, progress))
            before += part.bytes

    await _behind(load, region)


def _after(before: int, progress: Callable[[int], None], done: int) -> None:
    progress(before + done)


async def _behind(work: Callable[[Region], None], region: Region) -> None:
    """In a thread of its own that is behind everybody where cores are short: streams go on while a model is
    loaded. It can never get back to where it was, so no other work may come to it."""
    thread = ThreadPoolExecutor(1, "load", initializer=_stand_back)
    try:
        await asyncio.get_running_loop().run_in_executor(thread, work, region)
    finally:
        thread.shutdown(wait=False)


def _stand_back() -> None:
    """Linux keeps this by the thread."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice + _NICE)


def beside(plan: WeightPlan, device: Device, workers: int) -> int:
    """Bytes that so many workers of a model take for copies of its weights."""
    return plan.copied * workers if device.copies(plan.dtype) else 0
