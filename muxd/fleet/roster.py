"""The models of one daemon: brings them all in at the start, and single ones in and out while it serves.

One load or unload at a time: each looks at the memory that the others leave. It goes on when whoever asked
has left, and ends in nothing half done: a model is either served or holds no worker, no weights, no account
and no lane.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from muxd.clock import Clock
from muxd.config import ModelConfig
from muxd.device.base import Device
from muxd.engine.trace import Happening
from muxd.engine.unit import Unit
from muxd.errors import (
    Busy,
    ConfigError,
    ModelFolderError,
    ModelNotReady,
    ModelUnloaded,
    MuxdError,
    NotFound,
    ShuttingDown,
)
from muxd.fleet.accounts import lane_spec, terms
from muxd.fleet.catalog import Entry
from muxd.fleet.change import Change
from muxd.fleet.gauges import Gauges
from muxd.fleet.host import Host, Progress
from muxd.fleet.state import State
from muxd.fleet.steps import Stage
from muxd.link.daemon_end import DaemonEnd
from muxd.messages import Decode, Prefill, Setup
from muxd.pool.arena import Arena

_log = logging.getLogger("muxd.fleet")

Work = Callable[[Change], Coroutine[Any, Any, None]]


@dataclass(kw_only=True)
class Roster:
    """``entries`` is everybody's view of the models, in the order to show them; only the roster changes it.

    ``hosts`` has a model exactly while something of it is in memory or under way.
    """

    entries: dict[str, Entry]
    arena: Arena
    device: Device
    unit: Unit
    link: DaemonEnd
    clock: Clock
    gauges: Gauges
    progress: Progress
    hosts: dict[str, Host] = field(default_factory=dict)
    _change: Change | None = None
    _closed: bool = False
    _spawns: "count[int]" = field(default_factory=lambda: count(1))

    # ---- the daemon's start and end ---------------------------------------------------------------

    def start(self) -> None:
        """Start every model that has a lane."""
        for entry in self.entries.values():
            if entry.lane is None:
                _log.error("%s is not served: %s", entry.name, entry.error)
            else:
                self._host(entry, self.progress).start()

    async def settled(self) -> None:
        """Until every model of the start is ready, has failed or was stopped."""
        for host in list(self.hosts.values()):
            await host.settled.wait()

    async def close(self) -> None:
        """End what is under way, every worker and every hold on weights."""
        self._closed = True
        if self._change is not None:
            self._change.hurry.set()
            await self._change.finished()
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))

    # ---- what an operator may ask -----------------------------------------------------------------

    def load(self, name: str) -> Change:
        """Serve a model that is unloaded or has failed; its folder is read again.

        Raises NotFound, Busy where it is served or another change is under way, ShuttingDown. ``Change``
        ends with MuxdError where it cannot be served: it is "failed" then, says why and holds nothing.
        """
        entry = self._known(name)
        self._may_change()
        if entry.state not in ("unloaded", "failed"):
            raise Busy(f"{name} is {entry.state}; `muxctl unload {name}` first to load it anew")
        return self._begin(Change(name, "loaded", "reading"), lambda change: self._load(entry, change))

    def add(self, config: ModelConfig) -> Change:
        """Load a model that was not there; one that cannot be served is not there afterwards either.

        Raises as ``load`` does, and ConfigError where its name is taken.
        """
        if config.name in self.entries:
            raise ConfigError(f"name: there is a model {config.name!r} already; choose another name")
        self._may_change()
        entry = self.entries[config.name] = Entry(config)
        entry.changing = "loading"
        self.gauges.watch(config.name)
        return self._begin(Change(config.name, "loaded", "reading"), lambda change: self._add(entry, change))

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

    def _known(self, name: str) -> Entry:
        if name not in self.entries:
            raise NotFound(f"there is no model {name!r}; there are: {', '.join(self.entries) or 'none'}")
        return self.entries[name]

    def _may_change(self) -> None:
        if self._closed:
            raise ShuttingDown("muxd is shutting down")
        if self._change is not None:
            now, kind = self._change.step.stage, self._change.kind
            raise Busy(f"{self._change.model} is being {kind} ({now}); try again when that is done")

    def _begin(self, change: Change, work: Work) -> Change:
        self._change = change
        change.start(self._to_the_end(change, work))
        return change

    async def _to_the_end(self, change: Change, work: Work) -> None:
        began = self.clock.now()
        try:
            await work(change)
        except MuxdError as error:
            self._mark("unloaded", change.model, error.message)
            _log.error("%s could not be %s: %s", change.model, change.kind, error.message)
            raise
        finally:
            self._change = None
        self._mark(change.kind, change.model)
        _log.info("%s is %s, after %.1f s", change.model, change.kind, self.clock.now() - began)

    # ---- in and out -------------------------------------------------------------------------------

    async def _add(self, entry: Entry, change: Change) -> None:
        try:
            await self._load(entry, change)
        except BaseException:
            del self.entries[entry.name]
            raise

    async def _load(self, entry: Entry, change: Change) -> None:
        self._mark("loading", entry.name)
        entry.changing = "loading"
        try:
            await self._leave(entry, _unloaded(entry.name))  # a failed model still has its lane
            await asyncio.to_thread(entry.open)
            if entry.error:
                raise ModelFolderError(entry.error)
            self._enter(entry)
            await self._bring_up(entry, change)
        except BaseException as error:
            reason = error.message if isinstance(error, MuxdError) else "of a defect; muxd's log says more"
            await self._leave(entry, ModelNotReady(f"{entry.name} could not be loaded: {reason}"))
            entry.error = reason
            raise
        finally:
            entry.changing = ""
        change.tell("ready")

    async def _bring_up(self, entry: Entry, change: Change) -> None:
        """Weights and worker. Raises MuxdError unless it becomes ready."""
        loop = asyncio.get_running_loop()

        def advance(_: str, done: int, total: int) -> None:  # in another thread
            stage: Stage = "weights" if done < total else "starting"
            loop.call_soon_threadsafe(change.tell, stage, done, total)

        host = self._host(entry, advance)
        host.start()
        await _first(host.settled, change.hurry)
        if change.hurry.is_set():
            raise ShuttingDown(f"muxd stopped while {entry.name} was being loaded")
        if entry.life.state is not State.READY:
            raise ModelFolderError(entry.life.detail)

    async def _unload(self, entry: Entry, change: Change) -> None:
        self._mark("unloading", entry.name, "at once" if change.hurry.is_set() else "once it is idle")
        entry.changing = "unloading"
        self.unit.refuse(entry.name, _unloaded(entry.name))
        if entry.lane is not None and not change.hurry.is_set():
            await self._drain(entry, change)
        change.tell("stopping")
        await self._leave(entry, _unloaded(entry.name))
        entry.error, entry.changing = "", "unloaded"
        change.tell("unloaded")

    async def _drain(self, entry: Entry, change: Change) -> None:
        assert entry.lane is not None
        here = entry.lane.admitted + entry.lane.queued
        change.tell("draining", 0, here)
        await _first(self.unit.emptied(entry.name), change.hurry)

    def _enter(self, entry: Entry) -> None:
        """Account and lane. Raises MuxdError, changing nothing."""
        share = max(1, 100 // len(self.entries))
        entry.lane = self.unit.open_model(lane_spec(entry, self.arena, share), terms(entry, self.arena))

    async def _leave(self, entry: Entry, error: MuxdError) -> None:
        """Worker, weights, lane and account go; requests that are still here fail with ``error``."""
        self.unit.refuse(entry.name, error)
        host = self.hosts.get(entry.name)
        if host is not None:
            # First the process, then its requests: while it writes their rows nobody else may have them.
            await host.stop()
            del self.hosts[entry.name]
            entry.renew(self.clock.now())
        if entry.lane is not None:
            if not entry.lane.empty:
                self.unit.worker_lost(entry.name, error, final=True)
            entry.lane = None
            self.unit.close_model(entry.name)

    # ---- hosts ------------------------------------------------------------------------------------

    def _host(self, entry: Entry, progress: Progress) -> Host:
        host = self.hosts[entry.name] = Host(
            entry, self._setup(entry), device=self.device, pool_fd=self.arena.fd, unit=self.unit,
            clock=self.clock, link=self.link, progress=progress, spawns=self._spawns,
            faulted=lambda: self._faulted(entry.name),
        )  # fmt: skip
        return host

    def _faulted(self, lost: str) -> None:
        """Under MPS one worker's fatal fault reaches all: new ones are refused until the last is gone."""
        _log.error("the fault of a worker has reached all of %s; all are replaced", self.device.name)
        for name, host in list(self.hosts.items()):
            if name != lost and host.ready:
                host.on_defect(f"shared {self.device.name} with one that faulted")

    def _setup(self, entry: Entry) -> Setup:
        assert entry.opened is not None
        plan = entry.opened.plan
        return Setup(
            worker="",
            model=entry.name,
            folder=str(entry.opened.folder),
            dtype=entry.config.dtype,
            link=self.link.endpoint,
            device=self.device.name,
            pool_bytes=self.arena.nbytes,
            block_bytes=self.arena.block_bytes,
            max_rows=max(1, self.arena.total_blocks // entry.opened.spec.blocks_per_row),
            weights_bytes=plan.bytes,
            tensors=plan.tensors,
            cores=self.device.cores,
            max_context=entry.own_context,
        )

    def host_of(self, worker: str) -> Host | None:
        """Whose worker has this identity; None when its model has gone meanwhile."""
        host = self.hosts.get(worker.rpartition("/")[0])
        return host if host is not None and host.identity == worker else None

    def send(self, model: str, command: Prefill | Decode) -> None:
        """The unit's way to the model's worker; nothing goes to one that was told to end."""
        host = self.hosts[model]
        if not host.stopping:
            self.link.send(host.identity, command)

    def _mark(self, kind: Happening, model: str, detail: str = "") -> None:
        self.unit.journal.mark(kind, self.clock.now(), model, detail)


def _unloaded(name: str) -> ModelUnloaded:
    sentence = f"The model {name!r} is unloaded; `muxctl load {name}` brings it back"
    return ModelUnloaded(sentence, param="model")


async def _first(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
