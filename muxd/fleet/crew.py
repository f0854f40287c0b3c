"""The processes of one model: one worker for both phases, or one for each, and of a model that is cut over
several devices one for each rank. They begin and end together.

A worker that is lost takes its partners along: what they had computed of a sequence is known to all, rows
that one of them may still be writing cannot be given to anybody, and ranks wait for each other in each layer.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


class Seat(NamedTuple):
    """Where a rank lives: its device by name, the CPUs to stay on, and which member of the pool's device it
    is; ``weights``: descriptor of its part."""

    device: str
    cpus: tuple[int, ...]
    member: int
    pool: int
    weights: int


class Post(NamedTuple):
    """One process of a crew."""

    phases: Phases
    rank: int

    @property
    def label(self) -> str:
        """As processes are listed: phases, and the rank of those that follow the first."""
        return f"{self.phases}/{self.rank}" if self.rank else self.phases


class Ended(NamedTuple):
    """The first process to go: ``code`` is its exit code, negative for a signal."""

    post: Post
    code: int


class Crew:
    """``identities``: the link address of each phase's worker, one under "both", or one under each phase; of
    several ranks that of the first, which the others follow."""

    def __init__(
        self,
        link: DaemonEnd,
        zygote: Zygote,
        identities: Mapping[Phases, str],
        hearer: Hearer,
        members: Sequence[int] = (0,),
    ):
        """``hearer``: who hears what they say. ``members``: of the pool's device, that of each rank."""
        self.identities = dict(identities)
        self.ready = asyncio.Event()  # all have said so
        self.over = asyncio.Event()  # none is left
        self._link, self._zygote, self._members = link, zygote, tuple(members)
        self._mapped: set[int] = set()  # offsets of lent memory that all were told of
        self._leaving: dict[int, tuple[set[str], asyncio.Event]] = {}  # offset -> who still holds it
        self._processes: dict[Post, WorkerProcess] = {}
        self._names = {
            Post(phases, rank): f"{identity}/{rank}" if rank else identity
            for phases, identity in identities.items()
            for rank in range(len(self._members))
        }
        self._silent = set(self._names.values())
        self._told: dict[int, tuple[list[int], int]] = {}  # batch -> its tokens, and how many ranks said so
        self._meetings: list[Path] = []
        for post, name in self._names.items():
            followers = [self._names[other] for other in self._names if other.phases == post.phases]
            link.announce(name, hearer, () if post.rank else followers[1:])

    async def spawn(
        self,
        setup: Setup,
        seats: Sequence[Seat],
        env: Mapping[str, str],
        end_work: Callable[[int], None],
    ) -> dict[str, int]:
        """Start every process; their ids by label. Raises OSError, with those that did start running."""
        for post, name in self._names.items():
            seat = seats[post.rank]
            own = msgspec.structs.replace(
                setup, worker=name, phases=post.phases, device=seat.device, cpus=seat.cpus,
                rank=post.rank, ranks=len(seats), meeting=self._meeting(post),
            )  # fmt: skip
            fds = [seat.pool, seat.weights]
            self._processes[post] = await WorkerProcess.spawn(self._zygote, own, fds, env, end_work)
        return {post.label: process.pid for post, process in self._processes.items()}

    def _meeting(self, post: Post) -> str:
        """Where the ranks of a phase find each other; "" for one alone."""
        if len(self._members) == 1:
            return ""
        number = self.identities[post.phases].rpartition("/")[2]  # no two spawns have one
        path = self._link.directory / f"ranks-{number}-{post.phases}"
        self._meetings.append(path)
        return str(path)

    # ---- messages ---------------------------------------------------------------------------------

    def heard(self, identity: str) -> None:
        """One of them is ready."""
        self._silent.discard(identity)
        if not self._silent:
            self.ready.set()

    def agrees(self, batch: int, tokens: list[int]) -> bool:
        """Whether a rank has sampled in a batch what the others have that have told."""
        if len(self._members) == 1:
            return True
        first, count = self._told.pop(batch, (tokens, 0))
        if count + 1 < len(self._members):
            self._told[batch] = first, count + 1
        return first == tokens

    @property
    def fallen(self) -> bool:
        """Whether a rank is gone, so that what others say of their batches says nothing about these."""
        return len(self._members) > 1 and any(process.gone for process in self._processes.values())

    # ---- memory that comes and goes ---------------------------------------------------------------

    def map(self, extent: Extent) -> None:
        """Before any command that uses it; nothing happens where they have it. All must be ready."""
        if extent.offset in self._mapped:
            return
        self._mapped.add(extent.offset)
        told = MapPool(extent.offset, extent.region.nbytes)
        for post, process in self._processes.items():
            process.give(told, extent.region.pieces[self._members[post.rank]].fd)
        self._send(told)

    def unmap(self, offset: int) -> asyncio.Event | None:
        """The event is set when none of them holds it any more; None: none was told of it."""
        if offset not in self._mapped:
            return None
        self._mapped.remove(offset)
        event = asyncio.Event()
        self._leaving[offset] = (set(self._names.values()), event)
        self._send(UnmapPool(offset))
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

    def _send(self, message: MapPool | UnmapPool | Shutdown) -> None:
        """To all: the first rank's command is the others', too."""
        for identity in self.identities.values():
            self._link.send(identity, message)

    # ---- ends -------------------------------------------------------------------------------------

    async def first_end(self) -> Ended:
        """Wait until one of them is gone."""
        waits = {asyncio.create_task(process.wait()): post for post, process in self._processes.items()}
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
            self._send(Shutdown())
            for name in self._names.values():
                self._link.hush(name)
        else:
            await self.kill()
        await asyncio.gather(*(process.stop(grace) for process in self._processes.values()))

    async def clear(self) -> None:
        """None is left and none is listened to any more."""
        await self.kill()
        await asyncio.gather(*(process.wait() for process in self._processes.values()))
        for name in self._names.values():
            self._link.forget(name)
        for meeting in self._meetings:
            meeting.unlink(missing_ok=True)
        for _, event in self._leaving.values():
            event.set()
        self.over.set()
