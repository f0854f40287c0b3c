"""A model's weights on their way into memory: each device of a model that is cut gets its rank's part."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from muxd.device.base import Device, Region
from muxd.fleet.filling import filled_piece
from muxd.models.weights import WeightPlan


async def filled(region: Region, parts: Sequence[WeightPlan], progress: Callable[[int], None]) -> None:
    """``parts`` of each rank into the pieces of ``region``, in their order. ``progress`` is called with the
    bytes of all that are there. Raises as ``filled_piece``."""
    before = 0
    for piece, part in zip(region.pieces, parts, strict=True):
        await filled_piece(part, piece, partial(_after, before, progress))
        before += part.bytes


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether ``work`` came to its end; where ``event`` is set before, it is cancelled. Raises as it does."""
    task, waits = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return task.done()
    finally:
        waits.cancel()
        if task.cancel():
            await asyncio.wait([task])


def _after(before: int, progress: Callable[[int], None], done: int) -> None:
    progress(before + done)


def beside(plan: WeightPlan, device: Device, workers: int) -> int:
    """Bytes that so many workers of a model take for copies of its weights."""
    return plan.copied * workers if device.copies(plan.dtype) else 0
