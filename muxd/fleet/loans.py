"""Memory of models that left, lent to the pool as K and V until a load needs it (``pool.grow``).

A loan is nobody's by name: a load first takes back as much as its weights need, of whatever is lent, before
it takes memory that nothing used. So it finds the memory that it would find without loans.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from muxd.engine.unit import Unit
from muxd.errors import MuxdError, ShuttingDown
from muxd.fleet.operation import first
from muxd.fleet.supervisor import Supervisor
from muxd.pool.arena import Arena, Extent

_log = logging.getLogger("muxd.fleet")


class Loans:
    """One device's. ``supervisors``: their workers map what is lent. Without ``grow`` nothing ever is."""

    def __init__(self, arena: Arena, unit: Unit, supervisors: Mapping[str, Supervisor], *, grow: bool):
        self._arena, self._unit, self._supervisors, self._grow = arena, unit, supervisors, grow

    def lend(self, nbytes: int) -> None:
        """So many bytes that are free now; where the device has them no more, the log says so."""
        if not self._grow:
            return
        try:
            extent = self._arena.lend(nbytes)
        except MuxdError as error:
            _log.warning("%d bytes that a model has left do not join the pool: %s", nbytes, error.message)
            return
        if extent is not None:
            for supervisor in self._supervisors.values():
                supervisor.map(extent)
            self._unit.lend(extent.first, extent.count)

    async def take_back(self, nbytes: int, hurry: asyncio.Event) -> int:
        """At least so many bytes (in whole steps of the arena), or all there are; returns how many.

        Sequences that have K and V there compute them again elsewhere. Raises ShuttingDown on ``hurry``.
        """
        taken, wanted = 0, self._arena.whole(nbytes)
        while taken < wanted and self._arena.extents:
            extent = _fitting(self._arena.extents, wanted - taken)
            await self._end(extent, hurry)
            taken += extent.region.nbytes
        return taken

    async def _end(self, extent: Extent, hurry: asyncio.Event) -> None:
        await _unless(hurry, self._unit.recall(extent.first, extent.count))
        self._arena.withdraw(extent)
        try:
            for event in [supervisor.unmap(extent) for supervisor in self._supervisors.values()]:
                if event is not None:
                    await _unless(hurry, event)
        finally:
            extent.region.close()


class Room:
    """Memory that one load takes back, and what of it is lent again. ``make``, then ``settle`` once."""

    def __init__(self, hurry: asyncio.Event):
        self._hurry = hurry
        self._taken: list[tuple[Loans, int]] = []

    async def make(self, nbytes: int, lenders: Iterable[Loans]) -> None:
        """``lenders``: the device's own loans, then those of devices that share its memory. Raises
        ShuttingDown; to be settled all the same."""
        for loans in lenders:
            if nbytes > 0:
                taken = await loans.take_back(nbytes, self._hurry)
                self._taken.append((loans, taken))
                nbytes -= taken

    def settle(self, used: int) -> None:
        """What was taken back beyond ``used`` bytes is lent again; 0 where the load came to nothing and
        holds nothing any more."""
        for loans, taken in self._taken:
            left = max(0, taken - used)
            used -= taken - left
            if left and not self._hurry.is_set():
                loans.lend(left)
        self._taken.clear()


def _fitting(extents: Iterable[Extent], nbytes: int) -> Extent:
    """The smallest that suffices, else the largest."""
    by_size = sorted(extents, key=lambda extent: extent.region.nbytes)
    return next((extent for extent in by_size if extent.region.nbytes >= nbytes), by_size[-1])


async def _unless(hurry: asyncio.Event, event: asyncio.Event) -> None:
    await first(event, hurry)
    if hurry.is_set():
        raise ShuttingDown("muxd stopped while memory was being taken back")
