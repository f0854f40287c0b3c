"""Keeps one model's worker alive: load the weights, spawn, wait for ready or dead, restart, stop.

The host owns the model's weights region and its worker process; ``fleet/state.py`` decides, this file
performs. The scheduler hears of it only through ``unit.worker_ready`` and ``unit.worker_lost``.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from muxd.clock import Clock
from muxd.device.base import Device, Region
from muxd.engine.unit import Unit
from muxd.errors import ModelNotReady, MuxdError, WorkerLost
from muxd.fleet.catalog import Entry
from muxd.fleet.process import WorkerProcess
from muxd.fleet.state import (
    AnnounceLost,
    AnnounceReady,
    BecameReady,
    Died,
    Happening,
    Loading,
    Spawn,
    Spawned,
    State,
    Stop,
)
from muxd.link.daemon_end import DaemonEnd
from muxd.link.exits import Exit, explain
from muxd.messages import Ready, Refused, Setup, Shutdown
from muxd.models.weights import fill

_log = logging.getLogger("muxd.fleet")

START_TIMEOUT = 300.0  # seconds from spawn to ready
STOP_GRACE = 5.0

Progress = Callable[[str, int, int], None]  # model, bytes done, bytes in all


class Host:
    """One served model's process and memory. ``run`` is its life; cancel it only after ``stop``."""

    def __init__(
        self,
        entry: Entry,
        setup: Setup,
        *,
        device: Device,
        pool_fd: int,
        unit: Unit,
        clock: Clock,
        link: DaemonEnd,
        progress: Progress,
    ):
        self.entry = entry
        self.life = entry.life
        self.settled = asyncio.Event()  # ready or failed for the first time
        self._setup = setup
        self._device, self._pool_fd, self._unit, self._clock = device, pool_fd, unit, clock
        self._link, self._progress = link, progress
        self._weights: Region | None = None
        self._worker: WorkerProcess | None = None
        self._ready = asyncio.Event()
        self._verdict: Died | None = None  # why the running worker ends, where its exit code says less
        self._delay: float | None = 0.0

    @property
    def identity(self) -> str:
        """The link address of the worker now running; answers from an older one are dropped."""
        return f"{self.entry.name}/{self.life.restarts}"

    async def run(self) -> None:
        """Load, then keep a worker alive until it fails for good or is stopped."""
        self._handle(Loading())
        try:
            await self._load()
        except MuxdError as error:
            self._handle(Died(error.message, final=True))
            self._free_weights()
            return
        while self._delay is not None:
            await asyncio.sleep(self._delay)
            self._delay = None
            if self.life.state in (State.LOADING, State.RESTARTING):
                self._handle(await self._one_worker())
        self._free_weights()

    async def stop(self) -> None:
        """End the worker (politely, then not) and free the weights."""
        self._handle(Stop())
        self._delay = None
        if self._worker is not None:
            self._link.send(self.identity, Shutdown())
            await self._worker.stop(STOP_GRACE)
        self._free_weights()

    def on_message(self, message: Ready | Refused) -> None:
        """The worker's first words."""
        if isinstance(message, Refused):
            self._verdict = Died(message.reason, final=True)
        else:
            _log.info(
                "%s: worker %d ready (weights %.1f s, warm-up %.1f s, torch %s)",
                self.entry.name, message.pid, message.load_seconds, message.warm_seconds, message.torch,
            )  # fmt: skip
            self._ready.set()

    def on_defect(self, reason: str) -> None:
        """The worker is out of reach or talks nonsense, or its batch failed: replace it."""
        self._give_up_on_worker(f"worker {reason}", final=False)

    def _free_weights(self) -> None:
        if self._weights is not None:
            self._weights.close()
            self._weights = None

    # ---- inside -----------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Weights from the folder into memory of ours. Raises MuxdError."""
        assert self.entry.opened is not None
        plan = self.entry.opened.plan
        self._weights = self._device.allocate(plan.bytes, "weights")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(self.entry.name, done, plan.bytes)

        await asyncio.to_thread(fill, plan, self._weights.array(), advance)

    async def _one_worker(self) -> Died:
        """Spawn a worker and stay with it until it is gone; says how it ended."""
        assert self._weights is not None
        self._ready.clear()
        self._verdict = None
        identity = self.identity
        setup = msgspec.structs.replace(self._setup, worker=identity)
        self._link.announce(identity)
        try:
            fds = [self._pool_fd, self._weights.fd]
            self._worker = await WorkerProcess.spawn(setup, fds, self._device.worker_env())
            self._handle(Spawned(self._worker.pid))
            code = await self._watch(self._worker)
        except OSError as error:
            return Died(f"a worker could not be started: {error.strerror or error}")
        finally:
            self._worker = None
            self._link.forget(identity)
        return self._verdict or Died(f"worker ended: {explain(code)}", final=code == Exit.REFUSED)

    async def _watch(self, worker: WorkerProcess) -> int:
        """Race ready against dead, then wait for dead; returns the exit code."""
        ready = asyncio.create_task(asyncio.wait_for(self._ready.wait(), START_TIMEOUT))
        gone = asyncio.create_task(worker.wait())
        await asyncio.wait([ready, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            ready.cancel()
        elif ready.exception() is None:
            self._handle(BecameReady())
        else:
            self._give_up_on_worker(f"worker was not ready within {START_TIMEOUT:.0f} s", final=True)
        return await gone

    def _give_up_on_worker(self, reason: str, *, final: bool) -> None:
        self._verdict = Died(reason, final=final)
        if self._worker is not None:
            self._worker.kill()

    def _handle(self, event: Happening) -> None:
        for instruction in self.life.handle(event, self._clock.now()):
            match instruction:
                case Spawn():
                    self._delay = instruction.delay
                case AnnounceReady():
                    self._unit.worker_ready(self.entry.name)
                case AnnounceLost():
                    self._announce_lost(instruction)
        if self.life.state in (State.READY, State.FAILED, State.STOPPED):
            self.settled.set()

    def _announce_lost(self, lost: AnnounceLost) -> None:
        name = self.entry.name
        error: MuxdError
        if lost.final:
            error = ModelNotReady(f"{name} cannot be served: {lost.reason}", retry_after=60.0)
            _log.error("%s failed and is given up: %s", name, lost.reason)
        else:
            error = WorkerLost(f"{name}: {lost.reason} while this request was running; it is being restarted")
            _log.error("%s: %s; restarting in a moment", name, lost.reason)
        self._unit.worker_lost(name, error, final=lost.final)
