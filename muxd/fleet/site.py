"""One device and everything that serves from it: its pool, its unit, the workers of its models.

A daemon has one for each device. A model is at one site, while it moves at two; the roster says which.
Nothing here decides: a site brings a model in and takes it out again, leaving nothing half done.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from muxd.clock import Clock
from muxd.config import MPS_CLIENTS, MPS_SPARED
from muxd.device.base import Device
from muxd.engine.assembly import Place
from muxd.engine.unit import Unit
from muxd.errors import ModelFolderError, MuxdError, NoRow, OutOfMemory, ShuttingDown
from muxd.fleet.accounts import opening_of, setup
from muxd.fleet.catalog import Entry
from muxd.fleet.loans import Loans
from muxd.fleet.operation import first
from muxd.fleet.state import State
from muxd.fleet.supervisor import Progress, Supervisor
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd
from muxd.placement.memory import Budget
from muxd.pool.arena import Arena

_log = logging.getLogger("muxd.fleet")


@dataclass(kw_only=True)
class Site:
    """``supervisors`` has a model exactly while something of it is in memory here or under way.

    ``spawns`` numbers all workers of the daemon.
    """

    name: str
    device: Device
    arena: Arena
    place: Place  # both, as the scheduler sees them
    unit: Unit
    link: DaemonEnd
    zygote: Zygote
    clock: Clock
    spawns: Iterator[int]
    grow: bool = False  # memory that models leave is lent to the pool
    budget: Budget | None = None  # what its workers are held to beside pool and weights
    counts_workers: bool = False  # what they take is of the device's memory, not beside it
    supervisors: dict[str, Supervisor] = field(default_factory=dict)
    loans: Loans = field(init=False)
    _doomed: list[asyncio.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loans = Loans(self.arena, self.unit, self.supervisors, grow=self.grow)

    def hung(self, model: str, reason: str, last: bool) -> None:
        """The unit says that a worker does not answer."""
        if (supervisor := self.supervisors.get(model)) is not None:
            supervisor.on_hung(reason, last=last)

    # ---- models in and out ------------------------------------------------------------------------

    def open(self, entries: Sequence[Entry]) -> None:
        """Accounts and lanes of the models it begins with; one that was not read, or finds no row, gets none.

        Raises ConfigError where the models' quotas cannot hold together.
        """
        sound = [entry for entry in entries if entry.opened is not None and self._finds_a_row(entry)]
        for entry in sound:
            self.enter(entry, len(sound))

    def _finds_a_row(self, entry: Entry) -> bool:
        """Else ``entry.error`` says why."""
        try:
            opening_of(entry, self.place, 1)
        except NoRow as error:
            entry.error = error.message
        return not entry.error

    def enter(self, entry: Entry, models: int = 0) -> None:
        """Account and lane, as one of ``models``; 0: of those that are here, and it. Raises MuxdError,
        changing nothing."""
        entry.lane = self.unit.open_model(*opening_of(entry, self.place, models or len(self.unit.lanes) + 1))

    def start(self, entry: Entry, progress: Progress, *, keep_queue: bool = False) -> Supervisor:
        """Weights and worker of a model that has a lane; its supervisor goes on by itself. ``keep_queue``:
        see there. Raises OutOfMemory where the device takes no more processes."""
        self._check_clients()
        told = setup(entry, self.arena, self.device, self.place, self.link.endpoint, self.budget)
        supervisor = self.supervisors[entry.name] = Supervisor(
            entry, told, device=self.device, arena=self.arena, unit=self.unit, clock=self.clock,
            link=self.link, zygote=self.zygote, progress=progress, spawns=self.spawns,
            apart=self.place.apart, faulted=lambda: self._faulted(entry.name), clear=self._cleared,
            keep_queue=keep_queue,
        )  # fmt: skip
        supervisor.start()
        return supervisor

    @property
    def _each(self) -> int:
        """Clients of MPS that a model is; 0: the device is not shared by MPS."""
        shared = self.place.gpu and len(self.place.rungs) > 1
        return (2 if self.place.apart else 1) if shared else 0

    @property
    def places(self) -> int | None:
        """Models that there can be at once, however small they are; None: as many as fit."""
        return (MPS_CLIENTS - MPS_SPARED) // self._each if self._each else None

    def _check_clients(self) -> None:
        """As memory they are short of, one model's leaving helps."""
        processes = (len(self.supervisors) + 1) * self._each
        if processes > MPS_CLIENTS:
            or_one = ', or set scheduler.split_phases = "no", one process a model' if self.place.apart else ""
            raise OutOfMemory(
                f"{self.name} takes {MPS_CLIENTS} processes (MPS), {processes} are wanted: serve fewer "
                f"models here{or_one}"
            )

    async def bring_up(
        self, entry: Entry, progress: Progress, hurry: asyncio.Event, *, keep_queue: bool = False,
        patient: bool = False,
    ) -> None:  # fmt: skip
        """``start``, and wait. Raises MuxdError unless it becomes ready, ShuttingDown on ``hurry``.
        ``patient``: one that rests may stay, it will be tried again."""
        supervisor = self.start(entry, progress, keep_queue=keep_queue)
        await first(supervisor.settled, hurry)
        if hurry.is_set():
            raise ShuttingDown(f"muxd stopped while {entry.name} was being loaded")
        rests = patient and entry.life.state is State.RESTING
        if entry.life.state is not State.READY and not rests:
            raise supervisor.error or ModelFolderError(entry.life.detail)

    async def halt(self, entry: Entry, *, keep: bool = False) -> int:
        """Worker and weights go, its requests wait. Returns the bytes of weights that are free now. ``keep``:
        where the device can, they stay in host memory (``entry.shelved``)."""
        supervisor = self.supervisors.get(entry.name)
        if supervisor is None:
            return 0
        freed = supervisor.weights_bytes
        try:
            await supervisor.stop(keep=keep)
            if (weights := supervisor.take_weights()) is not None:
                if self.device.shelve(weights):
                    entry.shelved = weights
                else:
                    await asyncio.to_thread(weights.close)
        finally:  # nothing of it is left, whatever went wrong with its end
            del self.supervisors[entry.name]
            entry.renew(self.clock.now())
        return freed

    async def leave(self, entry: Entry, error: MuxdError) -> int:
        """As ``halt``; lane and account go, too, and requests that are still here fail with ``error``."""
        self.unit.refuse(entry.name, error)
        # First the process, then its requests: while it writes their rows nobody else may have them.
        freed = await self.halt(entry)
        entry.unshelve()
        if entry.lane is not None:
            if not entry.lane.empty:
                self.unit.worker_lost(entry.name, error, final=True)
            entry.lane = None
            self.unit.close_model(entry.name)
        return freed

    def _faulted(self, lost: str) -> None:
        """Under MPS one worker's fatal fault reaches all: new ones are refused until the last is gone."""
        _log.error("the fault of a worker has reached all of %s; all are replaced", self.name)
        self.unit.device_faulted(lost, self.name)
        reason = f"shared {self.name} with one that faulted"
        for name, supervisor in self.supervisors.items():
            if name != lost and (over := supervisor.doom(reason)) is not None:
                self._doomed.append(over)

    async def _cleared(self) -> None:
        """Until those that a fault has reached are gone."""
        while self._doomed:
            await self._doomed[0].wait()
            self._doomed = [over for over in self._doomed if not over.is_set()]

    async def close(self) -> None:
        """End every worker and every hold on weights of models that are awake."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self.supervisors.values()))
