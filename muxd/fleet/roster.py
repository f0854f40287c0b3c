"""The models of one daemon: what an operator may ask of them, checked, and made an edit of the target.

One load, unload or move at a time, on whatever devices: each looks at the memory that the others leave, and
devices of the CPU share it. It goes on when whoever asked has left, and ends in nothing half done: a model is
either served or holds no worker, no weights, no account and no lane.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from muxd.clock import Clock
from muxd.config import ModelConfig, ResidencyConfig
from muxd.device.base import is_gpu
from muxd.engine.trace import Happening
from muxd.errors import (
    BadRequest,
    Busy,
    ConfigError,
    ModelFolderError,
    MuxdError,
    NotFound,
    ShuttingDown,
)
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.catalog import Entry
from muxd.fleet.copies import Copies, unloaded
from muxd.fleet.demand import Demand
from muxd.fleet.gauges import Gauges
from muxd.fleet.loading import streams_beside
from muxd.fleet.operation import Operation
from muxd.fleet.reconciler import Fits, Reconciler, untold
from muxd.fleet.site import Site
from muxd.fleet.supervisor import Progress
from muxd.fleet.waker import Waker
from muxd.text.pool import TextPool

_log = logging.getLogger("muxd.fleet")

Work = Callable[[], Coroutine[Any, Any, None]]
Around = AbstractAsyncContextManager[None]  # what is done before and after, as ``fleet.drop_ins`` does

_NOTHING: Around = nullcontext()


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
    residency: ResidencyConfig = field(default_factory=ResidencyConfig)
    demands: Callable[[Iterable[str]], Mapping[str, Demand]] = lambda names: {}
    altered: asyncio.Event = field(default_factory=asyncio.Event)  # what an operator may set was set
    waker: Waker = field(init=False)
    _reconciler: Reconciler = field(init=False)
    _operation: Operation | None = None
    _beginning: Operation | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        copies = Copies(entries=self.entries, sites=self.sites, clock=self.clock)
        self._reconciler = Reconciler(copies=copies, mark=self._mark)
        self.waker = Waker(
            config=self.residency, entries=self.entries, sites=self.sites, reconciler=self._reconciler,
            demands=self.demands, clock=self.clock,
        )  # fmt: skip

    # ---- the daemon's start and end ---------------------------------------------------------------

    def open(self) -> None:
        """Accounts and lanes for every model that was read and has its device. Raises ConfigError where the
        models' quotas cannot hold together."""
        for site in self.sites.values():
            site.open([entry for entry in self.entries.values() if entry.device == site.name])

    def start(self) -> None:
        """Bring in every model that has a lane, or as many as fit: the others sleep."""
        residents = self.waker.residents()
        targets: dict[str, str | None] = {}
        for entry in self.entries.values():
            if entry.lane is None:
                _log.error("%s is not served: %s", entry.name, entry.error)
            elif entry.name not in residents:
                entry.changing = "asleep"
                self.site(entry).unit.sleep(entry.name)
            else:
                targets[entry.name] = entry.device
        beginning = self._beginning = Operation("", "loaded", "reading", patient=True)

        async def work() -> None:
            with suppress(MuxdError):  # each model says why
                await self._reconciler.reach(targets, beginning, progress=self.progress)

        beginning.start(work())

    async def settled(self) -> None:
        """Until every model of the start is ready, has failed or was stopped."""
        assert self._beginning is not None
        await self._beginning.finished()

    async def close(self) -> None:
        """End what is under way, every worker and every hold on weights."""
        self._closed = True
        await self._reconciler.close()
        for operation in (self._operation, self._beginning):
            if operation is not None:
                operation.hurry.set()
                await operation.finished()
        await asyncio.gather(*(site.close() for site in self.sites.values()))
        for entry in self.entries.values():
            entry.unshelve()

    async def calm(self) -> None:
        """Until no model is being loaded, unloaded or moved."""
        while self._operation is not None:
            await self._operation.finished()

    def site(self, entry: Entry) -> Site:
        """Where the model is, or was last."""
        return self.sites[entry.device]

    async def read(self, entry: Entry) -> None:
        """Its folder, for the devices there are; ``entry.error`` says what is wrong with it."""
        sites = self.sites.values()
        beside = any(streams_beside(site.unit.lanes, entry.name) for site in sites)
        await entry.read(self.texts, gpu=any(is_gpu(site.device) for site in sites), aside=beside)

    def give_share(self, entry: Entry) -> None:
        """What its configuration says now, from its next batch on, where the device has no caps."""
        if entry.lane is not None and not self.site(entry).device.caps:
            self.site(entry).unit.set_share(entry.name, entry.config.share)

    # ---- what an operator may ask -----------------------------------------------------------------

    def load(self, name: str, device: str = "", *, around: Around = _NOTHING) -> Operation:
        """Serve a model that is unloaded or has failed; its folder is read again. ``device``: where; else
        where it was. ``around``: what is done around it; where that raises, the ``Operation`` ends so.

        Raises NotFound, Busy where it is served or another operation is under way, ShuttingDown. The
        ``Operation`` ends with MuxdError where it cannot be served: it is "failed" then, says why and holds
        nothing.
        """
        entry = self._known(name)
        self._known_device(device, entry.config.tp)
        self._may_change()
        if entry.state not in ("unloaded", "failed"):
            raise Busy(f"{name} is {entry.state}; `muxctl unload {name}` first to load it anew")
        operation = Operation(name, "loaded", "reading")

        async def work() -> None:
            async with around:
                await self._load(entry, device or entry.device, operation)

        return self._begin(operation, work)

    def add(
        self, config: ModelConfig, *, adapters: Sequence[ModelConfig] = (), keep: bool = False,
        around: Around = _NOTHING,
    ) -> Operation:  # fmt: skip
        """Load a new model; one that cannot be served is gone again, or with ``keep`` has failed.

        ``adapters``: those that belong to it. Raises as ``load`` does, and ConfigError where its name is
        taken or it is an adapter itself.
        """
        if config.lora:
            raise ConfigError(
                f"lora: an adapter comes with its base ({config.name}): write it into muxd.toml, send SIGHUP"
            )
        if config.name in served(self.entries):
            raise ConfigError(f"name: there is a model {config.name!r} already; choose another name")
        self._known_device(config.device, config.tp)
        self._may_change()
        entry = self.entries[config.name] = Entry(config, adapters)
        entry.changing = "loading"
        self.gauges.watch(config.name)
        operation = Operation(config.name, "loaded", "reading")
        return self._begin(operation, lambda: self._add(entry, operation, keep, around))

    def sleep(self, name: str, *, now: bool = False) -> Operation:
        """Give up a model's place on its device; who asks for it wakes it. Streams end first, or go on when
        it wakes: after ``residency.patience``, or at once with ``now``.

        Raises NotFound, Busy where it is not ready or another operation is under way, ShuttingDown.
        """
        entry = self._known(name)
        self._may_change()
        if entry.state != "ready":
            raise Busy(f"{name} is {entry.state}; a model can sleep when it is ready")
        return self.waker.sleep(name, patience=0.0 if now else self.residency.patience)

    def wake(self, name: str) -> Operation:
        """Bring back a model that sleeps. Raises NotFound, Busy where it does not or another operation is
        under way, ShuttingDown; the ``Operation`` ends with MuxdError where there is no room."""
        entry = self._known(name)
        self._may_change()
        if entry.state != "asleep":
            raise Busy(f"{name} is {entry.state}; `muxctl load {name}` brings in a model that is unloaded")
        return self.waker.wake(name, entry.device)

    def pin(self, name: str, pinned: bool) -> None:
        """Whether the rules may have it sleep, from now on. One that sleeps is not woken by that. Raises
        NotFound."""
        entry = self._known(name)
        if entry.pinned != pinned:
            entry.pinned = pinned
            self.altered.set()
            self._mark("pinned" if pinned else "unpinned", name)
            self.waker.asked.set()

    def unload(self, name: str, *, now: bool, around: Around = _NOTHING) -> Operation:
        """Serve a model no more: new requests are refused at once, those that are here are answered or,
        with ``now``, fail. ``now`` may be said again while it waits for answers.

        Raises NotFound, Busy where it is unloaded or another operation is under way, ShuttingDown.
        """
        entry = self._known(name)
        waits = self._operation
        if now and waits is not None and (waits.model, waits.kind) == (name, "unloaded"):
            waits.hurry.set()
            self._reconciler.abort(name)
            return waits
        self._may_change()
        if entry.state == "unloaded":
            raise Busy(f"{name} is unloaded already")
        operation = Operation(name, "unloaded", "draining")
        if now:
            operation.hurry.set()

        async def work() -> None:
            async with around:
                await self._unload(entry, operation)

        return self._begin(operation, work)

    def move(self, name: str, device: str, why: str = "") -> Operation:
        """Bring a model to another device while it serves. ``why`` is for the record.

        Raises NotFound, BadRequest where it is there already, Busy where it is not ready or another operation
        is under way, ShuttingDown. The ``Operation`` ends with MuxdError where it could not be moved; it is
        where it was then, or, should that fail too, "failed" with both reasons.
        """
        return self.rearrange({name: device}, why=why)

    def rearrange(
        self, devices: Mapping[str, str], *, costs: Mapping[str, float] | None = None, fits: Fits = untold,
        why: str = "",
    ) -> Operation:  # fmt: skip
        """Bring models to other devices while they serve, in an order in which memory suffices.

        ``devices``: at least one model -> where to. ``costs`` and ``fits``: see ``Residency``. Raises as
        ``move``; the ``Operation`` too, and what has moved stays then.
        """
        for name, device in devices.items():
            self._may_move(name, device)
        operation = Operation(next(iter(devices)), "moved", "reading", why=why)
        targets = dict[str, str | None](devices)
        return self._begin(
            operation, lambda: self._reconciler.reach(targets, operation, costs=costs, fits=fits)
        )

    def _may_move(self, name: str, device: str) -> None:
        entry = self._known(name)
        if not device:
            raise BadRequest(f"say where to: {', '.join(self.sites)}", param="device")
        self._known_device(device, entry.config.tp)
        self._may_change()
        if entry.device == device:
            raise BadRequest(f"{name} is on {device} already", param="device")
        if entry.state != "ready":
            raise Busy(f"{name} is {entry.state}; a model can move when it is ready")

    def _known(self, name: str) -> Entry:
        known = served(self.entries)
        if name not in known:
            raise NotFound(f"there is no model {name!r}; there are: {', '.join(known) or 'none'}")
        found = known[name]
        if isinstance(found, Adapter):
            raise BadRequest(
                f"{name} is an adapter of {found.base} and comes and goes with it: say {found.base}"
            )
        return found

    def _known_device(self, name: str, ranks: int) -> None:
        """Raises NotFound for a device there is not, ConfigError for one that a model of so many ranks has no
        seat in; "" is any."""
        if name and name not in self.sites:
            raise NotFound(f"there is no device {name!r}; there are: {', '.join(self.sites)}")
        if name:
            self.sites[name].device.seat(ranks)

    def _may_change(self) -> None:
        if self._closed:
            raise ShuttingDown("muxd is shutting down")
        if (other := self._operation) is not None:
            raise Busy(
                f"{other.model} is being {other.kind} ({other.step.stage}); try again when that is done"
            )

    def _begin(self, operation: Operation, work: Work) -> Operation:
        async def to_its_end() -> None:
            try:
                await work()
            finally:
                self._operation = None

        self._operation = operation
        operation.start(to_its_end())
        return operation

    # ---- in and out -------------------------------------------------------------------------------

    async def _add(self, entry: Entry, operation: Operation, keep: bool, around: Around) -> None:
        try:
            async with around:
                await self._load(entry, entry.device, operation)
        except BaseException:
            if not keep and entry.lane is None:
                del self.entries[entry.name]
            raise

    async def _load(self, entry: Entry, device: str, operation: Operation) -> None:
        self._mark("loading", entry.name, device if len(self.sites) > 1 else "")
        entry.changing = "loading"
        entry.quota = entry.config.quota
        entry.pinned = entry.config.resident == "always"
        self.altered.set()
        try:
            await self._reconciler.forget(entry.name)  # a model that rests still has its lane
            try:
                await self._read_and_place(entry, device)
            except MuxdError as error:
                await self._reconciler.failed(entry.name, operation, error)
                raise
            await self._reconciler.reach({entry.name: entry.device}, operation)
        finally:
            entry.changing = ""

    async def _read_and_place(self, entry: Entry, device: str) -> None:
        """Raises ModelFolderError."""
        await self.read(entry)
        if entry.error:
            raise ModelFolderError(entry.error)
        entry.device = device or self.place(entry)

    async def _unload(self, entry: Entry, operation: Operation) -> None:
        self._mark("unloading", entry.name, "at once" if operation.hurry.is_set() else "once it is idle")
        entry.changing = "unloading"
        if entry.device:
            self.site(entry).unit.refuse(entry.name, unloaded(entry.name))
        if operation.hurry.is_set():
            self._reconciler.abort(entry.name)
        await self._reconciler.reach({entry.name: None}, operation)
        if entry.lane is not None:  # it slept
            await self.site(entry).leave(entry, unloaded(entry.name))
        if entry.opened is not None:
            self.texts.forget(entry.opened.source)

    def _mark(self, kind: Happening, model: str, detail: str = "") -> None:
        device = self.entries[model].device if model in self.entries else ""
        site = self.sites.get(device) or next(iter(self.sites.values()))
        site.unit.journal.mark(kind, self.clock.now(), model, detail)
