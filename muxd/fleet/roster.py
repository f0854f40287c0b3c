"""The models of one daemon: brings them all in at the start, and single ones in and out while it serves.

One load, unload or move at a time, on whatever devices: each looks at the memory that the others leave, and
devices of the CPU share it. It goes on when whoever asked has left, and ends in nothing half done: a model is
either served or holds no worker, no weights, no account and no lane.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from muxd.clock import Clock
from muxd.config import ModelConfig
from muxd.device.base import is_gpu
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.engine.trace import Happening
from muxd.errors import (
    BadRequest,
    Busy,
    ConfigError,
    ModelFolderError,
    ModelNotReady,
    ModelUnloaded,
    MuxdError,
    NotFound,
    ShuttingDown,
)
from muxd.fleet.catalog import Entry
from muxd.fleet.change import Change, first
from muxd.fleet.gauges import Gauges
from muxd.fleet.loans import Loans, Room
from muxd.fleet.move import Move
from muxd.fleet.rearrange import Rearrangement
from muxd.fleet.site import Site
from muxd.fleet.steps import Stage
from muxd.fleet.supervisor import Progress
from muxd.placement.transition import Transition
from muxd.text.pool import TextPool

_log = logging.getLogger("muxd.fleet")

Work = Callable[[Change], Coroutine[Any, Any, None]]


@dataclass(kw_only=True)
class Roster:
    """``entries`` is everybody's view of the models, in the order to show them; only the roster changes it.

    ``place`` says where a model goes of which nobody says it: the name of one of the ``sites``.
    """

    entries: dict[str, Entry]
    sites: Mapping[str, Site]
    clock: Clock
    gauges: Gauges
    progress: Progress
    place: Callable[[Entry], str]
    texts: TextPool
    _change: Change | None = None
    _closed: bool = False

    # ---- the daemon's start and end ---------------------------------------------------------------

    def start(self) -> None:
        """Start every model that has a lane."""
        for entry in self.entries.values():
            if entry.lane is None:
                _log.error("%s is not served: %s", entry.name, entry.error)
            else:
                self.site(entry).start(entry, self.progress)

    async def settled(self) -> None:
        """Until every model of the start is ready, has failed or was stopped."""
        for site in self.sites.values():
            for supervisor in list(site.supervisors.values()):
                await supervisor.settled.wait()

    async def close(self) -> None:
        """End what is under way, every worker and every hold on weights."""
        self._closed = True
        if self._change is not None:
            self._change.hurry.set()
            await self._change.finished()
        await asyncio.gather(*(site.close() for site in self.sites.values()))

    async def calm(self) -> None:
        """Until no model is being loaded, unloaded or moved."""
        while self._change is not None:
            await self._change.finished()

    def submit(self, request: Request) -> TokenStream:
        """To the device that its model is at. Raises as ``Unit.submit``, ModelNotReady before it has one."""
        entry = self.entries[request.model]
        if not entry.device:
            raise ModelNotReady(f"{entry.name} is not loaded yet: {entry.detail or entry.state}")
        return self.site(entry).unit.submit(request)

    def site(self, entry: Entry) -> Site:
        """Where the model is, or was last."""
        return self.sites[entry.device]

    async def read(self, entry: Entry) -> None:
        """Its folder, for the devices there are; ``entry.error`` says what is wrong with it."""
        await entry.read(self.texts, gpu=any(is_gpu(site.device) for site in self.sites.values()))

    def give_share(self, entry: Entry) -> None:
        """What its configuration says now, from its next batch on, where the device has no caps."""
        if entry.lane is not None and not self.site(entry).device.caps:
            self.site(entry).unit.set_share(entry.name, entry.config.share)

    # ---- what an operator may ask -----------------------------------------------------------------

    def load(self, name: str, device: str = "") -> Change:
        """Serve a model that is unloaded or has failed; its folder is read again. ``device``: where; else
        where it was.

        Raises NotFound, Busy where it is served or another change is under way, ShuttingDown. ``Change``
        ends with MuxdError where it cannot be served: it is "failed" then, says why and holds nothing.
        """
        entry = self._known(name)
        self._known_device(device)
        self._may_change()
        if entry.state not in ("unloaded", "failed"):
            raise Busy(f"{name} is {entry.state}; `muxctl unload {name}` first to load it anew")
        change = Change(name, "loaded", "reading")
        return self._begin(change, lambda change: self._load(entry, device or entry.device, change))

    def add(self, config: ModelConfig, *, keep: bool = False) -> Change:
        """Load a new model; one that cannot be served is gone again, or with ``keep`` has failed.

        Raises as ``load`` does, and ConfigError where its name is taken.
        """
        if config.name in self.entries:
            raise ConfigError(f"name: there is a model {config.name!r} already; choose another name")
        self._known_device(config.device)
        self._may_change()
        entry = self.entries[config.name] = Entry(config)
        entry.changing = "loading"
        self.gauges.watch(config.name)
        change = Change(config.name, "loaded", "reading")
        return self._begin(change, lambda change: self._add(entry, change, keep))

    def unload(self, name: str, *, now: bool) -> Change:
        """Serve a model no more: new requests are refused at once, those that are here are answered or,
        with ``now``, fail. ``now`` may be said again while it waits for answers.

        Raises NotFound, Busy where it is unloaded or another change is under way, ShuttingDown.
        """
        entry = self._known(name)
        waits = self._change
        if now and waits is not None and (waits.model, waits.kind) == (name, "unloaded"):
            waits.hurry.set()
            return waits
        self._may_change()
        if entry.state == "unloaded":
            raise Busy(f"{name} is unloaded already")
        change = Change(name, "unloaded", "draining")
        if now:
            change.hurry.set()
        return self._begin(change, lambda change: self._unload(entry, change))

    def move(self, name: str, device: str, why: str = "") -> Change:
        """Bring a model to another device while it serves (``fleet/move.py``). ``why`` is for the record.

        Raises NotFound, BadRequest where it is there already, Busy where it is not ready or another change
        is under way, ShuttingDown. ``Change`` ends with MuxdError where it could not be moved.
        """
        self._may_move(name, device)

        async def move(change: Change) -> None:
            free: Counter[str] = Counter()
            await self._mover(name, device, why, change, partial(_add, free)).run()
            self._lend(free)

        return self._begin(Change(name, "moved", "reading"), move)

    def rearrange(self, devices: Mapping[str, str], order: Transition, why: str = "") -> Change:
        """Bring models to other devices while they serve, in the ``order`` that was made for it.

        ``devices``: at least one model -> where to. Raises as ``move``; ``Change`` too, and what has moved
        stays then.
        """
        for name, device in devices.items():
            self._may_move(name, device)
        change = Change(next(iter(devices)), "moved", "reading")
        told = partial(self._part, change)
        free: Counter[str] = Counter()

        def mover(name: str) -> Move:
            return self._mover(name, devices[name], why, change, partial(_add, free))

        async def work() -> None:
            try:
                await Rearrangement(order, mover, told).run()
            finally:
                if not change.hurry.is_set():
                    self._lend(free)  # not before: what one leaves may be what the next one needs

        self._change = change
        change.start(self._and_then_others(work()))
        return change

    def _may_move(self, name: str, device: str) -> None:
        entry = self._known(name)
        if not device:
            raise BadRequest(f"say where to: {', '.join(self.sites)}", param="device")
        self._known_device(device)
        self._may_change()
        if entry.device == device:
            raise BadRequest(f"{name} is on {device} already", param="device")
        if entry.state != "ready":
            raise Busy(f"{name} is {entry.state}; a model can move when it is ready")

    def _known(self, name: str) -> Entry:
        if name not in self.entries:
            raise NotFound(f"there is no model {name!r}; there are: {', '.join(self.entries) or 'none'}")
        return self.entries[name]

    def _known_device(self, name: str) -> None:
        """Raises NotFound for a device there is not; "" is any."""
        if name and name not in self.sites:
            raise NotFound(f"there is no device {name!r}; there are: {', '.join(self.sites)}")

    def _may_change(self) -> None:
        if self._closed:
            raise ShuttingDown("muxd is shutting down")
        if self._change is not None:
            now, kind = self._change.step.stage, self._change.kind
            raise Busy(f"{self._change.model} is being {kind} ({now}); try again when that is done")

    def _begin(self, change: Change, work: Work) -> Change:
        self._change = change
        change.start(self._and_then_others(self._part(change, change.model, work(change))))
        return change

    async def _and_then_others(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._change = None

    async def _part(
        self, change: Change, model: str, work: Coroutine[Any, Any, None], last: bool = True
    ) -> None:
        """The change of one model, or, unless it is the ``last``, the first part of it."""
        began, change.model = self.clock.now(), model
        try:
            await work
        except MuxdError as error:
            kind: Happening = "move failed" if change.kind == "moved" else "unloaded"
            self._mark(kind, model, error.message)
            _log.error("%s could not be %s: %s", model, change.kind, error.message)
            raise
        if last:
            self._mark(change.kind, model)
            _log.info("%s is %s, after %.1f s", model, change.kind, self.clock.now() - began)

    # ---- in and out -------------------------------------------------------------------------------

    async def _add(self, entry: Entry, change: Change, keep: bool) -> None:
        try:
            await self._load(entry, entry.device, change)
        except BaseException:
            if not keep:
                del self.entries[entry.name]
            raise

    async def _load(self, entry: Entry, device: str, change: Change) -> None:
        self._mark("loading", entry.name, device if len(self.sites) > 1 else "")
        entry.changing = "loading"
        entry.quota = entry.config.quota
        room = Room(change.hurry)
        try:
            if entry.device:  # a failed model still has its lane
                await self.site(entry).leave(entry, _unloaded(entry.name))
            await self.read(entry)
            if entry.error:
                raise ModelFolderError(entry.error)
            entry.device = device or self.place(entry)
            await room.make(_weights(entry), self._lenders(entry.device))
            self.site(entry).enter(entry)
            await self.site(entry).bring_up(entry, self._teller(change), change.hurry)
        except BaseException as error:
            reason = error.message if isinstance(error, MuxdError) else "of a defect; muxd's log says more"
            if entry.device:
                failed = ModelNotReady(f"{entry.name} could not be loaded: {reason}")
                await self.site(entry).leave(entry, failed)
            entry.error = reason
            room.settle(0)
            raise
        finally:
            entry.changing = ""
        room.settle(_weights(entry))
        change.tell("ready")

    def _lenders(self, device: str) -> list[Loans]:
        """Whose loans stand in the way of weights on the device: its own, and those of the same memory."""
        target = self.sites[device]
        beside = [site for site in self.sites.values() if site is not target]
        shared = [site for site in beside if not is_gpu(target.device) and not is_gpu(site.device)]
        return [site.loans for site in (target, *shared)]

    def _teller(self, change: Change) -> Progress:
        loop = asyncio.get_running_loop()

        def advance(_: str, done: int, total: int) -> None:  # in another thread
            stage: Stage = "weights" if done < total else "starting"
            loop.call_soon_threadsafe(change.tell, stage, done, total)

        return advance

    def _mover(
        self, name: str, device: str, why: str, change: Change, free: Callable[[str, int], None]
    ) -> Move:
        """``free``: told at the end how many bytes more, or less, are free at a site."""
        entry = self.entries[name]
        source, target = self.site(entry), self.sites[device]
        self._mark("moving", name, f"{source.name} to {device}" + (f": {why}" if why else ""))

        def moved(freed: int) -> None:
            free(source.name, freed)
            free(device, -_weights(entry))
            change.tell("moved")

        return Move(
            self.entries, entry, source, target, change, self._teller(change),
            self._lenders(device), moved,
        )  # fmt: skip

    def _lend(self, free: Mapping[str, int]) -> None:
        """Bytes that moves have left free at each site, less what they have put there."""
        for name, nbytes in free.items():
            if nbytes > 0:
                self.sites[name].loans.lend(nbytes)

    async def _unload(self, entry: Entry, change: Change) -> None:
        site = self.sites[entry.device] if entry.device else None
        self._mark("unloading", entry.name, "at once" if change.hurry.is_set() else "once it is idle")
        entry.changing = "unloading"
        if site is not None:
            site.unit.refuse(entry.name, _unloaded(entry.name))
            if entry.lane is not None and not change.hurry.is_set():
                await self._drain(entry, change)
            change.tell("stopping")
            site.loans.lend(await site.leave(entry, _unloaded(entry.name)))
        entry.error, entry.changing = "", "unloaded"
        change.tell("unloaded")

    async def _drain(self, entry: Entry, change: Change) -> None:
        assert entry.lane is not None
        here = entry.lane.admitted + entry.lane.queued
        change.tell("draining", 0, here)
        await first(self.site(entry).unit.emptied(entry.name), change.hurry)

    def _mark(self, kind: Happening, model: str, detail: str = "") -> None:
        device = self.entries[model].device if model in self.entries else ""
        site = self.sites.get(device) or next(iter(self.sites.values()))
        site.unit.journal.mark(kind, self.clock.now(), model, detail)


def _unloaded(name: str) -> ModelUnloaded:
    sentence = f"The model {name!r} is unloaded; `muxctl load {name}` brings it back"
    return ModelUnloaded(sentence, param="model")


def _add(free: Counter[str], site: str, nbytes: int) -> None:
    free[site] += nbytes


def _weights(entry: Entry) -> int:
    """Bytes of an opened entry's weights on a device."""
    assert entry.opened is not None
    return entry.opened.plan.bytes
