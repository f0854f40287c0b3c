"""The processes of one model: one worker for both phases, or one for each. They begin and end together.

A worker that is lost takes its partner along: what they had computed of a sequence is known to both, and rows
that one of them may still be writing cannot be given to anybody.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from muxd.fleet.process import WorkerProcess
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd, Hearer
from muxd.link.exits import STACKS
from muxd.messages import (
    MapPool,
    Phases,
    Setup,
    Shutdown,
    Unmapped,
    UnmapPool,
)
from muxd.pool.arena import Extent


class Ended(NamedTuple):
    """The first process to go: ``code`` is its exit code, negative for a signal."""

    phases: Phases
    code: int


class Crew:
    """``identities``: the link address of each worker, one under "both", or one under each phase."""

    def __init__(self, link: DaemonEnd, zygote: Zygote, identities: Mapping[Phases, str], hearer: Hearer):
        """``hearer``: who hears what they say."""
        self.identities = dict(identities)
        self.ready = asyncio.Event()  # all have said so
        self.over = asyncio.Event()  # none is left
        self._link, self._zygote = link, zygote
        self._mapped: set[int] = set()  # offsets of lent memory that all were told of
        self._leaving: dict[int, tuple[set[str], asyncio.Event]] = {}  # offset -> who still holds it
        self._processes: dict[Phases, WorkerProcess] = {}
        self._silent = set(identities.values())
        for identity in identities.values():
            link.announce(identity, hearer)

    async def spawn(
        self, setup: Setup, fds: list[int], env: Mapping[str, str], end_work: Callable[[int], None]
    ) -> dict[str, int]:
        """Start every process; their ids by phases. Raises OSError, with those that did start running."""
        for phases, identity in self.identities.items():
            own = msgspec.structs.replace(setup, worker=identity, phases=phases)
            self._processes[phases] = await WorkerProcess.spawn(self._zygote, own, fds, env, end_work)
        return {phases: process.pid for phases, process in self._processes.items()}

    # ---- messages ---------------------------------------------------------------------------------

    def heard(self, identity: str) -> None:
        """One of them is ready."""
        self._silent.discard(identity)
        if not self._silent:
            self.ready.set()

    # ---- memory that comes and goes ---------------------------------------------------------------

    def map(self, extent: Extent) -> None:
        """Before any command that uses it; nothing happens where they have it. All must be ready."""
        if extent.offset in self._mapped:
            return
        self._mapped.add(extent.offset)
        told = MapPool(extent.offset, extent.region.nbytes)
        for phases, process in self._processes.items():
            process.give(told, extent.region.fd)
            self._link.send(self.identities[phases], told)

    def unmap(self, offset: int) -> asyncio.Event | None:
        """The event is set when none of them holds it any more; None: none was told of it."""
        if offset not in self._mapped:
            return None
        self._mapped.remove(offset)
        event = asyncio.Event()
        self._leaving[offset] = (set(self.identities.values()), event)
        for identity in self.identities.values():
            self._link.send(identity, UnmapPool(offset))
        return event

    def unmapped(self, message: Unmapped) -> None:
        """One of them says so."""
        left, event = self._leaving[message.offset]
        left.discard(message.worker)
        if not left:
            del self._leaving[message.offset]
            event.set()

    def ask_where(self) -> None:
        """Have each write down what its threads are at, in muxd's log; one that starts would die of it."""
        if self.ready.is_set():
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, STACKS)

    # ---- ends -------------------------------------------------------------------------------------

    async def first_end(self) -> Ended:
        """Wait until one of them is gone."""
        waits = {asyncio.create_task(process.wait()): phases for phases, process in self._processes.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done))
            return Ended(waits[first], first.result())
        finally:
            for wait in waits:
                wait.cancel()

    async def kill(self) -> None:
        await asyncio.gather(*(process.kill() for process in self._processes.values()))

    async def stop(self, grace: float) -> None:
        """Politely where they listen, else not; returns when all are gone."""
        if self.ready.is_set():
            for identity in self.identities.values():
                self._link.send(identity, Shutdown())
                self._link.hush(identity)
        else:
            await self.kill()
        await asyncio.gather(*(process.stop(grace) for process in self._processes.values()))

    async def clear(self) -> None:
        """None is left and none is listened to any more."""
        await self.kill()
        await asyncio.gather(*(process.wait() for process in self._processes.values()))
        for identity in self.identities.values():
            self._link.forget(identity)
        for _, event in self._leaving.values():
            event.set()
        self.over.set()
