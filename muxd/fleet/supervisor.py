"""Keeps one model's workers alive: load the weights, spawn, wait for ready or dead, restart, stop.

It owns the model's weights region and its crew of processes; ``fleet/state.py`` decides, this file
performs. The scheduler hears of it only through ``unit.worker_ready`` and ``unit.worker_lost``.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import msgspec

from muxd.clock import Clock
from muxd.device.base import ClientView, Device, Region, is_gpu
from muxd.engine.unit import Unit
from muxd.errors import ModelFolderError, ModelNotReady, MuxdError, WorkerLost
from muxd.fleet.catalog import Entry
from muxd.fleet.crew import Crew, Ended, Seat
from muxd.fleet.loading import beside, check_unchanged, filled, streams_beside, unless
from muxd.fleet.state import (
    AnnounceLost,
    AnnounceReady,
    BecameReady,
    Died,
    Happening,
    Lacked,
    Loading,
    Spawn,
    Spawned,
    State,
    Stop,
)
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd
from muxd.link.exits import Exit, explain
from muxd.messages import (
    BatchDone,
    BatchFailed,
    FromWorker,
    Phases,
    RankDone,
    Ready,
    Refused,
    Setup,
    Unmapped,
)
from muxd.models.stamps import replaced, stamps
from muxd.pool.arena import Arena, Extent

_log = logging.getLogger("muxd.fleet")

START_TIMEOUT = 300.0  # seconds from spawn to ready
STOP_GRACE = 5.0
_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})  # the daemon's, not the model's

Progress = Callable[[str, int, int], None]  # model, bytes done, bytes in all


async def _at_once() -> None:
    """Nobody stands in the way."""


class Supervisor:
    """One served model's process and memory, from ``start`` to the end of ``stop``."""

    def __init__(  # noqa: PLR0913 - all that a start needs of its site
        self,
        entry: Entry,
        setup: Setup,
        *,
        device: Device,
        arena: Arena,
        unit: Unit,
        clock: Clock,
        link: DaemonEnd,
        zygote: Zygote,
        progress: Progress,
        spawns: Iterator[int],
        apart: bool = False,
        faulted: Callable[[], None] = lambda: None,
        clear: Callable[[], Awaitable[None]] = _at_once,
        keep_queue: bool = False,
    ):
        """``apart``: a process for each phase. ``spawns`` numbers all workers of the daemon: no two ever
        have one identity. ``faulted`` is called when a worker's fault has reached all of the device;
        ``clear`` returns when new workers may be let onto it. ``arena``: the pool of ``device``, in which the
        model has its seat. ``keep_queue``: a start that fails for good tells no request, who started it has
        another place for them."""
        self.entry = entry
        self.life = entry.life
        self.settled = asyncio.Event()  # ready, failed or stopped for the first time
        self.error: MuxdError | None = None  # why it gave up, where that was no worker's fault
        self._setup = setup
        self._device = device.seat(entry.config.tp)
        # Of each rank, which of the device's members it is on.
        self.members = [device.members.index(member) for member in self._device.members]
        self._arena, self._unit, self._clock = arena, unit, clock
        self._link, self._zygote, self._progress, self._spawns = link, zygote, progress, spawns
        self._faulted, self._clear, self._keep_queue = faulted, clear, keep_queue
        self._beside = partial(streams_beside, unit.lanes, entry.name)
        self._weights: Region | None = None
        self._loaded = False  # all of them are there
        self.read = 0.0  # the part of them that has been read
        self.from_host = False  # they were in host memory
        self._keep = False  # they stay when the workers have ended
        self._phases: tuple[Phases, ...] = ("prefill", "decode") if apart else ("both",)
        self._stopping = asyncio.Event()
        self._crew: Crew | None = None
        self._verdict: Died | None = None  # why the running workers end, where an exit code says less
        self._delay: float | None = 0.0
        self._task: asyncio.Task[None] | None = None
        self._aside: set[asyncio.Task[None]] = set()  # kills and checks under way

    @property
    def stopping(self) -> bool:
        """``stop`` was called: its workers get no more commands."""
        return self._stopping.is_set()

    @property
    def weights_bytes(self) -> int:
        """Bytes of device memory that its weights take now."""
        return 0 if self._weights is None or self._weights.closed else self._weights.nbytes

    def map(self, extent: Extent) -> None:
        """Lent memory, for the workers there are; new ones get all there is."""
        if self._crew is not None and self._crew.ready.is_set():
            self._crew.map(extent)

    def unmap(self, extent: Extent) -> asyncio.Event | None:
        """The event is set when no worker holds it; None: none does."""
        return None if self._crew is None else self._crew.unmap(extent.offset)

    def start(self) -> None:
        """Load, then keep workers alive until they fail for good or are stopped."""
        self._task = asyncio.create_task(self._run())

    def take_weights(self) -> Region | None:
        """Those that ``stop`` has kept; None: they are gone."""
        weights = self._weights if self._keep and self._loaded else None
        return None if weights is None or weights.closed else weights

    async def stop(self, *, keep: bool = False) -> None:
        """End the workers (politely, then not) and free the weights; at once or in the midst of a start.
        ``keep``: weights that are all there stay, for ``take_weights``.

        When it returns nothing else is left. May be called twice.
        """
        self._keep = keep
        self._handle(Stop())
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task.result()

    def on_message(self, message: FromWorker) -> None:
        """What one of the workers says."""
        if self._crew is None:
            return
        match message:
            case BatchDone():
                if self._agreed(self._crew, message):
                    self._unit.batch_done(self.entry.name, message)
            case RankDone():
                self._agreed(self._crew, message)
            case Unmapped():
                self._crew.unmapped(message)
            case BatchFailed():
                if not self._crew.fallen:  # else that is why, and how it ended says more
                    self.on_lost(f"failed in a batch: {message.error}")
            case Refused():
                self._verdict = Died(message.reason, final=True)
            case Ready():
                self._on_ready(message)

    def _agreed(self, crew: Crew, done: BatchDone | RankDone) -> bool:
        """Ranks that sample different tokens have lost each other, and all that follows would be wrong."""
        if crew.agrees(done.batch, done.tokens):
            return True
        self.on_lost(f"and its other ranks sampled different tokens in batch {done.batch}")
        return False

    def on_lost(self, reason: str) -> None:
        """A worker is out of reach or talks nonsense, or its batch failed: replace it."""
        self._give_up(Died(f"worker {reason}"))

    def _on_ready(self, ready: Ready) -> None:
        assert self._crew is not None
        _log.info(
            "%s: worker %d ready (weights %.1f s, warm-up %.1f s, torch %s)",
            self.entry.name, ready.pid, ready.load_seconds, ready.warm_seconds, ready.torch,
        )  # fmt: skip
        self._crew.heard(ready.worker)
        self._start(self._confirm(ready))

    def doom(self, reason: str) -> asyncio.Event | None:
        """Replace the workers there are, for another's fault; the event is set when all are gone. None: there
        are none."""
        if self._crew is None:
            return None
        self._give_up(Died(f"worker {reason}", blameless=True))
        return self._crew.over

    def on_hung(self, reason: str, *, last: bool) -> None:
        """A worker has not answered for too long: it is to say where it stands, the ``last`` time to go."""
        if last:
            self.on_lost(reason)
        elif self._crew is not None:
            self._crew.ask_where()

    # ---- inside -----------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _confirm(self, ready: Ready) -> None:
        """Say so where the worker does not share the device as it should; it serves all the same."""
        view = ClientView(ready.mps, ready.sms)
        if why := await asyncio.to_thread(self._device.attached, ready.pid, view, self._cap):
            _log.error("%s does not share %s as asked: %s", self.entry.name, self._device.name, why)

    @property
    def _cap(self) -> int:
        """Percent of the device; a device that imposes no caps leaves it out."""
        return self.entry.lane.spec.share if self.entry.lane is not None else 0

    async def _run(self) -> None:
        self._handle(Loading())
        try:
            await self._load()
            while self._delay is not None and not self._stopping.is_set():
                await self._pause(self._delay)
                await self._clear()
                self._delay = None
                if self.life.state in (State.LOADING, State.RESTARTING, State.RESTING):
                    self._handle(self._explained(await self._one_crew()))
        except (MuxdError, OSError) as error:
            self.error = error if isinstance(error, MuxdError) else None
            self._handle(Died(_sentence(error), final=True))
        except Exception as error:  # the others go on, and whoever waits hears of it
            _log.exception("%s: a defect while it was being loaded or served", self.entry.name)
            self._handle(Died(f"of a defect ({type(error).__name__}); muxd's log says more", final=True))
        finally:
            if self._aside:
                await asyncio.wait(self._aside)
            if self._weights is not None and not (self._keep and self._loaded):
                await asyncio.to_thread(self._weights.close)
            self.settled.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _load(self) -> None:
        """Weights from host memory, else from the folder into memory of ours. Raises MuxdError."""
        entry, opened = self.entry, self.entry.opened
        assert opened is not None
        if others := await asyncio.to_thread(replaced, entry.files):
            told = "%s: %s is another file than the one that its weights are of: they are read anew"
            _log.warning(told, entry.name, others[0])
            entry.unshelve()
        if entry.shelved is None:
            for number, why in (await asyncio.to_thread(opened.drop_changed)).items():
                self._unit.refuse_adapter(entry.name, number, ModelFolderError(why))
        plan, parts = opened.plan, opened.parts
        copies = beside(plan, self._device, len(self._phases))
        if (shelved := entry.shelved) is not None:
            self._device.unshelve(shelved, copies)
            entry.shelved, self._weights, self._loaded, self.read = None, shelved, True, 1.0
            self.from_host = True
            return
        files = await asyncio.to_thread(stamps, opened.files)
        self._weights = self._device.allocate(plan.bytes, "weights", copies)
        every = plan.bytes * len(parts)

        def advance(done: int) -> None:
            self.read = done / every
            self._progress(entry.name, done, every)

        advance(0)
        # All of it is there when it is of one set of files, and not before: whoever waits for that may write.
        work = filled(self._weights, parts, lambda done: advance(min(done, every - 1)), self._beside)
        if not await unless(self._stopping, work):
            raise ModelNotReady(f"{entry.name} was stopped while it was being loaded")
        await check_unchanged(files)
        advance(every)
        entry.files, self._loaded = files, True

    def _explained(self, end: Died | Lacked) -> Died | Lacked:
        """A request that runs alone once its like has died is to blame, and not the model."""
        if isinstance(end, Lacked) or end.final or end.blameless:
            return end
        return msgspec.structs.replace(end, explained=self._unit.accused(self.entry.name))

    async def _one_crew(self) -> Died | Lacked:
        """Spawn workers and stay with them until all are gone; says how the first of them ended."""
        assert self._weights is not None
        self._verdict, shared = None, False
        names: dict[Phases, str] = {p: f"{self.entry.name}/{next(self._spawns)}" for p in self._phases}
        crew = self._crew = Crew(self._link, self._zygote, names, self, self.members)
        try:
            env = self._device.worker_env(self._cap)
            setup = msgspec.structs.replace(self._setup, aside=not is_gpu(self._device) and self._beside())
            self._handle(Spawned(await crew.spawn(setup, self._seats(), env, self._device.end_work)))
            ended = await self._watch(crew)
            if ended.code and not self.stopping and await asyncio.to_thread(self._device.faulted):
                # Where others computed, too, it is unknown whose batch the device could not take.
                shared = self._unit.runs_beside(self.entry.name)
                self._faulted()
        except OSError as error:
            if error.errno in _LACKS:
                return self._lacked(error)
            return Died(f"a worker could not be started: {error.strerror or error}")
        finally:
            await crew.clear()
            self._crew = None
        phases, rank = ended.post
        who = "worker" if phases == "both" else f"{phases} worker"
        who += f" of rank {rank}" if len(self.members) > 1 else ""
        refused = ended.code == Exit.REFUSED
        return self._verdict or Died(f"{who} ended: {explain(ended.code)}", final=refused, blameless=shared)

    def _seats(self) -> list[Seat]:
        """One for each rank."""
        assert self._weights is not None
        fds, places = self._arena.fds, zip(self._device.members, self.members, strict=True)
        return [
            Seat(device.name, device.cpus, at, fds[at], weights.fd)
            for (device, at), weights in zip(places, self._weights.pieces, strict=True)
        ]

    def _lacked(self, error: OSError) -> Lacked:
        what = error.strerror or str(error)
        _log.error("muxd lacks what %s's next worker needs: %s; it tries again", self.entry.name, what)
        return Lacked(f"muxd could not start a worker: {what}")

    async def _watch(self, crew: Crew) -> Ended:
        """Race ready against dead and against ``stop``, then wait for dead."""
        gone = asyncio.create_task(crew.first_end())
        ready = asyncio.create_task(crew.ready.wait())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([gone, ready, stop], timeout=START_TIMEOUT, return_when=first)
            if ready.done() and not gone.done():
                for extent in self._arena.extents:
                    crew.map(extent)
                self._handle(BecameReady())
            elif not gone.done() and not stop.done():
                self._give_up(Died(f"worker was not ready within {START_TIMEOUT:.0f} s"))
            await asyncio.wait([gone, stop], return_when=first)
            if not gone.done():
                await crew.stop(STOP_GRACE)
            return await gone
        finally:
            ready.cancel()
            stop.cancel()

    def _give_up(self, verdict: Died) -> None:
        self._verdict = verdict
        if self._crew is not None:
            self._start(self._crew.kill())

    def _handle(self, event: Happening) -> None:
        for instruction in self.life.handle(event, self._clock.now()):
            match instruction:
                case Spawn():
                    self._delay = instruction.delay
                case AnnounceReady():
                    assert self._crew is not None
                    self._keep_queue = False
                    self._unit.worker_ready(self.entry.name, self._crew.identities)
                case AnnounceLost():
                    self._announce_lost(instruction)
        if self.life.state in (State.READY, State.FAILED, State.RESTING, State.STOPPED):
            self.settled.set()

    def _announce_lost(self, lost: AnnounceLost) -> None:
        name = self.entry.name
        error: MuxdError
        if lost.final:
            error = ModelNotReady(
                f"{name} cannot be served: {lost.reason}", retry_after=lost.retry_after or 60.0
            )
            if lost.retry_after is None:
                _log.error("%s failed and is given up: %s", name, lost.reason)
            else:
                _log.error("%s failed too often, next try in %.0f s: %s", name, lost.retry_after, lost.reason)
            if self._keep_queue:
                return
        else:
            error = WorkerLost(f"{name}: {lost.reason}")
            _log.error("%s: %s; restarting in a moment", name, lost.reason)
        self._unit.worker_lost(name, error, final=lost.final, blameless=lost.blameless)


def _sentence(error: MuxdError | OSError) -> str:
    return error.message if isinstance(error, MuxdError) else f"cannot be loaded: {error.strerror or error}"
