"""Copies of models at devices: one is loaded, requests go over to it, one leaves. Nothing is dropped, every
request ends once, and what fails leaves nothing half done.

A model is at one site, while it moves at two: the catalog shows the copy that new requests go to. Where
memory permits, the second copy is loaded while the first serves. Where it does not, requests wait at the new
place while the old copy drains (the model is parked), and the weights are loaded when it has left. Who does
what when is not decided here (``placement/residency.py``).
"""

import asyncio
import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from muxd.clock import Clock
from muxd.device.base import is_gpu
from muxd.errors import ModelUnloaded, MuxdError, ShuttingDown
from muxd.fleet.catalog import Entry
from muxd.fleet.loans import Loans, Room
from muxd.fleet.operation import Operation, WakeTime, first
from muxd.fleet.site import Site
from muxd.fleet.supervisor import Progress

_log = logging.getLogger("muxd.fleet")


@dataclass(kw_only=True)
class Copies:
    """``entries`` shows, of each model, the copy that new requests go to."""

    entries: MutableMapping[str, Entry]
    sites: Mapping[str, Site]
    clock: Clock
    closing: asyncio.Event = field(default_factory=asyncio.Event)  # muxd ends
    _old: dict[tuple[str, str], Entry] = field(default_factory=dict)  # copies that leave, by model and site

    # ---- in ---------------------------------------------------------------------------------------

    async def load(
        self, name: str, target: Site, operation: Operation, progress: Progress, abort: asyncio.Event,
        *, serves: bool, parked: bool,
    ) -> None:  # fmt: skip
        """``serves``: at another place, until it can here; ``parked``: it is loaded nowhere, and its requests
        wait. Without either it is new.

        Raises MuxdError where it could not be brought in, OutOfMemory where memory is short, ShuttingDown on
        ``abort``. What served still does, and of a parked one requests wait on.
        """
        new = await self._copy(name, target, serves=serves)
        if new.changing == "asleep":
            new.changing, new.error = "waking", ""
        room = Room(abort)
        try:
            await room.make(new.weight_bytes, self._lenders(target))
            began = self.clock.now()
            await target.bring_up(new, progress, abort, keep_queue=parked, patient=operation.patient)
        except BaseException:
            await target.halt(new)
            room.settle(0)
            if serves:
                self.entries[name].note = ""
                await target.leave(new, self._elsewhere(name))
            raise
        room.settle(new.weight_bytes)
        new.woken = self.clock.now()
        if operation.kind == "woken":
            operation.woke = WakeTime(new.woken - began, target.supervisors[name].from_host)
        if new.changing == "waking":
            new.changing = ""
        if serves:
            self._go_over(self.entries[name], new)

    async def _copy(self, name: str, target: Site, *, serves: bool) -> Entry:
        """The one that is loaded at the target; it has its lane there."""
        shown = self.entries[name]
        if shown.lane is None:
            shown.device = target.name
            target.enter(shown)
        if shown.device == target.name:
            shown.note = ""
            return shown
        new = self._twin(shown, target)
        target.enter(new)
        if serves:
            shown.note = f"moving to {target.name}"
        else:  # it was parked, and goes back
            self._switch(shown, new)
            await self.sites[shown.device].leave(shown, self._elsewhere(name))
        return new

    # ---- out --------------------------------------------------------------------------------------

    def park(self, name: str, target: Site) -> None:
        """From now on requests wait at the target; to be followed by ``leave``. Raises MuxdError where that
        takes no model more, changing nothing."""
        old = self.entries[name]
        new = self._twin(old, target)
        target.enter(new)
        self._go_over(old, new)

    async def leave(self, name: str, source: Site, operation: Operation) -> int:
        """The copy there ends with its last sequence, at once on ``operation.hurry``; returns the bytes of
        weights that are free. Raises ShuttingDown in the midst of the end."""
        shown = self.entries[name]
        old = self._old.pop((name, source.name), shown)
        moves = old is not shown
        if moves:
            shown.note = f"leaving {source.name}"
        else:
            source.unit.refuse(name, unloaded(name))
        if old.lane is not None and not operation.hurry.is_set():
            operation.tell(name, "draining", 0, old.lane.admitted + old.lane.queued)
            await first(source.unit.emptied(name), operation.hurry)
        operation.tell(name, "stopping")
        freed = await source.leave(old, self._elsewhere(name) if moves else unloaded(name))
        if moves:
            shown.note = ""
            if self.closing.is_set():
                raise ShuttingDown(f"muxd stopped while {name} was being moved")
        return freed

    async def sleep(self, name: str, site: Site, operation: Operation) -> int:
        """Its worker goes, and with it its weights, unless host memory takes them; requests wait. Streams are
        cut on ``operation.hurry`` and go on when it wakes. Returns the bytes of weights that are free."""
        entry = self.entries[name]
        entry.changing = "asleep"
        await first(site.unit.retire(name), operation.hurry)
        try:
            return await site.halt(entry, keep=operation.keeps)
        finally:
            entry.slept = self.clock.now()
            site.unit.sleep(name)

    async def asleep_again(self, name: str, told: MuxdError, reason: str) -> None:
        """It could not wake: those who wait hear ``told``, and whoever comes next has it tried again."""
        entry = self.entries[name]
        site = self.sites[entry.device]
        await site.halt(entry, keep=True)
        site.unit.worker_lost(name, told, final=True)
        site.unit.sleep(name)
        entry.changing, entry.error, entry.slept = "asleep", reason, self.clock.now()

    async def fail(self, name: str, site: Site, told: MuxdError, reason: str) -> None:
        """It is served nowhere: its requests, wherever they wait, hear ``told``; ``site`` is where it is
        shown, with the reason."""
        shown = self.entries[name]
        own = shown if shown.device == site.name else self._twin(shown, site)
        own.device = site.name
        self.entries[name] = own
        if shown is not own:
            await self.sites[shown.device].leave(shown, told)
        await site.leave(own, told)
        own.error, own.note = reason, ""

    # ---- parts ------------------------------------------------------------------------------------

    def _go_over(self, old: Entry, new: Entry) -> None:
        """Requests go to the new copy; the old one is to leave."""
        self._old[old.name, old.device] = old
        self._switch(old, new)

    def _switch(self, old: Entry, new: Entry) -> None:
        """From now on requests go to the new copy; in one step, so that nobody comes between."""
        name, source, target = old.name, self.sites[old.device], self.sites[new.device]
        old.note = ""
        self.entries[name] = new
        source.unit.refuse(name, self._elsewhere(name))
        count = source.unit.hand_over(name, target.unit)
        _log.info("%s: requests go to %s, %d that waited among them", name, target.name, count)

    def _twin(self, entry: Entry, site: Site) -> Entry:
        twin = entry.twin(site.name)
        twin.renew(self.clock.now())
        return twin

    def _elsewhere(self, name: str) -> MuxdError:
        """For whoever is still at the old place; only the end of muxd leaves somebody there."""
        if self.closing.is_set():
            return ShuttingDown("muxd is shutting down; the answer was cut short")
        return ModelUnloaded(f"{name} is at another device now; try again", param="model")

    def _lenders(self, target: Site) -> list[Loans]:
        """Whose loans stand in the way of weights there: its own, and those of the same memory."""
        beside = [site for site in self.sites.values() if site is not target]
        shared = [site for site in beside if not is_gpu(target.device) and not is_gpu(site.device)]
        return [site.loans for site in (target, *shared)]


def unloaded(name: str) -> ModelUnloaded:
    sentence = f"The model {name!r} is unloaded; `muxctl load {name}` brings it back"
    return ModelUnloaded(sentence, param="model")
