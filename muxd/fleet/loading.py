"""A model's weights on their way into memory: each device of a model that is cut gets its rank's part. All of
them are of one set of files, which do not change meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from muxd.device.base import Device, Region
from muxd.engine.lane import Lane
from muxd.errors import ModelFolderError
from muxd.fleet.filling import filled_piece
from muxd.models.stamps import replaced
from muxd.models.weights import WeightPlan


async def filled(
    region: Region, parts: Sequence[WeightPlan], progress: Callable[[int], None], streams: Callable[[], bool]
) -> None:
    """``parts`` of each rank into the pieces of ``region``, in their order. ``progress`` is called with the
    bytes of all that are there. Raises as ``filled_piece``."""
    before = 0
    for piece, part in zip(region.pieces, parts, strict=True):
        await filled_piece(part, piece, partial(_after, before, progress), streams)
        before += part.bytes


def streams_beside(lanes: Mapping[str, Lane], model: str) -> bool:
    """Another model has some, whether it computes now or not."""
    return any(lane.running or lane.flights for name, lane in lanes.items() if name != model)


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


async def check_unchanged(files: Mapping[Path, str]) -> None:
    """``files``: as ``models.stamps.stamps`` before they were read. Raises ModelFolderError for one in whose
    place another is: what was read may be half of each."""
    if others := await asyncio.to_thread(replaced, files):
        raise ModelFolderError(
            f"{others[0]} was replaced, or written to, while the weights were read: once the folder is whole "
            "and nobody writes to it, ask for the model or `muxctl load` it again"
        )


def beside(plan: WeightPlan, device: Device, workers: int) -> int:
    """Bytes that so many workers of a model take for copies of its weights."""
    return plan.copied * workers if device.copies(plan.dtype) else 0
